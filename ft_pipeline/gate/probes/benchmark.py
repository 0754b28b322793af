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

    def answer(model: Any, tick: Ticker) -> list[Sample]:
        return scorer.answers(model, tokenizer, questions, tick=tick)

    return Probe(
        name=name, kind="benchmark", role=f"suite:{name}", identity={"score": "per character"}, num_questions=len(questions),
        num_passes=sum(len(q.choices) for q in questions), answer=answer,
    )  # fmt: skip
