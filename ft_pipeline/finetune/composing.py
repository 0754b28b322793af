"""The micro-batches of this process by number: items are read once for their weight and their batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any


class Batches:
    """Composes a micro-batch when it is asked for."""

    def __init__(
        self, compose: Callable[[Sequence[Any]], Any], read: Callable[[int], Sequence[Any]], *, keep: int
    ) -> None:
        """`read`: the items of a number, wanted for their weight and again for the batch; `keep` of them stay."""
        self._make = compose
        self.items = lru_cache(maxsize=keep)(read)

    def take(self, number: int) -> tuple[Any, float]:
        """The micro-batch, and the seconds that the model had nothing to do because of it."""
        started = time.monotonic()
        made = self._make(self.items(number))
        return made, time.monotonic() - started
