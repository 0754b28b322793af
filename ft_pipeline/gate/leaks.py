"""Whether an adapter was trained on its own exam: the holdout's questions in the training rows of every dataset behind it.

Curate keeps a holdout out of the dataset that it was split from. It cannot do so for a dataset that somebody else curated, for the one
that an earlier adapter started from, or after the holdout was drawn anew: those are compared here, by the manifests of the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.curate.artifact import CURATED_KIND, item_words, rows_of, rows_that_hold
from ft_pipeline.gate.holdout import Task
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Ref

COVERAGE = 0.8
"""Share of a question's word sequences in one training row from which it counts as leaked. Curate notes rows from .5; a verdict needs more."""
FEWEST_WORDS = 8
"""Shorter questions ("and why?") are compared as whole prompts only."""
LEFT_OUT = frozenset({"role", "name", "tool_call_id", "label", "labels", "weight"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A dataset that holds questions of the holdout."""

    digest: str
    questions: int
    exactly: int
    """Word for word, as the whole prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """What was found."""

    questions: Mapping[str, bool]
    """Holdout row -> True when a training prompt is the same word for word."""
    sources: tuple[Source, ...]
    num_datasets: int
    """That were compared; 0 for weights of which no training data is known."""


def datasets_behind(store: Store, adapter: Ref) -> list[Artifact]:
    """Every curated dataset among the ancestors of an adapter, by digest: its own, and those of what it started from."""
    found: dict[str, Ref] = {}
    seen: set[str] = set()
    waiting = [adapter]
    while waiting:
        ref = waiting.pop()
        if ref.digest in seen:
            continue
        seen.add(ref.digest)
        if ref.kind == CURATED_KIND:
            found[ref.digest] = ref
        waiting += store.recorded(ref).parents.values()
    return [store.fetch(found[digest]) for digest in sorted(found)]


def leak_of(tasks: Sequence[Task], datasets: Sequence[Artifact]) -> Leak:
    """The questions of a holdout that stand in the train split of a dataset. A pass over the rows, about 22 us each (CPU, measured on 50,000)."""
    held: dict[str, bool] = {}
    sources = []
    for dataset in datasets:
        found = _in_dataset(tasks, dataset)
        if found:
            sources.append(Source(digest=dataset.ref.digest, questions=len(found), exactly=sum(found.values())))
        for row_id, exactly in found.items():
            held[row_id] = held.get(row_id, False) or exactly
    return Leak(questions=held, sources=tuple(sources), num_datasets=len(datasets))


def _in_dataset(tasks: Sequence[Task], dataset: Artifact) -> dict[str, bool]:
    """Holdout row -> whether it stands there word for word."""
    asked: dict[str, list[str]] = {}
    questions: dict[str, list[str]] = {}
    for one in tasks:
        asked.setdefault(_key(_prompt(one)), []).append(one.id)
        if len(item_words(_question(one))) >= FEWEST_WORDS:
            questions.setdefault(_question(one), []).append(one.id)
    exact: set[str] = set()

    def texts() -> Iterator[str]:
        for row in rows_of(dataset, "train"):
            exact.update(_key(prompt) for prompt in _prompts(row["content"]))
            yield "\n".join(_texts(row["content"]))

    ids = {ids[0]: text for text, ids in questions.items()}
    inside = {ids_[0]: ids_ for ids_ in questions.values()}
    found: dict[str, bool] = {}
    if ids:
        for _, held, _ in rows_that_hold(texts(), ids, threshold=COVERAGE):
            found.update(dict.fromkeys(inside[held], False))
    else:
        for _ in texts():
            pass
    for key in asked.keys() & exact:
        found.update(dict.fromkeys(asked[key], True))
    return found


def _key(turns: Sequence[str]) -> str:
    """Letter case, white space and the last full stop aside. Signs stay: `a > b` is another question than `a < b`."""
    return "\n".join(" ".join(turn.lower().split()).rstrip(" .!?") for turn in turns)


def _prompt(one: Task) -> list[str]:
    """The whole conversation that is asked, without system prompts: they are the same for many."""
    if not one.messages:
        return [one.prompt]
    return [str(m.get("content") or "") for m in one.messages if m["role"] != "system"]


def _question(one: Task) -> str:
    """What is asked last."""
    return next((str(m.get("content") or "") for m in reversed(one.messages) if m["role"] == "user"), one.prompt)


def _prompts(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """Every conversation of a training row up to an answer."""
    prompt = content.get("prompt")
    if isinstance(prompt, str):
        yield [prompt]
    turns = content.get("messages") or (prompt if isinstance(prompt, list) else [])
    said: list[str] = []
    for turn in turns:
        if turn["role"] == "assistant":
            yield list(said)
        if turn["role"] != "system":
            said.append(str(turn.get("content") or ""))
    if isinstance(prompt, list):
        yield said


def _texts(value: Any) -> Iterator[str]:
    """Every text of a row, whatever its shape."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in LEFT_OUT:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
