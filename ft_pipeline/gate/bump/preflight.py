"""Before anything is computed: does the adapter still fit the new base, and did anything change that it could notice?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ft_pipeline.gate.bump.structure import Needs, Structure

Outcome = Literal["CARRY_FORWARD", "OK", "INCOMPATIBLE"]
NAMED = 3
"""Layers that a reason names; the rest is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What a look at headers and configs says."""

    outcome: Outcome
    reasons: tuple[str, ...]
    changed: tuple[str, ...]
    """File classes that differ."""


def preflight(old: Structure, new: Structure, adapter: Needs) -> Preflight:
    """CARRY_FORWARD when only documentation differs, INCOMPATIBLE when the adapter cannot be put on the new base as it is."""
    changed = tuple(kind for kind in old.digests if old.digests[kind] != new.digests.get(kind))
    if not set(changed) - {"docs"}:
        return Preflight(
            outcome="CARRY_FORWARD",
            changed=changed,
            reasons=("only documentation changed" if changed else "every file is the same",),
        )
    reasons = (*_shapes(old, new, adapter), *_vocabulary(old, new), *_template(changed))
    if reasons:
        return Preflight(outcome="INCOMPATIBLE", reasons=reasons, changed=changed)
    return Preflight(outcome="OK", reasons=(f"{' and '.join(changed)} changed, and the adapter fits",), changed=changed)


def _shapes(old: Structure, new: Structure, adapter: Needs) -> Iterator[str]:
    """Layers that the adapter changes and that the old base has under that name: gone, or of another shape."""
    known = {name: shape for name, shape in adapter.shapes.items() if name in old.shapes}
    gone = sorted(name for name in known if name not in new.shapes)
    other = sorted(name for name in known if name in new.shapes and not _fits(known[name], new.shapes[name]))
    if gone:
        yield f"{_named(gone)} of the adapter {'is' if len(gone) == 1 else 'are'} not in the new base"
    if other:
        first = other[0]
        yield f"{_named(other)}: the adapter needs {_size(known[first])}, the new base has {_size(new.shapes[first])}"


def _fits(needed: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out)."""
    return there in (needed, needed[::-1])


def _vocabulary(old: Structure, new: Structure) -> Iterator[str]:
    if old.vocab_size != new.vocab_size:
        yield f"the vocabulary has {new.vocab_size} entries, it had {old.vocab_size}"
    if old.vocabulary_sha != new.vocabulary_sha:
        yield "the tokenizer's vocabulary or merges changed: token ids mean something else than in training"
    before, after = old.added_tokens, new.added_tokens
    moved = sorted(t for t in {*before, *after} if before.get(t) != after.get(t))
    if moved:
        yield f"added tokens changed: {_named(moved)}"


def _template(changed: tuple[str, ...]) -> Iterator[str]:
    if "chat_template" in changed:
        yield "the chat template changed: the adapter was trained on prompts of another form"


def _named(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
