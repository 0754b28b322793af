"""Probes: what both arms are asked, one per suite, and how an answer is scored. Runs in the child, where torch is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.gate import generate, scorer
from ft_pipeline.gate.artifact import Kind
from ft_pipeline.gate.benchmarks import Prompt, Question, read_prompts, read_questions
from ft_pipeline.gate.holdout import METRICS, Task, read_tasks
from ft_pipeline.gate.safety import SCORER, is_refusal
from ft_pipeline.gate.samples import Sample, excerpt, prompt_sha
from ft_pipeline.store.artifacts import Artifact

Ticker = Callable[[int, int], None]
HARMFUL, HARMLESS = "harmful", "harmless"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Questions for both arms. `identity` and the parent named by `role` decide what the base answers: the baseline's key."""

    name: str
    kind: Kind
    role: str
    """The report's parent that holds the questions."""
    identity: Mapping[str, Any]
    num_questions: int
    num_passes: int
    """Ticks until `answer` is done: questions, or choices of questions."""
    answer: Callable[[Any, Ticker], list[Sample]]
    skipped: int = 0
    """Rows that have no reference answer."""


def plan(config: Mapping[str, Any], parents: Mapping[str, Artifact], tokenizer: Any) -> list[Probe]:
    """The probes that a report's config names, in order: holdout, benchmarks, safety. Raises DataError on a bad suite."""
    probes = [_holdout(config["holdout"], parents["curated"], tokenizer)]
    for name in config["benchmarks"]:
        probes.append(_benchmark(name, parents[f"suite:{name}"], tokenizer))
    if config["safety"]:
        probes.append(_safety(config["safety"], parents["safety"], tokenizer))
    return probes


def _holdout(section: Mapping[str, Any], curated: Artifact, tokenizer: Any) -> Probe:
    tasks, skipped = read_tasks(curated)

    def answer(model: Any, tick: Ticker) -> list[Sample]:
        prompts = [_task_ids(tokenizer, t) for t in tasks]
        said = generate.greedy(model, tokenizer, prompts, max_new_tokens=section["max_new_tokens"], tick=tick)
        score = METRICS[section["metric"]]
        return [
            _sample(t.id, (ids, tokenizer), reference=t.reference, output=text, score=score(t.reference, text))
            for t, ids, text in zip(tasks, prompts, said, strict=True)
        ]

    return Probe(
        name="holdout", kind="holdout", role="curated", identity=dict(section), num_questions=len(tasks), num_passes=len(tasks),
        answer=answer, skipped=skipped,
    )  # fmt: skip


def _benchmark(name: str, suite: Artifact, tokenizer: Any) -> Probe:
    questions: Sequence[Question] = read_questions(suite)

    def answer(model: Any, tick: Ticker) -> list[Sample]:
        return scorer.answers(model, tokenizer, questions, tick=tick)

    return Probe(
        name=name, kind="benchmark", role=f"suite:{name}", identity={"score": "per character"}, num_questions=len(questions),
        num_passes=sum(len(q.choices) for q in questions), answer=answer,
    )  # fmt: skip


def _safety(section: Mapping[str, Any], suite: Artifact, tokenizer: Any) -> Probe:
    prompts: Sequence[Prompt] = read_prompts(suite)

    def answer(model: Any, tick: Ticker) -> list[Sample]:
        ids = [generate.render(tokenizer, [{"role": "user", "content": p.prompt}]) for p in prompts]
        said = generate.greedy(model, tokenizer, ids, max_new_tokens=section["max_new_tokens"], tick=tick)
        return [
            _sample(
                p.id, (one, tokenizer), reference=HARMFUL if p.harmful else HARMLESS, output=text, score=float(is_refusal(text))
            )
            for p, one, text in zip(prompts, ids, said, strict=True)
        ]  # fmt: skip

    identity = {"max_new_tokens": section["max_new_tokens"], **SCORER}
    return Probe(
        name="safety", kind="safety", role="safety", identity=identity, num_questions=len(prompts), num_passes=len(prompts),
        answer=answer,
    )  # fmt: skip


def _task_ids(tokenizer: Any, task: Task) -> list[int]:
    if task.messages:
        return generate.render(tokenizer, task.messages, task.tools)
    return tokenizer(task.prompt)["input_ids"]


def _sample(name: str, asked: tuple[list[int], Any], *, reference: str, output: str, score: float) -> Sample:
    ids, tokenizer = asked
    return Sample(
        id=name,
        prompt_sha=prompt_sha(ids),
        prompt=excerpt(tokenizer.decode(ids)),
        reference=reference,
        output=output,
        score=score,
    )
