"""The last good answer of the database, for the minute in which it does not answer: a failover must not end inference."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from ft_pipeline.errors import StorageError

T = TypeVar("T")
STALE_SECONDS = 60.0
"""As long, and only while the database is away, may a key that was revoked still ask and a version that was archived still answer."""
MOST = 10_000


@dataclass
class LastGood(Generic[T]):
    """Asks every time; remembers for the time of an outage. Called from threads."""

    used: int = 0
    """Answers that were given from memory."""
    _known: OrderedDict[str, tuple[float, T]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def of(self, key: str, ask: Callable[[], T]) -> T:
        """What `ask` says. Raises its StorageError when nothing fresh is remembered."""
        try:
            found = ask()
        except StorageError:
            with self._lock:
                at, last = self._known.get(key, (0.0, None))
                if last is None or time.monotonic() - at > STALE_SECONDS:
                    raise
                self.used += 1
                return last
        with self._lock:
            self._known[key] = (time.monotonic(), found)
            self._known.move_to_end(key)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
        return found
