"""The recipe's own holdout as a probe: generated answers against references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ft_pipeline.gate import generate
from ft_pipeline.gate.holdout import Task, read_tasks
from ft_pipeline.gate.metrics import metric_of
from ft_pipeline.gate.probes.probe import Probe, Ticker, sample
from ft_pipeline.gate.samples import Sample
from ft_pipeline.store.artifacts import Artifact


def holdout_probe(
    section: Mapping[str, Any], curated: Artifact, tokenizer: Any, *, change: Callable[[Task], Task] | None = None
) -> Probe:
    """Both arms write an answer to every holdout row that has one. change: asks something else instead, which is another probe."""
    metric = metric_of(section["metric"], section["parameters"])
    tasks, skipped = read_tasks(curated, metric.usable)
    tasks = [change(t) for t in tasks] if change else tasks
    identity = {**section, "change": change.__name__} if change else dict(section)

    def answer(model: Any, indices: Sequence[int], tick: Ticker) -> list[Sample]:
        asked = [tasks[i] for i in indices]
        prompts = [_task_ids(tokenizer, t) for t in asked]
        said = generate.greedy(model, tokenizer, prompts, max_new_tokens=section["max_new_tokens"], tick=tick)
        return [
            sample(t.id, (ids, tokenizer), reference=t.reference, output=text, score=metric.score(t.reference, text))
            for t, ids, text in zip(asked, prompts, said, strict=True)
        ]

    return Probe(
        name=f"holdout-{change.__name__}" if change else "holdout", kind="holdout", role="curated", identity=identity, ids=tuple(t.id for t in tasks),
        strata=("",) * len(tasks), answer=answer, skipped=skipped,
    )  # fmt: skip


def _task_ids(tokenizer: Any, task: Task) -> list[int]:
    if task.messages:
        return generate.render(tokenizer, task.messages, task.tools)
    return tokenizer(task.prompt)["input_ids"]
