"""Which replica answers for which weights: the same one as long as it is there, another when it is busier than the rest. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

SPREAD = 1.25
"""A replica may have so many times the mean of the pool's requests before the next in line gets one ("consistent hashing with bounded
loads", Mirrokni et al. 2016): one hot adapter spreads over the pool, a cold one stays where its weights and prefixes are."""


def ranked(weights: str, replicas: Iterable[str]) -> list[str]:
    """Rendezvous hashing: every replica in the order in which it is asked. One that leaves moves only what it had."""
    return sorted(set(replicas), key=lambda replica: (_score(weights, replica), replica), reverse=True)


def in_order(weights: str, replicas: Iterable[str], in_flight: Mapping[str, int]) -> list[str]:
    """As `ranked`, with those that already have more than their share at the end."""
    order = ranked(weights, replicas)
    if not order:
        return []
    most = math.ceil(SPREAD * (sum(in_flight.get(r, 0) for r in order) + 1) / len(order))
    return sorted(order, key=lambda replica: in_flight.get(replica, 0) >= most)


def _score(weights: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{weights}\0{replica}".encode(), digest_size=8).digest()
