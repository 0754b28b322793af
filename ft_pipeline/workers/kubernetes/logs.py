"""The log of index 0 on this side: log.txt grows while the pod runs, and outlives it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.workers.kubernetes.client import ApiError, Cluster
from ft_pipeline.workers.kubernetes.verdict import INDEX

LAST_WORDS_SECONDS = 2.0
"""At the end of a run the rest of the log is waited for so long."""


@dataclass
class Logs:
    """Threads that copy, one for each pod of index 0 in turn."""

    cluster: Cluster
    path: Path
    _since: dict[str, str] = field(default_factory=dict)
    """Pod -> time of its last line."""
    _whole: set[str] = field(default_factory=set)
    _threads: dict[str, threading.Thread] = field(default_factory=dict)

    def follow(self, pods: Iterable[dict[str, Any]]) -> None:
        """Starts to copy what can be copied and is not being copied."""
        for pod in pods:
            name, notes = pod["metadata"]["name"], pod["metadata"].get("annotations") or {}
            begun = pod["status"].get("phase") in ("Running", "Succeeded", "Failed")
            going = name in self._threads and self._threads[name].is_alive()
            if begun and notes.get(INDEX) == "0" and name not in self._whole and not going:
                self._threads[name] = threading.Thread(target=self._copy, args=(name,), daemon=True)
                self._threads[name].start()

    def close(self) -> None:
        """Waits a little for the last words."""
        for thread in self._threads.values():
            thread.join(LAST_WORDS_SECONDS)

    def _copy(self, pod: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        since = self._since.get(pod, "")
        try:
            with self.path.open("ab") as file:
                for line in self.cluster.log(pod, since=since or None):
                    stamp, _, text = line.partition(b" ")
                    if stamp.decode() <= since:
                        continue  # sinceTime counts in whole seconds: a line may come again
                    self._since[pod] = stamp.decode()
                    file.write(text + b"\n")
                    file.flush()
            self._whole.add(pod)
        except ApiError as error:
            if error.status in (400, 404):  # not started yet, or already gone
                return
            with self.path.open("ab") as file:
                file.write(f"(the log of {pod} broke off: {error.message})\n".encode())
