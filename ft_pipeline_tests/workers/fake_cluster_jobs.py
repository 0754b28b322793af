"""The Job controller of the fake cluster: Indexed Jobs with podFailurePolicy, backoffLimitPerIndex, podReplacementPolicy Failed,
suspend and deadline; conditions in the recorded order: FailureTarget before Failed, SuccessCriteriaMet before Complete.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline_tests.workers.fake_cluster import FakeCluster, Object, condition, has, now

PREFIX = "batch.kubernetes.io/"
INDEX, FAILURES, IGNORED = (f"{PREFIX}{n}" for n in ("job-completion-index", "job-index-failure-count", "job-index-ignored-failure-count"))  # fmt: skip
BACK_OFF, SYNC = 10.0, 1.0
"""Seconds of the real controller."""


@dataclass
class Book:
    """What the controller remembers of a Job."""

    counted: set[str] = field(default_factory=set)
    failures: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    ignored: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    ended_at: dict[int, float] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    failed: int = 0
    started_at: float | None = None
    target_at: float | None = None


class JobController:
    """Steps all Jobs."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.books: dict[str, Book] = defaultdict(Book)

    def step(self) -> None:
        for job in self.cluster.all("jobs"):
            before = copy.deepcopy((job["status"], job["metadata"].get("deletionTimestamp")))
            self._step(job)
            name = job["metadata"]["name"]
            if ("jobs", name) in self.cluster.objects and before != (
                job["status"],
                job["metadata"].get("deletionTimestamp"),
            ):
                self.cluster.touch("jobs", job)
        self._collect()

    def _step(self, job: Object) -> None:
        name, book = job["metadata"]["name"], self.books[job["metadata"]["uid"]]
        pods = [p for p in self.cluster.pods_of(name) if _owned(p, job)]
        if job["metadata"].get("deletionTimestamp"):
            for pod in pods:
                if not pod["metadata"].get("deletionTimestamp"):
                    self.cluster.stop_pod(pod)
            if not pods:
                self.cluster.remove("jobs", name)
            return
        if has(job, "Complete") or has(job, "Failed"):
            return
        for pod in pods:
            self._count(job, book, pod)
        active = [p for p in pods if p["status"].get("phase") in ("Pending", "Running")]
        going = [p for p in active if not p["metadata"].get("deletionTimestamp")]
        job["status"] |= {
            "active": len(going), "ready": sum(p["status"].get("phase") == "Running" for p in going),
            "terminating": len(active) - len(going), "failed": book.failed, "succeeded": len(book.done),
            "completedIndexes": ",".join(map(str, sorted(book.done))),
        }  # fmt: skip
        self._judge(job, book)
        if has(job, "FailureTarget"):
            self._fail(job, book, active)
        elif len(book.done) == job["spec"]["completions"]:
            self._complete(job, book)
        elif job["spec"].get("suspend"):
            self._suspend(job, book, going)
        else:
            self._fill(job, book, pods)

    def _count(self, job: Object, book: Book, pod: Object) -> None:
        uid, phase = pod["metadata"]["uid"], pod["status"].get("phase")
        if uid in book.counted or phase not in ("Succeeded", "Failed"):
            return
        book.counted.add(uid)
        index = int(pod["metadata"]["annotations"][INDEX])
        book.ended_at[index] = time.monotonic()
        if phase == "Succeeded":
            book.done.add(index)
            return
        if job["spec"].get("suspend") or has(job, "FailureTarget"):
            book.failed += has(job, "FailureTarget")
            return
        action, number, code = _rule(job, pod)
        if action == "Ignore":
            book.ignored[index] += 1
            return
        book.failed += 1
        book.failures[index] += 1
        if action == "FailJob":
            where = f"Container trainer for pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
            text = f"{where} failed with exit code {code} matching FailJob rule at index {number}"
            self._target(job, book, "PodFailurePolicy", text)

    def _judge(self, job: Object, book: Book) -> None:
        spec = job["spec"]
        failed = [i for i, n in book.failures.items() if n > spec.get("backoffLimitPerIndex", 6)]
        if failed:
            job["status"]["failedIndexes"] = ",".join(map(str, sorted(failed)))
            if len(failed) > spec.get("maxFailedIndexes", 0):
                self._target(
                    job,
                    book,
                    "MaxFailedIndexesExceeded",
                    "Job has exceeded the specified maximal number of failed indexes",
                )
        deadline = spec.get("activeDeadlineSeconds")
        if deadline and book.started_at and (time.monotonic() - book.started_at) * self.cluster.speed > deadline:
            self._target(job, book, "DeadlineExceeded", "Job was active longer than specified deadline")

    def _target(self, job: Object, book: Book, reason: str, message: str) -> None:
        if not has(job, "FailureTarget"):
            condition(job, "FailureTarget", reason=reason, message=message)
            book.target_at = time.monotonic()

    def _fail(self, job: Object, book: Book, active: list[Object]) -> None:
        for pod in active:
            if not pod["metadata"].get("deletionTimestamp"):
                self.cluster.stop_pod(pod)
        late = time.monotonic() - (book.target_at or 0) > SYNC / self.cluster.speed
        if not active and late:
            target = next(c for c in job["status"]["conditions"] if c["type"] == "FailureTarget")
            condition(job, "Failed", reason=target["reason"], message=target["message"])

    def _complete(self, job: Object, book: Book) -> None:
        text = {"reason": "CompletionsReached", "message": "Reached expected number of succeeded pods"}
        if not has(job, "SuccessCriteriaMet"):
            condition(job, "SuccessCriteriaMet", **text)
            book.target_at = time.monotonic()
        elif time.monotonic() - (book.target_at or 0) > SYNC / self.cluster.speed:
            condition(job, "Complete", **text)
            job["status"]["completionTime"] = now()

    def _suspend(self, job: Object, book: Book, going: list[Object]) -> None:
        for pod in going:
            self.cluster.stop_pod(pod)
        book.started_at = None
        job["status"].pop("startTime", None)
        if not has(job, "Suspended"):
            condition(job, "Suspended", reason="JobSuspended", message="Job suspended")

    def _fill(self, job: Object, book: Book, pods: list[Object]) -> None:
        if book.started_at is None:
            book.started_at = time.monotonic()
            job["status"]["startTime"] = now()
        taken = {
            int(p["metadata"]["annotations"][INDEX]) for p in pods if p["status"].get("phase") in ("Pending", "Running")
        }
        for index in range(job["spec"]["completions"]):
            if index in taken or index in book.done:
                continue
            tries = book.failures[index] + book.ignored[index]
            pause = min(600.0, BACK_OFF * 2 ** (tries - 1)) if tries else 0.0
            if tries and time.monotonic() - book.ended_at.get(index, 0) < pause / self.cluster.speed:
                continue
            self._make(job, book, index)

    def _make(self, job: Object, book: Book, index: int) -> None:
        cluster, name = self.cluster, job["metadata"]["name"]
        there = sum(p["status"].get("phase") in ("Pending", "Running") for p in cluster.all("pods"))
        if cluster.quota_pods is not None and there >= cluster.quota_pods:
            text = f'Error creating: pods "{name}-{index}-" is forbidden: exceeded quota: ft-gpu, requested: pods=1, used: pods={there}'
            cluster.event(job, "Job", "FailedCreate", text)
            return
        spec = copy.deepcopy(job["spec"]["template"]["spec"])
        spec["hostname"] = f"{name}-{index}"
        for container in spec["containers"]:
            container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "value": str(index)})
        notes = {INDEX: str(index), FAILURES: str(book.failures[index])}
        if book.ignored[index]:
            notes[IGNORED] = str(book.ignored[index])
        template = job["spec"]["template"]["metadata"]
        labels = {**(template.get("labels") or {}), f"{PREFIX}job-name": name, INDEX: str(index)}
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        about: dict[str, Any] = {
            "generateName": f"{name}-{index}-", "labels": labels, "annotations": {**(template.get("annotations") or {}), **notes},
            "ownerReferences": [owner], "finalizers": ["batch.kubernetes.io/job-tracking"],
        }  # fmt: skip
        cluster.create(
            "pods", {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec, "status": {"phase": "Pending"}}
        )

    def _collect(self) -> None:
        """Ended pods that were deleted go; what a Job owned goes with it."""
        cluster = self.cluster
        uids = {j["metadata"]["uid"] for j in cluster.all("jobs")}
        for plural in ("pods", "services", "configmaps"):
            for found in cluster.all(plural):
                about = found["metadata"]
                owners = [o["uid"] for o in about.get("ownerReferences") or ()]
                orphan = bool(owners) and not uids.intersection(owners)
                ended = plural == "pods" and found["status"].get("phase") in ("Succeeded", "Failed")
                if plural != "pods" and orphan:
                    cluster.remove(plural, about["name"])
                elif plural == "pods" and orphan and not ended and not about.get("deletionTimestamp"):
                    cluster.stop_pod(found)
                elif plural == "pods" and ended and (orphan or about.get("deletionTimestamp")):
                    counted = orphan or any(about["uid"] in self.books[uid].counted for uid in owners)
                    gone = next((j for j in cluster.all("jobs") if j["metadata"]["uid"] in owners), None)
                    if counted or (gone and gone["metadata"].get("deletionTimestamp")):
                        cluster.remove("pods", about["name"])


def _owned(pod: Object, job: Object) -> bool:
    return any(o["uid"] == job["metadata"]["uid"] for o in pod["metadata"].get("ownerReferences") or ())


def _rule(job: Object, pod: Object) -> tuple[str, int, int | None]:
    """Action, number of the rule and exit code by the podFailurePolicy; `Count` when no rule matches."""
    statuses = pod["status"].get("containerStatuses") or [{}]
    end = statuses[0].get("state", {}).get("terminated")
    code = end["exitCode"] if end else None
    for number, rule in enumerate((job["spec"].get("podFailurePolicy") or {"rules": ()})["rules"]):
        codes = rule.get("onExitCodes")
        if codes and code and (code in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"], number, code
        if any(has(pod, wanted["type"]) for wanted in rule.get("onPodConditions") or ()):
            return rule["action"], number, code
    return "Count", -1, code
