"""A team of processes, on one machine or many, that share a folder: each does its part of every stage and reads what the others did.

All members run the same program over the same input (an Indexed Job on Kubernetes: member = completion index). A result is a file
that appears as a whole, so that a member that was killed and started again goes on behind what it had finished. This is how curate
scales to hundreds of millions of rows: blocks are examined, bands searched and pairs compared in parts; what is global is small.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import FtError, UserError
from ft_pipeline.store.files import write_atomic
from ft_pipeline.workers.pool import Pool

POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """One member of a team."""

    member: int
    """From 0."""
    size: int
    folder: Path
    """Shared by all members, on a file system where a renamed file is seen whole (NFS, EFS, Filestore, a local disk)."""
    patience_seconds: float = 3600
    """How long the others are waited for without any new result."""

    def __post_init__(self) -> None:
        if not 0 <= self.member < self.size:
            raise UserError(f"member {self.member} of a team of {self.size}", cure="members count from 0")

    @property
    def is_here(self) -> bool:
        """Each member does its tasks in its own process."""
        return True

    @property
    def leads(self) -> bool:
        """Member 0 writes the outcome."""
        return self.member == 0

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        stage: str,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> Iterator[Any]:
        """Results of all members in order of the items; the same for each member. Raises FtError when a member does not answer."""
        if initializer is not None:
            initializer(*initargs)
        place = self.folder / stage.replace(" ", "-")
        count = 0
        for number, item in enumerate(items):
            count += 1
            target = place / f"{number:07}"
            if number % self.size == self.member and not target.exists():
                write_atomic(target, pickle.dumps(function(item)))
        for number in range(count):
            yield self._awaited(place / f"{number:07}", member=number % self.size)

    def alone(self) -> Pool:
        """Each member does the whole stage by itself: it is cheaper than to wait."""
        return Pool(1)

    def _awaited(self, path: Path, *, member: int) -> Any:
        until = time.monotonic() + self.patience_seconds
        while not path.exists():
            if time.monotonic() > until:
                raise FtError(
                    f"member {member} of the team has not written {path.name} of stage {path.parent.name} in {self.patience_seconds:.0f} s",
                    why="Every member needs the results of all.",
                    cure="start the member again: it goes on behind what it finished; then start this one again",
                )
            time.sleep(POLL_SECONDS)
        return pickle.loads(path.read_bytes())  # noqa: S301 - our own files in a folder that only the team writes
