"""Composes the next micro-batches on a thread while the model works on this one, in the same order and to the same tensors."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

DEPTH = 2
"""Micro-batches that may wait."""
_END = object()


class Ahead:
    """Micro-batches of known numbers, made in order. `compose` must be a function of the number alone: it runs before its turn."""

    def __init__(self, compose: Callable[[int], Any], numbers: Iterable[int], *, depth: int = DEPTH) -> None:
        self._compose, self._numbers = compose, numbers
        self._ready: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
        self._thread.start()

    def take(self, number: int) -> tuple[Any, float]:
        """The micro-batch of the next number, and the seconds that were waited for it. Raises what composing it raised."""
        started = time.monotonic()
        found, made, error = self._ready.get()
        if error is not None:
            raise error
        assert found == number, f"micro-batch {number} was asked for, {found} is next"
        return made, time.monotonic() - started

    def close(self) -> None:
        """Ends the thread; what waits is dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                continue

    def _work(self) -> None:
        try:
            for number in self._numbers:
                made = self._compose(number)
                self._ready.put((number, made, None))
                if self._closed.is_set():
                    return
            self._ready.put((_END, None, None))
        except BaseException as error:  # noqa: BLE001 - raised where the batch is taken
            self._ready.put((None, None, error))


class Batches:
    """The micro-batches of this process by number: made on the thread when the method allows it, else when they are asked for."""

    def __init__(
        self, compose: Callable[[Sequence[Any]], Any], read: Callable[[int], Sequence[Any]], *, keep: int
    ) -> None:
        """`read`: the items of a number, wanted for their weight and again for the batch; `keep` of them stay."""
        self._make, self._read = compose, read
        self._lock = threading.Lock()
        self.items = lru_cache(maxsize=keep)(self._items)
        self._ahead: Ahead | None = None

    def run_ahead(self, numbers: Iterable[int]) -> None:
        """From now on these numbers are asked for, in this order."""
        self._ahead = Ahead(lambda number: self._make(self.items(number)), numbers)

    @property
    def runs_ahead(self) -> bool:
        """True once a thread composes."""
        return self._ahead is not None

    def take(self, number: int) -> tuple[Any, float]:
        """The micro-batch, and the seconds that the model had nothing to do because of it."""
        if self._ahead is not None:
            return self._ahead.take(number)
        started = time.monotonic()
        made = self._make(self.items(number))
        return made, time.monotonic() - started

    def close(self) -> None:
        """Ends the thread."""
        if self._ahead is not None:
            self._ahead.close()

    def _items(self, number: int) -> Sequence[Any]:
        # one reader at a time: a memory-mapped file has a position
        with self._lock:
            return self._read(number)
