"""What a Job, its pods and its events say, in words and in verdicts. Pure: plain dictionaries in, values out.

A Job is over at Complete or Failed. SuccessCriteriaMet and FailureTarget come first, while pods still stop (measured).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from ft_pipeline.workers.outcome import Outcome, outcome_of

Document = Mapping[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = ("batch.kubernetes.io/job-index-failure-count", "batch.kubernetes.io/job-index-ignored-failure-count")
"""Annotations of a pod: how many before it at its index were counted as failed, and how many were not."""
WAITING_EVENTS = ("FailedCreate", "FailedScheduling", "FailedMount", "Failed", "BackOff", "ErrImagePull")


class State(StrEnum):
    """How far a Job is."""

    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    """For good: the cluster has spent its tries, or there was nothing to try again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The state of a Job, with the reason and message of its condition."""

    state: State
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PodEnd:
    """How a pod ended."""

    pod: str
    index: int
    node: str
    exit_code: int | None
    """None: nobody saw it end, as after a power loss."""
    outcome: Outcome
    reason: str
    """`EvictionByEvictionAPI`, `OOMKilled`, or what the container said."""
    message: str
    seconds: float
    """From start to end; 0 when it never ran."""


def verdict_of(job: Document) -> Verdict:
    """What the conditions of a Job say."""
    held = {c["type"]: c for c in _status(job).get("conditions") or () if c.get("status") == "True"}
    for kind, state in (("Failed", State.FAILED), ("Complete", State.COMPLETE)):
        if kind in held:
            return Verdict(state=state, reason=held[kind].get("reason", ""), message=held[kind].get("message", ""))
    return Verdict(state=State.RUNNING)


def is_placed(job: Document) -> bool:
    """True when every pod of the gang runs, or has ended well."""
    status = _status(job)
    return int(status.get("ready") or 0) + int(status.get("succeeded") or 0) >= int(job["spec"].get("parallelism", 1))


def waiting_for(job: Document, pods: Iterable[Document], events: Iterable[Document] = ()) -> str:
    """Why the gang does not run, in the cluster's own words; empty when nothing is known or it runs."""
    if is_placed(job):
        return ""
    if job["spec"].get("suspend"):
        return "queued: the Job is suspended until its queue admits it"
    pods = [pod for pod in pods if pod["status"].get("phase") in ("Pending", None)]
    said = [_unschedulable(pod) or _stuck(pod) for pod in pods]
    told = next((text for text in said if text), "")
    return told or _told_by(events, [job["metadata"]["name"], *(pod["metadata"]["name"] for pod in pods)])


def endings(pods: Iterable[Document], *, gone: Iterable[Document] = ()) -> list[PodEnd]:
    """Of the pods that have ended otherwise than well, oldest first. `gone`: pods as they were last seen, that are no longer there."""
    ended = [pod for pod in pods if pod["status"].get("phase") == "Failed"]
    ended += [pod for pod in gone if pod["status"].get("phase") != "Succeeded"]
    return [_ending(pod) for pod in sorted(ended, key=lambda pod: pod["metadata"]["creationTimestamp"])]


def replaced(pods: Iterable[Document]) -> int:
    """How often the pod of some index was replaced, the most of all indexes: what the cluster itself counts."""
    notes = [pod["metadata"].get("annotations") or {} for pod in pods]
    return max((sum(int(note.get(key, 0)) for key in FAILURES) for note in notes), default=0)


def culprit(ends: Sequence[PodEnd]) -> PodEnd | None:
    """The pod that explains the failure: one that failed for good, else the last that crashed or whose disk failed, else the last."""
    for outcomes in ((Outcome.FAILED,), (Outcome.STORAGE,), (Outcome.CRASHED,)):
        found = [end for end in ends if end.outcome in outcomes]
        if found:
            return found[-1]
    return ends[-1] if ends else None


def _status(document: Document) -> Document:
    return document.get("status") or {}


def _unschedulable(pod: Document) -> str:
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{_reason(condition.get('reason'))}{condition.get('message') or 'no node yet'}"
    return ""


def _reason(said: str | None) -> str:
    return f"{said}: " if said else ""


def _stuck(pod: Document) -> str:
    """Of a pod that has a node: an image that cannot be pulled, a volume that is missing."""
    for status in pod["status"].get("containerStatuses") or ():
        waiting = status.get("state", {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""


def _told_by(events: Iterable[Document], names: Sequence[str]) -> str:
    """The newest warning about one of the named objects."""
    about = [
        event
        for event in events
        if event.get("reason") in WAITING_EVENTS and event.get("involvedObject", {}).get("name") in names
    ]
    if not about:
        return ""
    newest = max(about, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return f"{newest['reason']}: {newest.get('message', '')}"


def _ending(pod: Document) -> PodEnd:
    status, about = pod["status"], pod["metadata"]
    container = next(iter(status.get("containerStatuses") or ()), {})
    end = container.get("state", {}).get("terminated") or {}
    disrupted = [c for c in status.get("conditions") or () if c["type"] == "DisruptionTarget" and c["status"] == "True"]
    code = end.get("exitCode")
    outcome = Outcome.CRASHED if code is None else outcome_of(int(code))
    stopped = disrupted or (code is None and about.get("deletionTimestamp"))
    if stopped and outcome is Outcome.CRASHED:
        outcome = Outcome.PREEMPTED
    reasons = [c.get("reason", "") for c in disrupted] + [end.get("reason", ""), status.get("reason", "")]
    return PodEnd(
        pod=about["name"],
        index=int((about.get("annotations") or {}).get(INDEX, 0)),
        node=pod["spec"].get("nodeName", ""),
        exit_code=None if code is None else int(code),
        outcome=outcome,
        reason=next((reason for reason in reasons if reason), ""),
        message=(end.get("message") or status.get("message") or "").strip(),
        seconds=_seconds(end.get("startedAt") or status.get("startTime"), end.get("finishedAt")),
    )


def _seconds(start: str | None, end: str | None) -> float:
    if not start or not end:
        return 0.0
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
