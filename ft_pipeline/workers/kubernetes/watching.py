"""The Jobs of a namespace as they are now: one list and one watch, however many runs look at them.

Whatever ends a watch (410, 504, a broken connection, the server's own timeout), the Jobs are listed again: a watch tells nothing that a
list does not. Bookmarks carry no state.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline.workers.kubernetes.client import ApiError, Cluster

Manifest = dict[str, Any]
LONGEST_PAUSE = 15.0
"""Seconds between tries when the API server does not answer."""
RELIST_PAUSE = 0.2


@dataclass
class Jobs:
    """Follows Jobs by their selectors. `with Jobs(...) as jobs:` or start and stop."""

    cluster: Cluster
    selectors: dict[str, str]
    """`{"fieldSelector": "metadata.name=..."}` or `{"labelSelector": ...}`."""
    trouble: str = ""
    """Why the API server cannot be read now; empty when it can."""
    listed: int = 0
    """How often the Jobs were listed."""
    _found: dict[str, Manifest] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _version: int = 0
    _over: bool = False
    _thread: threading.Thread | None = None

    def __enter__(self) -> Jobs:
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The thread ends with its watch: it is not waited for, it holds nothing."""
        self._over = True

    def get(self, name: str) -> Manifest | None:
        """The Job as it was last heard of; None when the server has none of this name."""
        with self._changed:
            return self._found.get(name)

    def wait(self, seen: int, seconds: float) -> int:
        """Until something changes after `seen` (an earlier answer, 0 at first), at most so long. The number of changes."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen, seconds)
            return self._version

    def read_since(self, count: int) -> bool:
        """True when the Jobs were listed more than `count` times: what was true before is known now."""
        return self.listed > count and not self.trouble

    def _follow(self) -> None:
        pause = 0.5
        while not self._over:
            try:
                version = self._list()
                pause = 0.5
                self._watch(version)
            except ApiError as error:
                if error.status in (410, 504):
                    time.sleep(RELIST_PAUSE)
                    continue
                self._tell(error.message)
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _list(self) -> str:
        found, version = self.cluster.jobs(**self.selectors)
        with self._changed:
            self._found = {job["metadata"]["name"]: job for job in found}
            self.listed += 1
            self.trouble = ""
            self._mark()
        return version

    def _watch(self, version: str) -> None:
        for kind, job in self.cluster.watch_jobs(version, **self.selectors):
            if self._over:
                return
            if kind == "BOOKMARK":
                continue
            with self._changed:
                if kind == "DELETED":
                    self._found.pop(job["metadata"]["name"], None)
                else:
                    self._found[job["metadata"]["name"]] = job
                self._mark()

    def _tell(self, trouble: str) -> None:
        with self._changed:
            self.trouble = trouble or "no answer"
            self._mark()

    def _mark(self) -> None:
        self._version += 1
        self._changed.notify_all()
