"""Follows one Job to its end: passes its messages on, says what it waits for, writes down each attempt, and gives up in time."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ft_pipeline.store.artifacts import Store
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.kubernetes.attaching import Attached, Pace
from ft_pipeline.workers.kubernetes.carried import Inbox, carried_pieces, carried_step
from ft_pipeline.workers.kubernetes.client import ApiError, Cluster
from ft_pipeline.workers.kubernetes.logs import Logs
from ft_pipeline.workers.kubernetes.manifest import shape
from ft_pipeline.workers.kubernetes.verdict import (
    PodEnd,
    State,
    Verdict,
    endings,
    is_placed,
    replaced,
    verdict_of,
    waiting_for,
)
from ft_pipeline.workers.kubernetes.watching import Jobs
from ft_pipeline.workers.messages import Listener, Message, log
from ft_pipeline.workers.outcome import Outcome

MOST_WITHOUT_PROGRESS = 5
"""Interruptions in a row without a newer checkpoint. 75 is ignored by the cluster without bound, a wrong address says 75 for ever."""
ATTEMPTS = "attempts.jsonl"


class End(StrEnum):
    """Why a Job is no longer followed."""

    OVER = "over"
    """Its conditions say how."""
    GONE = "gone"
    """Somebody deleted it."""
    NO_NODES = "no nodes"
    """Spot nodes did not come in the time that the placement allows."""
    NO_PROGRESS = "no progress"
    ATTEMPTS = "attempts"
    """As many as the placement allows."""


@dataclass(kw_only=True)
class Following:
    """One Job and what is known about it."""

    job: Job
    attached: Attached
    cluster: Cluster
    store: Store
    listener: Listener
    pace: Pace
    queued: bool = False
    """Whether the cluster has Kueue."""
    verdict: Verdict = field(default_factory=lambda: Verdict(state=State.RUNNING))
    ends: dict[str, PodEnd] = field(default_factory=dict)
    """By pod, oldest first."""
    last_error: str = ""
    """What the run itself said last about its end."""
    _seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Pods of the last look."""
    _new: list[PodEnd] = field(default_factory=list)
    """Ended and not written down yet."""
    _others: set[str] = field(default_factory=set)
    """Pods of the same attempt that lived when the first of these had ended."""
    _told: str = ""
    _attempts: int = 0
    _without_progress: int = 0
    _step: int = 0
    """Of the newest checkpoint."""
    _pieces: int = 0
    """Of work without checkpoints: files that the store has."""
    _done: float = 0
    """Steps that this attempt has told of."""
    _unplaced_since: float = field(default_factory=time.monotonic)
    _looked_at: float = 0
    _version: str = ""
    """Of the Job at the last look."""

    def until_it_ends(self, jobs: Jobs) -> End:
        """Returns when the Job is over, gone, or given up."""
        inbox = Inbox(self.store, self.job.spec.fingerprint, self.attached.generation)
        logs = Logs(self.cluster, self.job.folder / "log.txt")
        self._step, seen = carried_step(self.store, self.job.spec.fingerprint), 0
        self._pieces = carried_pieces(self.store, self.job.spec.fingerprint)
        while True:
            self._pass_on(inbox)
            if (end := self._end_now(jobs, logs)) is not None:
                self._pass_on(inbox)
                logs.close()
                return end
            seen = jobs.wait(seen, self.pace.tick)

    def _end_now(self, jobs: Jobs, logs: Logs) -> End | None:
        if jobs.trouble:
            self._say(f"the API server does not answer ({jobs.trouble}): the Job goes on without us")
            return None
        manifest = jobs.get(self.attached.name)
        if manifest is None or manifest["metadata"]["uid"] != self.attached.uid:
            return self._confirmed_gone()
        self.verdict = verdict_of(manifest)
        over = self.verdict.state is not State.RUNNING
        version = manifest["metadata"]["resourceVersion"]
        if over or version != self._version or time.monotonic() - self._looked_at > self.pace.pods:
            try:
                self._look(manifest, logs)
            except ApiError as error:
                self._say(f"the API server does not answer ({error.message}): the Job goes on without us")
                return None
            self._version = version
        return End.OVER if over else self._given_up(manifest)

    def _confirmed_gone(self) -> End | None:
        """The watch may lag behind: the server is asked."""
        try:
            found = self.cluster.job(self.attached.name)
        except ApiError as error:
            self._say(f"the API server does not answer ({error.message})")
            return None
        return End.GONE if found is None or found["metadata"]["uid"] != self.attached.uid else None

    def _look(self, manifest: dict[str, Any], logs: Logs) -> None:
        self._looked_at = time.monotonic()
        pods = self.cluster.pods(self.attached.name)
        logs.follow(pods)
        there = {pod["metadata"]["name"]: pod for pod in pods}
        gone = [pod for name, pod in self._seen.items() if name not in there]
        new = [end for end in endings(pods, gone=gone) if end.pod not in self.ends]
        self.ends |= {end.pod: end for end in new}
        alive = {name for name, pod in there.items() if pod["status"].get("phase") in ("Pending", "Running", None)}
        if new and not self._new:
            self._others = alive & self._seen.keys()
        self._new += new
        self._seen = there
        # the leader may still be saving: what is lost is known when all pods of the attempt have ended
        if self._new and (self.verdict.state is not State.RUNNING or not self._others & alive):
            self._write_down(self._new)
            self._new = []
        # a pod can come and go between two looks
        self._attempts = max(self._attempts, replaced(pods))
        self._say(self._waits_for(manifest, pods))

    def _waits_for(self, manifest: dict[str, Any], pods: list[dict[str, Any]]) -> str:
        reason = waiting_for(manifest, pods)
        if manifest["spec"].get("suspend") and self.queued:
            said = [c["message"] for w in self.cluster.workloads(self.attached.uid) for c in _not_reserved(w)]
            return f"queued: {said[0]}" if said else reason
        if reason or is_placed(manifest):
            return reason
        pending = [p["metadata"]["name"] for p in pods if p["status"].get("phase") in ("Pending", None)]
        return waiting_for(
            manifest, pods, [e for name in (self.attached.name, *pending[:1]) for e in self.cluster.events(name)]
        )

    def _given_up(self, manifest: dict[str, Any]) -> End | None:
        place = shape(self.job, self.job.placement)
        now = time.monotonic()
        if is_placed(manifest):
            self._unplaced_since = now
        if self._attempts >= place.most_attempts:
            return End.ATTEMPTS
        if self._without_progress >= MOST_WITHOUT_PROGRESS:
            return End.NO_PROGRESS
        waited = now - self._unplaced_since > place.on_demand_after_minutes * 60
        return End.NO_NODES if self.attached.market == "spot" and waited else None

    def _write_down(self, new: list[PodEnd]) -> None:
        """One line for each pod that ended before its time, with what it cost."""
        place, before = shape(self.job, self.job.placement), self._attempts
        per_index = [sum(end.index == index for end in self.ends.values()) for index in range(place.nodes)]
        self._attempts = max(per_index)
        step = carried_step(self.store, self.job.spec.fingerprint)
        pieces = carried_pieces(self.store, self.job.spec.fingerprint)
        lost = max(0.0, self._done - step)
        if self._attempts > before:
            went_on = step > self._step or pieces > self._pieces
            self._without_progress = 0 if went_on else self._without_progress + 1
            self._step, self._done, self._pieces = step, 0, pieces
        self.job.folder.mkdir(parents=True, exist_ok=True)
        with (self.job.folder / ATTEMPTS).open("a", encoding="utf-8") as file:
            for end in new:
                facts = {
                    **asdict(end), "attempt": self._attempts, "market": self.attached.market, "gpu": place.gpu,
                    "gpu_seconds": end.seconds * place.processes if place.device == "cuda" else 0.0,
                    "resumes_from": step, "lost_steps": lost,
                }  # fmt: skip
                file.write(json.dumps(facts) + "\n")
                how = end.reason or (f"exit code {end.exit_code}" if end.exit_code is not None else "it vanished")
                text = f"pod {end.index} on {end.node or 'no node'} ended: {how}, {end.outcome}"
                if end.outcome is not Outcome.FAILED:
                    text += f"; the run goes on from step {step}, {lost:.0f} steps are made again"
                log(self.listener, text, **facts)

    def _pass_on(self, inbox: Inbox) -> None:
        for message in inbox.read():
            if message.kind == "error":
                self.last_error = message.text
            if message.kind == "progress" and message.unit == "step":
                self._done = max(self._done, message.done)
            self.listener(message)

    def _say(self, text: str) -> None:
        """Tells what is waited for, once."""
        if text != self._told:
            self._told = text
            self.listener(Message(kind="state", text=text or "running", facts={"job": self.attached.name}))


def _not_reserved(workload: dict[str, Any]) -> list[dict[str, Any]]:
    conditions = (workload.get("status") or {}).get("conditions") or ()
    return [c for c in conditions if c["type"] == "QuotaReserved" and c["status"] == "False" and c.get("message")]
