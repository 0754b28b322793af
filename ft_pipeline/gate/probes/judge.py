"""What a judge compares as a probe: both arms answer the recipe's holdout, or the prompts of a suite. Answers only: nothing is scored here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.gate import generate
from ft_pipeline.gate.benchmarks import read_open_prompts
from ft_pipeline.gate.holdout import read_tasks
from ft_pipeline.gate.probes.probe import Probe, Ticker, sample
from ft_pipeline.gate.samples import Sample
from ft_pipeline.judging.duels import Duel, by_digest
from ft_pipeline.judging.preferences import said
from ft_pipeline.store.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgePrompt:
    """A prompt that both arms answer for a judge."""

    id: str
    messages: tuple[dict[str, Any], ...] = ()
    """The conversation before the answer; empty for a plain prompt."""
    tools: Any = None
    prompt: str = ""
    reference: str = ""

    @property
    def text(self) -> str:
        """What the judge reads: one user turn as it is, a longer conversation turn by turn."""
        return said(self.messages) if self.messages else self.prompt


def judge_probe(section: Mapping[str, Any], parents: Mapping[str, Artifact], tokenizer: Any) -> Probe:
    """The judge is no part of the probe's identity: the base's stored answers serve every judge."""
    prompts = judge_prompts(section, parents)

    def answer(model: Any, indices: Sequence[int], tick: Ticker) -> list[Sample]:
        asked = [prompts[i] for i in indices]
        ids = [_ids(tokenizer, p) for p in asked]
        answers = generate.greedy(model, tokenizer, ids, max_new_tokens=section["max_new_tokens"], tick=tick)
        return [
            sample(p.id, (one, tokenizer), reference=p.reference, output=text, score=0.0)
            for p, one, text in zip(asked, ids, answers, strict=True)
        ]

    return Probe(
        name="judge", kind="judge", role="judge_prompts" if "judge_prompts" in parents else "curated",
        identity={"max_new_tokens": section["max_new_tokens"], "max_prompts": section["max_prompts"]},
        ids=tuple(p.id for p in prompts), strata=("",) * len(prompts), answer=answer,
    )  # fmt: skip


def judge_prompts(section: Mapping[str, Any], parents: Mapping[str, Artifact]) -> list[JudgePrompt]:
    """The prompts of a judge section: those of its suite, else the holdout's. Raises DataError."""
    if "judge_prompts" in parents:
        rows = read_open_prompts(parents["judge_prompts"])
        found = [
            JudgePrompt(id=r.id, messages=({"role": "user", "content": r.prompt},), reference=r.reference) for r in rows
        ]
    else:
        tasks, _ = read_tasks(parents["curated"])
        found = [
            JudgePrompt(id=t.id, messages=t.messages, tools=t.tools, prompt=t.prompt, reference=t.reference)
            for t in tasks
        ]
    if section["max_prompts"] is None or len(found) <= section["max_prompts"]:
        return found
    kept = {
        d.id
        for d in by_digest(
            [Duel(id=p.id, prompt="", baseline="", challenger="") for p in found], section["max_prompts"]
        )
    }
    return [p for p in found if p.id in kept]


def _ids(tokenizer: Any, prompt: JudgePrompt) -> list[int]:
    if prompt.messages:
        return generate.render(tokenizer, prompt.messages, prompt.tools)
    return tokenizer(prompt.prompt)["input_ids"]
