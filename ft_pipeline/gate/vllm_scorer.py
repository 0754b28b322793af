"""The scorer on vLLM: one request for all single-token choices of a question, and prompt log-probabilities behind a guarded prefix cache.

What it guards against (vLLM 0.32): prompt log-probabilities of cached blocks are memory that nobody wrote (vllm#42019, #42245), so a result is
taken only where no position it needs was cached; an adapter on lm_head is silently left out of them (#51594), so such adapters are refused;
max_lora_rank is 16 unless it is said. Without a cache, vLLM computes a few-shot prefix once per choice: 38.4 M tokens for MMLU, not 1.5 M.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError, UserError
from ft_pipeline.gate.benchmarks import Question
from ft_pipeline.gate.samples import Sample
from ft_pipeline.gate.scorer import Ticker, sample
from ft_pipeline.gate.scorer_rows import Scored, encoded
from ft_pipeline.store.fingerprint import sha256_bytes

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that max_lora_rank may have."""
WITHOUT_LOGPROBS = {"lm_head", "embed_tokens"}
CHECKED = 16
"""Choices that are scored both ways before anything else is."""
CHECK_NATS = 0.05
"""Two ways of one choice differ by less: bf16 has 8 bits, and a stale value is off by nats."""
BLOCK_QUESTIONS = 256


@dataclass(frozen=True)
class Engine:
    """A loaded base model on vLLM. One load serves the base and every adapter on it: the arm is chosen for each request."""

    llm: Any
    tokenizer: Any
    limit: int
    """Tokens that the model reads at once."""


def opened(base: Path, tokenizer: Any, *, adapters: Sequence[Path], limit: int) -> Engine:
    """The base on vLLM, ready for these adapters. Raises UserError without vLLM, DataError for an adapter that it would score wrongly."""
    vllm = _vllm()
    ranks = [_rank(folder) for folder in adapters]
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _allowed(max(ranks))} if ranks else {}
    llm = vllm.LLM(
        model=str(base), tokenizer=str(base), max_model_len=limit + 1, enable_prefix_caching=True, seed=0, max_logprobs=-1, **lora
    )  # fmt: skip
    return Engine(llm, tokenizer, limit)


def answers(engine: Engine, questions: Sequence[Question], *, adapter: Path | None, tick: Ticker) -> list[Sample]:
    """One sample per question, in order; `adapter` None asks the base. Raises NotANumber, DataError, also when the engine contradicts itself."""
    choices = encoded(engine.tokenizer, questions, limit=engine.limit)
    arm = Arm(engine, _request(adapter))
    arm.check(choices)
    sums: list[list[float]] = []
    for start in range(0, len(choices), BLOCK_QUESTIONS):
        sums += arm.scored(choices[start : start + BLOCK_QUESTIONS])
        tick(len(sums), len(choices))
    return [sample(*one) for one in zip(questions, choices, sums, strict=True)]


