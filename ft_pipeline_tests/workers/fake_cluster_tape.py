"""A cluster that plays a recorded stream: what a real Kubernetes v1.36.2 said about a two-index Job, its pods and events.

streams/*.jsonl: one event a line, {t: seconds, kind, type, object}, in order of resourceVersion, objects cut down to what a client
reads. The POST of a Job starts the tape, under the name of that Job.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ft_pipeline_tests.workers.fake_cluster import NAMESPACE, FakeCluster, Object

STREAMS = Path(__file__).parent / "streams"
PLURALS = {"Job": "jobs", "Pod": "pods", "Event": "events"}


class TapeCluster(FakeCluster):
    """`stream` played `speed` times as fast; `begun` is called when it begins."""

    def __init__(self, folder: Path, stream: str, *, speed: float, begun: Callable[[], Any]) -> None:
        super().__init__(folder, nodes=[], speed=speed)
        self.stream, self.begun = stream, begun
        self.rows = [json.loads(line) for line in (STREAMS / f"{stream}.jsonl").read_text().splitlines()]
        self.deleted = False

    def _loop(self, step: Callable[[], None]) -> None:
        """No controllers: the tape has what they did."""

    def create(self, plural: str, body: Object) -> Object:
        if plural != "jobs":
            return super().create(plural, body)
        self.begun()
        self.posted = body
        with self.changed:
            self.made["jobs"] += 1
            first = next(i for i, row in enumerate(self.rows) if row["kind"] == "Job")
            self._play(self.rows[first])
            threading.Thread(target=self._run, args=(first + 1,), daemon=True).start()
            return self.objects["jobs", body["metadata"]["name"]]

    def remove(self, plural: str, name: str) -> None:
        """Deleting the Job ends the tape, and what belongs to it goes."""
        if plural == "jobs":
            self.deleted = True
            for kind, other in list(self.objects):
                if kind != "jobs":
                    super().remove(kind, other)
        super().remove(plural, name)

    def stop_pod(self, pod: Object, *, why: str | None = None) -> None:
        """Tape pods have no process."""

    def touch(self, plural: str, found: Object) -> None:
        """A deletion by the client ends the tape at once."""
        if plural == "jobs" and found["metadata"].get("deletionTimestamp"):
            return self.remove("jobs", found["metadata"]["name"])
        return super().touch(plural, found)

    def _run(self, start: int) -> None:
        begin, zero = time.monotonic(), self.rows[start - 1]["t"]
        for row in self.rows[start:]:
            time.sleep(max(0.0, begin + (row["t"] - zero) / self.speed - time.monotonic()))
            with self.changed:
                if self.deleted:
                    return
                self._play(row)

    def _play(self, row: dict[str, Any]) -> None:
        ours = self.posted["metadata"]["name"]
        text = json.dumps(row["object"]).replace(f'"{self.stream}"', f'"{ours}"').replace(f"{self.stream}-", f"{ours}-")
        found, plural = json.loads(text), PLURALS[row["kind"]]
        about = found["metadata"]
        about["namespace"] = NAMESPACE
        if row["kind"] == "Job":
            about["annotations"] = self.posted["metadata"]["annotations"]
            about["labels"] = self.posted["metadata"].get("labels", {})
        if row["type"] == "DELETED":
            self.remove(plural, about["name"])
            return
        self.objects[plural, about["name"]] = found
        self.record(plural, row["type"], found)
