"""Candidates to be judged: several answers to each prompt from an OpenAI-compatible server, such as `ft-pipeline serve` with its adapters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError
from ft_pipeline.judging.endpoint import Endpoint
from ft_pipeline.judging.judge import NoReply
from ft_pipeline.judging.transcripts import read_rows


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn: the n-th answer to a prompt with seed n, so that a server that keeps seeds gives the same ones again."""

    endpoint: Endpoint
    samples: int
    temperature: float
    calls_at_once: int = 8

    def answers(self, prompt: str | list[dict[str, Any]]) -> list[str]:
        """Of one prompt. Raises NoReply."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        told = ({"temperature": self.temperature, "seed": seed} for seed in range(self.samples))
        return [self.endpoint.complete(messages, **more).text for more in told]


def sample(prompts: Sequence[dict[str, Any]], how: Sampling, out: Path) -> int:
    """Appends a row `{id, prompt, candidates}` for each prompt that `out` does not hold yet; how many. Raises DataError for those without an answer.

    Prompts are rows `{prompt}` with an optional `id`.
    """
    done = {row["id"] for row in read_rows(out)}
    missing = [(name, row["prompt"]) for name, row in _named(prompts) if name not in done]
    failed: Counter[str] = Counter()
    with ThreadPoolExecutor(how.calls_at_once) as pool, out.open("a", encoding="utf-8") as file:
        asked = {pool.submit(how.answers, prompt): (name, prompt) for name, prompt in missing}
        for finished in as_completed(asked):
            name, prompt = asked[finished]
            try:
                row = {"id": name, "prompt": prompt, "candidates": finished.result()}
            except NoReply as failure:
                failed[failure.cause] += 1
                continue
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    if failed:
        told = ", ".join(f"{number:,} {cause}" for cause, number in sorted(failed.items()))
        raise DataError(
            f"{sum(failed.values()):,} of {len(missing):,} prompts got no answers ({told})",
            why="Prompts that a server fails on are not a random part of all.",
            cure=f"run the command again: what stands in {out} is not asked again",
        )
    return len(missing)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The rows `{prompt}` of a JSONL file. Raises DataError with the line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}", cure="rows are {prompt}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str | list) or not row["prompt"]:
            raise DataError(
                f"{path}:{number}: no prompt", why="No row is guessed or left out.", cure="rows are {prompt}"
            )
        rows.append(row)
    return rows


def _named(prompts: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(str(row.get("id", number)), row) for number, row in enumerate(prompts, 1)]
