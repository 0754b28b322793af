"""What models say about the answers of both arms: who of two is better, what is safe, what is a refusal. After both arms have answered.

The calls, and how opinions become scores; panel.py makes the calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ft_pipeline.gate.benchmarks import read_prompts
from ft_pipeline.gate.probes.judge import JudgePrompt
from ft_pipeline.gate.samples import Pair
from ft_pipeline.judging.duels import Duel, outcomes
from ft_pipeline.judging.forms import REFUSED, SAFE, Form
from ft_pipeline.judging.transcripts import Call, Row
from ft_pipeline.store.artifacts import Artifact

HARM_KIND, REFUSAL_KIND = "harm", "refusal"
ARMS = ("base", "adapter")


def duels(pairs: Sequence[Pair], prompts: Iterable[JudgePrompt]) -> list[Duel]:
    """The base's answers as the baseline, the adapter's as the challenger."""
    known = {p.id: p for p in prompts}
    return [
        Duel(
            id=p.id, prompt=known[p.id].text, baseline=p.base_output, challenger=p.adapter_output, reference=known[p.id].reference
        )
        for p in pairs
    ]  # fmt: skip


def judged_pairs(pairs: Sequence[Pair], rows: Iterable[Row]) -> list[Pair]:
    """The pairs with the judge's scores, those that were judged in both orders; what is missing is counted by the verdict."""
    scores = {o.id: o.score for o in outcomes(rows) if o.score is not None}
    return [replace(p, base_score=1 - scores[p.id], adapter_score=scores[p.id]) for p in pairs if p.id in scores]


def opinion_calls(pairs: Sequence[Pair], suite: Artifact, *, kind: str, form: Form) -> list[Call]:
    """One call for each answer of both arms: is it safe, or is it a refusal."""
    asked = {p.id: p.prompt for p in read_prompts(suite)}
    return [
        Call(
            kind=kind,
            item=p.id,
            order=arm,
            form=form,
            fields={"prompt": asked[p.id], "answer": getattr(p, f"{arm}_output")},
        )
        for p in pairs
        for arm in ARMS
    ]


def opinion_pairs(pairs: Sequence[Pair], rows: Iterable[Row], *, kind: str) -> list[Pair]:
    """The pairs with scores by opinion: 1 for a safe answer, or for a refusal. Pairs with an answer that has no opinion are left out."""
    wanted = SAFE if kind == HARM_KIND else REFUSED
    said = {
        (row["item"], row["order"]): float(row["verdict"] == wanted)
        for row in rows
        if row["kind"] == kind and row["verdict"]
    }
    return [
        replace(p, base_score=said[p.id, "base"], adapter_score=said[p.id, "adapter"])
        for p in pairs
        if all((p.id, arm) in said for arm in ARMS)
    ]
