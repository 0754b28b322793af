"""The scheduler of the fake cluster, and what happens to pods of a node that lost power."""

from __future__ import annotations

import time
from typing import Any

from ft_pipeline_tests.workers.fake_cluster import FakeCluster, Node, Object, condition, has, now

TOLERATED, QUARANTINE = 30.0, 60.0
"""Seconds of a real cluster: until the taint manager deletes a pod, until pod GC fails it once its Node object is gone."""


class Scheduler:
    """Puts pods on nodes, and takes them from dead ones."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.lost: dict[str, float] = {}

    def step(self) -> None:
        for pod in self.cluster.all("pods"):
            node = pod["spec"].get("nodeName")
            if node is None and pod["status"].get("phase") == "Pending":
                self._place(pod)
            elif node and not self.cluster.nodes[node].alive and pod["status"].get("phase") in ("Pending", "Running"):
                self._lose(pod)

    def _place(self, pod: Object) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            pod["status"]["phase"] = "Failed"
            return self.cluster.touch("pods", pod)
        reasons = [self._refusal(node, pod) for node in self.cluster.nodes.values()]
        fit = [n for n, reason in zip(self.cluster.nodes.values(), reasons, strict=True) if reason is None]
        if fit:
            emptiest = min(fit, key=lambda n: len(self._on(n)))
            pod["spec"]["nodeName"] = emptiest.name
            condition(pod, "PodScheduled")
            return self.cluster.touch("pods", pod)
        why = ", ".join(sorted({str(reason) for reason in reasons}))
        text = f"0/{len(reasons)} nodes are available: {why}."
        if not any(c["type"] == "PodScheduled" and c["message"] == text for c in pod["status"].get("conditions", ())):
            condition(pod, "PodScheduled", status="False", reason="Unschedulable", message=text)
            self.cluster.event(pod, "Pod", "FailedScheduling", text)
            self.cluster.touch("pods", pod)
        return None

    def _refusal(self, node: Node, pod: Object) -> str | None:
        if not node.alive:
            return "1 node(s) had untolerated taint(s)"
        tolerated = {t["key"] for t in pod["spec"].get("tolerations", ())}
        if any(taint not in tolerated for taint in node.taints):
            return "1 node(s) had untolerated taint(s)"
        if not _wanted(node, pod):
            return "1 node(s) didn't match Pod's node affinity/selector"
        here = self._on(node)
        if len(here) >= node.pods or sum(map(_gpus, here)) + _gpus(pod) > node.gpus:
            return "1 Insufficient nvidia.com/gpu"
        return None

    def _on(self, node: Node) -> list[Object]:
        return [
            p
            for p in self.cluster.all("pods")
            if p["spec"].get("nodeName") == node.name and p["status"].get("phase") in ("Pending", "Running")
        ]

    def _lose(self, pod: Object) -> None:
        since = self.lost.setdefault(pod["metadata"]["uid"], time.monotonic())
        gone = (time.monotonic() - since) * self.cluster.speed
        if gone > TOLERATED and not has(pod, "DisruptionTarget"):
            self.cluster.stop_pod(pod, why="DeletionByTaintManager")
        if gone > TOLERATED + QUARANTINE:
            condition(pod, "DisruptionTarget", reason="DeletionByPodGC", message="PodGC: node no longer exists")
            pod["status"] |= {"phase": "Failed", "finishedAt": now()}
            self.cluster.touch("pods", pod)


def _gpus(pod: Object) -> int:
    return sum(
        int(c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in pod["spec"]["containers"]
    )


def _wanted(node: Node, pod: Object) -> bool:
    affinity: dict[str, Any] = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or []
    return not terms or any(all(_holds(node, e) for e in term["matchExpressions"]) for term in terms)


def _holds(node: Node, expression: dict[str, Any]) -> bool:
    value, values = node.labels.get(expression["key"]), expression.get("values", ())
    return (value in values) if expression["operator"] == "In" else (value not in values)
