"""How often somebody may ask: a bucket of tokens for each, in this process. N API processes let N times as much through."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_BUCKETS = 10_000
"""Buckets kept, about 200 bytes each: whoever sends from ever new addresses makes old ones forgotten and fills no memory."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """Token buckets by name: each holds one minute's worth and fills evenly."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str, a_minute: int) -> int:
        """Takes a token. 0 when there was one, else the seconds until there is; a limit of 0 is asked again in a minute."""
        with self._lock:
            bucket = self._filled(name, a_minute)
            if bucket.tokens < 1:
                return _seconds(1 - bucket.tokens, a_minute)
            bucket.tokens -= 1
            return 0

    def wait_seconds(self, name: str, a_minute: int) -> int:
        """As `take` answers, taking nothing."""
        with self._lock:
            bucket = self._filled(name, a_minute)
            return 0 if bucket.tokens >= 1 else _seconds(1 - bucket.tokens, a_minute)

    def left(self, name: str, a_minute: int) -> int:
        """Tokens that are there."""
        with self._lock:
            return int(self._filled(name, a_minute).tokens)

    def _filled(self, name: str, a_minute: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(a_minute, now)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        bucket.tokens = min(a_minute, bucket.tokens + (now - bucket.at) * a_minute / 60)
        bucket.at = now
        return bucket


def _seconds(missing: float, a_minute: int) -> int:
    return max(1, math.ceil(missing * 60 / a_minute)) if a_minute else 60
