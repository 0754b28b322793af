"""A multiple-choice suite as a probe: log-likelihoods of the choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ft_pipeline.gate import scorer
from ft_pipeline.gate.benchmarks import Question, read_questions
from ft_pipeline.gate.probes.probe import Probe, Ticker
from ft_pipeline.gate.samples import Sample
from ft_pipeline.store.artifacts import Artifact


def benchmark_probe(name: str, suite: Artifact, tokenizer: Any) -> Probe:
    """Both arms choose among the choices of every question."""
    questions: Sequence[Question] = read_questions(suite)

    def answer(model: Any, indices: Sequence[int], tick: Ticker) -> list[Sample]:
        return scorer.answers(model, tokenizer, [questions[i] for i in indices], tick=tick)

    return Probe(
        name=name, kind="benchmark", role=f"suite:{name}", identity={"score": sorted({q.metric for q in questions})}, ids=tuple(q.id for q in questions),
        strata=tuple(q.stratum for q in questions), answer=answer,
    )  # fmt: skip
