"""Reads of a cluster that running a job does not need: any object, nodes, what an account may do. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import UserError
from ft_pipeline.workers.kubernetes.client import ApiError, Cluster

PLURALS: Mapping[str, str] = {
    "NetworkPolicy": "networkpolicies", "PriorityClass": "priorityclasses", "WorkloadPriorityClass": "workloadpriorityclasses",
    "StorageClass": "storageclasses", "EC2NodeClass": "ec2nodeclasses", "Ingress": "ingresses",
}  # fmt: skip
WITHOUT_NAMESPACE = frozenset({
    "Namespace", "Node", "PriorityClass", "ClusterRole", "ClusterRoleBinding", "ResourceFlavor", "ClusterQueue",
    "WorkloadPriorityClass", "NodePool", "EC2NodeClass",
})  # fmt: skip


@dataclass(frozen=True)
class Looking(Cluster):
    """A cluster that is only looked at."""

    def found(self, path: str, **query: str) -> dict[str, Any] | None:
        """What is at a path of the API; None for 404. Raises ApiError."""
        try:
            return self._json("GET", path, query=query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def object(self, made: Mapping[str, Any]) -> dict[str, Any] | None:
        """The object of this kind and name as the cluster has it."""
        return self.found(path_of(made, self.namespace))

    def may(self, verb: str, group: str, resource: str, *, subresource: str = "") -> bool:
        """Whether the account that asks may do this in the namespace."""
        asked = {
            "namespace": self.namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
        }  # fmt: skip
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = self._json("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        return bool(answer.get("status", {}).get("allowed"))


def path_of(made: Mapping[str, Any], namespace: str) -> str:
    """Where an object lies in the API. `namespace`: of one that says none."""
    kind, version, about = str(made["kind"]), str(made["apiVersion"]), made["metadata"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    plural = PLURALS.get(kind, kind.lower() + "s")
    if kind in WITHOUT_NAMESPACE:
        return f"{root}/{plural}/{about['name']}"
    return f"{root}/namespaces/{about.get('namespace') or namespace}/{plural}/{about['name']}"


def told(error: ApiError, action: str) -> UserError:
    """For a person: what could not be looked at, and how to see it."""
    if error.status == 0:
        return UserError(
            f"{action}: {error.message}", cure="check KUBECONFIG, its context, and the way to the API server"
        )
    return error.told(action)
