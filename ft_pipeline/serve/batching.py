"""Collects requests that come within a few milliseconds into one batch and decodes batch after batch on one thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ft_pipeline.errors import FtError
from ft_pipeline.serve.engine import Finish, Generation, Piece
from ft_pipeline.serve.text import TextStream


@dataclass
class Row:
    """One answer in the making: filled by the decoding thread, read by the thread of its request."""

    request: Generation
    adapter: str | None
    """Key of the adapter, None for the base model."""
    prompt_tokens: list[int]
    max_tokens: int
    end_tokens: frozenset[int]
    stream: TextStream
    completion_tokens: int = 0
    finish: Finish | None = None
    pieces: queue.SimpleQueue[Piece | BaseException] = field(default_factory=queue.SimpleQueue)

    def push(self, token: int) -> None:
        """Takes the next token; sets `finish` when it was the last."""
        if self.finish:
            return
        self.completion_tokens += 1
        ended = token in self.end_tokens
        text = "" if ended else self.stream.push(token)
        if ended or self.stream.stopped:
            self.finish = "stop"
        elif self.completion_tokens >= self.max_tokens:
            self.finish = "length"
        self._emit(text)

    def cancel(self) -> None:
        """Nobody reads on: the row counts as finished at the next token."""
        self.finish = self.finish or "stop"

    def read(self) -> Iterator[Piece]:
        """The pieces as they come, the last with `finish`. Raises what the decoding thread raised."""
        try:
            while True:
                piece = self.pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish:
                    return
        finally:
            self.cancel()

    def _emit(self, text: str) -> None:
        if self.finish:
            text += self.stream.flush()
            self.pieces.put(
                Piece(
                    text=text,
                    finish=self.finish,
                    prompt_tokens=len(self.prompt_tokens),
                    completion_tokens=self.completion_tokens,
                )
            )
        elif text:
            self.pieces.put(Piece(text=text))


class Batcher:
    """A thread that gives `decode` up to `max_rows` rows at a time."""

    def __init__(self, decode: Callable[[list[Row]], None], *, max_rows: int = 16, wait_seconds: float = 0.005) -> None:
        self._decode, self._max_rows, self._wait_seconds = decode, max_rows, wait_seconds
        self._waiting: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self.batches = 0
        self.rows = 0
        self.largest = 0
        self._thread = threading.Thread(target=self._loop, name="decode", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> None:
        """Queues a row; read its pieces with `row.read()`."""
        self._waiting.put(row)

    def close(self) -> None:
        """Ends the thread after the rows that were queued before."""
        self._waiting.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (first := self._waiting.get()) is not None:
            rows = self._collect(first)
            self.batches, self.rows = self.batches + 1, self.rows + len(rows)
            self.largest = max(self.largest, len(rows))
            self._run(rows)

    def _collect(self, first: Row) -> list[Row]:
        rows, until = [first], time.monotonic() + self._wait_seconds
        while len(rows) < self._max_rows:
            try:
                row = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if row is None:
                self._waiting.put(None)
                break
            rows.append(row)
        return rows

    def _run(self, rows: list[Row]) -> None:
        """Whatever goes wrong in a batch is raised in the requests of that batch; the thread lives on for the next."""
        try:
            self._decode([row for row in rows if not row.finish])
        except Exception as error:  # noqa: BLE001 - handed to every waiting request
            for row in rows:
                row.pieces.put(error if isinstance(error, FtError) else RuntimeError(f"decoding failed: {error!r}"))
