"""A benchmark as a probe: log-likelihoods of the choices, or answers in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ft_pipeline.gate import generate, scorer, written
from ft_pipeline.gate.benchmarks import WRITTEN, Question, read_questions
from ft_pipeline.gate.probes.probe import Probe, Ticker, sample
from ft_pipeline.gate.samples import Sample
from ft_pipeline.store.artifacts import Artifact


def benchmark_probe(name: str, suite: Artifact, tokenizer: Any) -> Probe:
    """Both arms answer every question of a suite."""
    if suite.manifest.config["kind"] == WRITTEN:
        return _written(name, suite, tokenizer)
    questions: Sequence[Question] = read_questions(suite)

    def answer(model: Any, indices: Sequence[int], tick: Ticker) -> list[Sample]:
        return scorer.answers(model, tokenizer, [questions[i] for i in indices], tick=tick)

    return Probe(
        name=name, kind="benchmark", role=f"suite:{name}", identity={"score": sorted({q.metric for q in questions})},
        ids=tuple(q.id for q in questions), strata=tuple(q.stratum for q in questions), answer=answer,
    )  # fmt: skip


def _written(name: str, suite: Artifact, tokenizer: Any) -> Probe:
    exercises, rules = written.read_exercises(suite)

    def answer(model: Any, indices: Sequence[int], tick: Ticker) -> list[Sample]:
        asked = [exercises[i] for i in indices]
        prompts = [tokenizer(e.prefix + e.context)["input_ids"] for e in asked]
        said = generate.greedy(
            model, tokenizer, prompts, max_new_tokens=rules.max_new_tokens, until=rules.until, tick=tick
        )
        return [
            _judged(sample(e.id, (ids, tokenizer), reference=e.target, output=written.cut(text, rules), score=0.0), e, rules)
            for e, ids, text in zip(asked, prompts, said, strict=True)
        ]  # fmt: skip

    return Probe(
        name=name, kind="benchmark", role=f"suite:{name}", identity={"score": "exact_match"},
        ids=tuple(e.id for e in exercises), strata=tuple(e.stratum for e in exercises), answer=answer,
    )  # fmt: skip


def _judged(one: Sample, exercise: written.Exercise, rules: written.Rules) -> Sample:
    return replace(one, score=float(written.is_right(one.output, exercise.target, rules)), stratum=exercise.stratum)
