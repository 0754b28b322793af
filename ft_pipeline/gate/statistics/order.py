"""The order in which questions are asked: random, and every prefix holds the strata in their proportions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256


def order(ids: Sequence[str], strata: Sequence[str] | None = None, seed: str = "") -> list[int]:
    """Indices of `ids` in the order to ask them in: the same for equal ids, strata and seed, however `ids` is sorted.

    Item r of a stratum of size s gets place (r + u) / s with u of the seed, so that a prefix of k of n rows holds k * s / n of
    each stratum within one row, and no stratum always comes first. `strata`: one a row, None for a single one.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index in range(len(ids)):
        members[strata[index] if strata else ""].append(index)
    place: dict[int, tuple[float, float]] = {}
    for stratum, found in members.items():
        found.sort(key=lambda i: _draw(seed, "row", ids[i]))
        for rank, index in enumerate(found):
            shift = _draw(seed, "stratum", stratum, str(rank))
            place[index] = ((rank + shift) / len(found), shift)
    return sorted(range(len(ids)), key=lambda i: (*place[i], ids[i]))


def _draw(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(sha256("\0".join(parts).encode()).digest()[:8]) / 2**64
