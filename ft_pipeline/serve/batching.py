"""The decoding thread: rows join the running batch between two tokens and leave when they are done. Knows no torch."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from ft_pipeline.errors import FtError
from ft_pipeline.serve.engine import Busy, Finish, Generation, Piece, TokenLogprob
from ft_pipeline.serve.limits import Limits
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
    asked_at: float = field(default_factory=time.monotonic)
    noted: list[TokenLogprob] = field(default_factory=list)
    waited_seconds: float = 0.0
    """In the queue, until its prompt was read."""

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

    def note(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> None:
        """Takes the probability of the token that is pushed next, and of the likeliest ones; the end of an answer has none."""
        if token not in self.end_tokens:
            others = tuple(TokenLogprob(token=self.stream.spell(i), logprob=p) for i, p in top)
            self.noted.append(TokenLogprob(token=self.stream.spell(token), logprob=logprob, top=others))

    def cancel(self) -> None:
        """Nobody reads on: the row leaves the batch at the next token."""
        self.finish = self.finish or "stop"

    def fail(self, error: BaseException) -> None:
        """Raises an error in the thread that reads this row."""
        self.pieces.put(error if isinstance(error, FtError) else RuntimeError(f"decoding failed: {error!r}"))
        self.cancel()

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

    @property
    def most_tokens(self) -> int:
        """Of the prompt and the longest answer it may get."""
        return len(self.prompt_tokens) + self.max_tokens

    def _emit(self, text: str) -> None:
        if self.finish:
            last = Piece(
                text=text + self.stream.flush(),
                finish=self.finish,
                prompt_tokens=len(self.prompt_tokens),
                completion_tokens=self.completion_tokens,
                waited_seconds=self.waited_seconds,
                logprobs=tuple(self.noted),
            )
            self.pieces.put(last)
        elif text:
            self.pieces.put(Piece(text=text, logprobs=tuple(self.noted)))
            self.noted = []


class Decoder(Protocol):
    """What the decoding thread drives. Errors of single rows go to `Row.fail`."""

    def join(self, rows: Sequence[Row]) -> None:
        """Reads the prompts of new rows and adds them to the running batch, with their first tokens."""
        ...

    def step(self) -> None:
        """One more token for every running row; rows with a `finish` leave."""
        ...

    @property
    def running(self) -> list[Row]:
        """The rows in the batch."""
        ...


class Closed(Exception):
    """The batcher takes no more rows."""


class Batcher:
    """A thread that lets waiting rows join as soon as there is room, and decodes while any row runs."""

    def __init__(self, decoder: Decoder, limits: Limits | None = None) -> None:
        self._decoder, self._limits = decoder, limits or Limits()
        self._waiting: deque[Row] = deque()
        self._work: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.steps, self.rows, self.largest = 0, 0, 0
        """Forward passes, rows that joined, rows in the largest batch."""
        self._thread = threading.Thread(target=self._loop, name="decode", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> None:
        """Queues a row; read its pieces with `row.read()`. Raises Busy when the queue is full, Closed after `close`."""
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) >= self._limits.max_waiting:
                raise Busy(len(self._waiting), retry_after_seconds=self._limits.retry_after_seconds)
            self._waiting.append(row)
            self._changed.notify()

    def between_steps(self, work: Callable[[], None]) -> None:
        """Runs `work` on the decoding thread between two tokens and waits for it; raises what it raised.

        A lock that the decoding loop takes and gives back each step would starve whoever else wants the model.
        """
        if threading.current_thread() is self._thread:
            return work()
        done: Future[None] = Future()
        with self._changed:
            if self._closed:
                raise Closed
            self._work.append((work, done))
            self._changed.notify()
        return done.result()

    def close(self, *, wait: bool = True) -> None:
        """Takes no more rows; the thread ends when those that were queued are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if wait:
            self._thread.join()

    @property
    def waiting(self) -> int:
        """Rows that have not joined yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """False when the decoding thread is gone: nothing that is queued would ever be answered."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Rows in the batch."""
        return len(self._decoder.running)

    def _loop(self) -> None:
        while self._wait():
            self._do_work()
            if joining := self._take():
                self.rows += len(joining)
                with shared_fate(joining):
                    self._decoder.join(joining)
            if running := self._decoder.running:
                self.steps, self.largest = self.steps + 1, max(self.largest, len(running))
                with shared_fate(running):
                    self._decoder.step()

    def _wait(self) -> bool:
        """Until there is something to do. False: closed, and nothing is left."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._work or self._closed or self._decoder.running, timeout=None
            )
            return bool(self._waiting or self._work or self._decoder.running)

    def _do_work(self) -> None:
        while self._work:
            work, done = self._work.popleft()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
                done.set_exception(error)
            else:
                done.set_result(None)

    def _take(self) -> list[Row]:
        """The next rows that fit beside the running ones, in the order in which they came."""
        taken: list[Row] = []
        running = self._decoder.running
        with self._changed:
            while self._waiting:
                row = self._waiting[0]
                if row.finish is None and not self._limits.fits(row.most_tokens, running, taken):
                    break
                self._waiting.popleft()
                row.waited_seconds = time.monotonic() - row.asked_at
                if row.finish is None:
                    taken.append(row)
        return taken


@contextmanager
def shared_fate(rows: Sequence[Row]) -> Iterator[None]:
    """Whatever goes wrong inside is raised in these requests; the decoding thread lives on for the others."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - handed to every waiting request
        for row in rows:
            row.fail(error)