@dataclass(frozen=True)
class Arm:
    """An engine with one adapter or none."""

    engine: Engine
    lora: Any
    """vLLM's LoRARequest, None for the base."""

    def scored(self, choices: Sequence[Sequence[Scored]]) -> list[list[float]]:
        """Log-likelihoods of the choices of each question, in nats."""
        single = [_is_single(group) for group in choices]
        together = iter(self._single([g for g, s in zip(choices, single, strict=True) if s]))
        apart = iter(self._prompts([c for g, s in zip(choices, single, strict=True) if not s for c in g]))
        return [next(together) if s else [next(apart) for _ in g] for g, s in zip(choices, single, strict=True)]

    def check(self, choices: Sequence[Sequence[Scored]]) -> None:
        """Scores the first choices both ways. Raises DataError when they differ."""
        asked = [c for group in choices for c in group][:CHECKED]
        owners = choices[: len(asked)]
        quick = [value for group in self.scored(owners) for value in group][: len(asked)]
        plain = self._prompts(asked, cached=False)
        worst = max((abs(a - b) for a, b in zip(quick, plain, strict=True)), default=0.0)
        if worst > CHECK_NATS:
            raise DataError(
                f"vLLM gives a choice two log-likelihoods that are {worst:.3f} nats apart",
                why="Its prefix cache or its adapter is not what it says: no score of this engine can be used.",
                cure="score with transformers (the default engine), and report the vLLM version",
            )

    def _single(self, groups: Sequence[Sequence[Scored]]) -> list[list[float]]:
        """Choices that differ in their last token only: one request each, one generated token, the log-probabilities of all of them."""
        wanted = [[c.ids[-1] for c in group] for group in groups]
        made = self._generate(
            [group[0].ids[:-1] for group in groups],
            [_params(logprob_token_ids=sorted({*tokens})) for tokens in wanted],
        )
        return [
            [one.outputs[0].logprobs[0][t].logprob for t in tokens] for one, tokens in zip(made, wanted, strict=True)
        ]

    def _prompts(self, choices: Sequence[Scored], *, cached: bool = True) -> list[float]:
        """Log-probabilities of what was sent. A position that came from the cache has none, so such a request is sent again without it."""
        sent = [c.ids for c in choices]
        made = self._generate(sent, [_params(prompt_logprobs=0, skip_reading_prefix_cache=not cached) for _ in sent])
        again = [i for i, (c, one) in enumerate(zip(choices, made, strict=True)) if _from_cache(one) > c.start - 1]
        fresh = self._generate(
            [sent[i] for i in again], [_params(prompt_logprobs=0, skip_reading_prefix_cache=True) for _ in again]
        )
        for index, one in zip(again, fresh, strict=True):
            made[index] = one
        return [_sum(c, one) for c, one in zip(choices, made, strict=True)]

    def _generate(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        if not prompts:
            return []
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return list(self.engine.llm.generate(asked, list(params), lora_request=self.lora, use_tqdm=False))


def refuse_unscored(folder: Path) -> None:
    """Raises DataError for an adapter whose weights vLLM leaves out of log-probabilities."""
    config = _config(folder)
    targets = config.get("target_modules") or []
    named = {targets} if isinstance(targets, str) else set(targets)
    touched = sorted((named & WITHOUT_LOGPROBS) | {*(config.get("modules_to_save") or [])})
    if touched:
        raise DataError(
            f"the adapter trains {', '.join(touched)}, which vLLM leaves out of log-probabilities (vllm#51594)",
            why="It would be measured without a part of itself: -6.63 instead of -0.009 nats were seen.",
            cure="score it with transformers, the default engine",
        )


def _rank(folder: Path) -> int:
    refuse_unscored(folder)
    config = _config(folder)
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def _allowed(rank: int) -> int:
    found = next((r for r in RANKS if r >= rank), None)
    if found is None:
        raise DataError(f"an adapter of rank {rank}: vLLM takes up to {RANKS[-1]}", cure="score it with transformers")
    return found


def _is_single(group: Sequence[Scored]) -> bool:
    """True for choices of one token each behind the same tokens."""
    first = group[0].ids[:-1]
    return all(c.start == len(c.ids) - 1 and c.ids[:-1] == first for c in group)


def _from_cache(one: Any) -> int:
    return one.num_cached_tokens or 0


def _sum(choice: Scored, one: Any) -> float:
    """A missing position is an error, never a zero."""
    found = [one.prompt_logprobs[i].get(choice.ids[i]) for i in range(choice.start, len(choice.ids))]
    if None in found:
        raise DataError(
            "vLLM left out a log-probability of a prompt's token",
            why="A question would be scored on half of its choice.",
            cure="score with transformers, the default engine",
        )
    return math.fsum(one.logprob for one in found)


def _params(**more: Any) -> Any:
    return _vllm().SamplingParams(temperature=0.0, max_tokens=1, **more)


def _request(adapter: Path | None) -> Any:
    """vLLM tells adapters apart, and caches their blocks, by a positive number: 28 bits of the digest of the weights' place."""
    if adapter is None:
        return None
    number = int(sha256_bytes(str(adapter.resolve()).encode())[:7], 16) + 1
    return import_module("vllm.lora.request").LoRARequest(adapter.name, number, str(adapter))


def _vllm() -> Any:
    try:
        return import_module("vllm")
    except ImportError:
        raise UserError(
            "vLLM is not installed", why="This engine needs it.", cure="pip install 'ft-pipeline[vllm]', or score with transformers"
        ) from None  # fmt: skip
