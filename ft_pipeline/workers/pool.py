"""One function over many items in several processes: results in order, little in flight, no worker survives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ft_pipeline.errors import FtError
from ft_pipeline.workers.child import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items handed out per process: one that is worked on and one that waits, so that no process idles while the parent writes."""

_fault: Exception | None = None
"""In a worker: what its initializer raised. Told with the first item, where the parent hears it."""


def mapped(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    processes: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """`function(item)` of each item, in the order of the items; `processes` == 1 computes in this process.

    Spawned workers: `function`, items and results must pickle, and results should be small (write what is large to files).
    `initializer(*initargs)` runs once in each process, for what is costly to open. At most 2 items a process are handed out
    before their results are taken, so that items may come from a stream. When the caller stops early or is interrupted,
    workers are killed at once; when the parent is killed, Linux ends them. Raises what a function or an initializer raises, and
    FtError when a worker is killed (mostly for want of memory).
    """
    if processes <= 1:
        if initializer is not None:
            initializer(*initargs)
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _begin, (os.getpid(), initializer, initargs)
    )
    try:
        yield from _in_order(pool, (function, items), processes * AHEAD)
    except BrokenProcessPool as error:
        raise FtError(
            "a worker process was killed",
            why="Most often memory ran out (the kernel's log says so). What was finished is kept.",
            cure="run the same command again; if it happens again, set FT_THREADS=1",
        ) from error
    finally:
        _end(pool)


class Workforce(Protocol):
    """Who does the tasks of a stage: processes of this machine, or a team of machines that share a folder."""

    @property
    def is_here(self) -> bool:
        """True when tasks run in this process: then what they need does not have to travel."""
        ...

    @property
    def leads(self) -> bool:
        """True for the one that writes the outcome."""
        ...

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        stage: str,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> Iterator[Result]:
        """`function(item)` of each item, in order. `stage` names the tasks: unique within a run."""
        ...

    def alone(self) -> Workforce:
        """For a stage with too little work to share."""
        ...


@dataclass(frozen=True, slots=True)
class Pool:
    """Processes of this machine, started for each stage."""

    processes: int = 1

    @property
    def is_here(self) -> bool:
        """True for one process."""
        return self.processes <= 1

    @property
    def leads(self) -> bool:
        """Always: there is no other."""
        return True

    def map(self, function: Any, items: Iterable[Any], *, stage: str, **begin: Any) -> Iterator[Any]:  # noqa: ARG002 - a team needs the name
        """See `mapped`."""
        return mapped(function, items, processes=self.processes, **begin)

    def alone(self) -> Pool:
        """This process."""
        return Pool(1)


def _in_order(pool: ProcessPoolExecutor, work: tuple[Callable[[Any], Any], Iterable[Any]], most: int) -> Iterator[Any]:
    function, items = work
    waiting: deque[Future[Any]] = deque()
    for item in items:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(pool.submit(_call, function, item))
    while waiting:
        yield waiting.popleft().result()


def _begin(parent: int, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """In a worker, once. Ctrl-C reaches the whole terminal group; only the parent answers it."""
    global _fault
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    try:
        if initializer is not None:
            initializer(*initargs)
    except Exception as error:  # noqa: BLE001 - raised again by _call: here it would only break the pool without a word
        _fault = error


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    if _fault is not None:
        raise _fault
    return function(item)


def _end(pool: ProcessPoolExecutor) -> None:
    """Kills the workers; idle ones have nothing to lose. `ProcessPoolExecutor.kill_workers` is new in Python 3.14."""
    workers = list((pool._processes or {}).values())
    for worker in workers:
        worker.kill()
    pool.shutdown(wait=True, cancel_futures=True)
    for worker in workers:
        worker.join()
