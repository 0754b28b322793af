"""Makes the objects of a run, or finds the ones that an earlier orchestrator made: whoever comes second makes nothing.

The Job first, then Service and ConfigMap with an ownerReference to it: its pods wait for the ConfigMap, and one delete removes all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import StorageError, UserError
from ft_pipeline.workers.kubernetes.client import ApiError, Cluster
from ft_pipeline.workers.kubernetes.manifest import GENERATION, MARKET

Manifest = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds between looks and tries. Tests set it lower."""

    tick: float = 1.0
    pods: float = 5.0
    first_retry: float = 1.0
    longest_retry: float = 30.0
    patience: float = 600.0
    """How long an API server or webhook that is down is waited for before a Job exists. Afterwards: as long as the Job runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attached:
    """A Job in the cluster that this orchestrator follows."""

    name: str
    uid: str
    generation: str
    market: str
    created: bool
    """False: somebody made it before."""


def attach(cluster: Cluster, objects: list[Manifest], tell: Tell, *, pace: Pace) -> Attached:
    """The Job of these objects, made or found. Waits for one of this name that is being deleted.

    Raises RecipeError or UserError for what the server refuses, StorageError when it does not answer for `pace.patience` seconds.
    """
    name, until, pause, told = objects[0]["metadata"]["name"], time.monotonic() + pace.patience, pace.first_retry, ""
    while True:
        try:
            if attached := _attached_now(cluster, objects):
                return attached
            reason = f"{name} is being deleted: waiting until its pods have ended"
        except ApiError as error:
            if not error.passes:
                raise error.told(f"making {name}") from error
            reason = f"the cluster does not take {name} yet: {error.message}"
            if time.monotonic() > until:
                raise StorageError(
                    reason, why=f"It was tried for {pace.patience:.0f} s.", cure="look at the API server or its webhook, then run again"
                ) from error  # fmt: skip
        if reason != told:
            tell(reason)
            told = reason
        time.sleep(pause)
        pause = min(pause * 2, pace.longest_retry)


def detach(cluster: Cluster, attached: Attached, tell: Tell, *, pace: Pace) -> None:
    """Deletes the Job with all that it owns; tries for a while when the API server does not answer, and then says so."""
    until, pause = time.monotonic() + min(30.0, pace.patience), pace.first_retry
    while True:
        try:
            return cluster.delete_job(attached.name, attached.uid)
        except ApiError as error:
            if not error.passes or time.monotonic() > until:
                tell(
                    f"Job {attached.name} could not be deleted ({error.message}): it goes by itself a day after its end, or by "
                    f"`kubectl -n {cluster.namespace} delete job {attached.name} --cascade=foreground`"
                )
                return None
        time.sleep(pause)
        pause = min(pause * 2, pace.longest_retry)


def _attached_now(cluster: Cluster, objects: list[Manifest]) -> Attached | None:
    """None while an older one of the name is being deleted."""
    wanted, *children = objects
    name = wanted["metadata"]["name"]
    found, created = cluster.job(name), False
    if found is None:
        try:
            found, created = cluster.create(wanted), True
        except ApiError as error:
            if error.status != 409:
                raise
            return None  # somebody was faster, or the name is still being deleted: the next look tells
    if found["metadata"].get("deletionTimestamp"):
        return None
    for child in children:
        if not _owned_by(cluster, child, found):
            return None
    notes = found["metadata"].get("annotations") or {}
    return Attached(
        name=name, uid=found["metadata"]["uid"], generation=notes.get(GENERATION, ""),
        market=notes.get(MARKET, "on-demand"), created=created,
    )  # fmt: skip


def _owned_by(cluster: Cluster, child: Manifest, job: Manifest) -> bool:
    """True when the Service or ConfigMap is there and belongs to this Job; False while that of an older Job is still going."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
    try:
        cluster.create({**child, "metadata": {**child["metadata"], "ownerReferences": [owner]}})
        return True
    except ApiError as error:
        if error.status != 409:
            raise
    owners = cluster.owned(child["kind"], name)
    if owners and uid not in owners and cluster.job(name) is None:
        raise UserError(
            f"{child['kind']} {name} belongs to another object", cure=f"delete {child['kind'].lower()} {name}"
        )
    return uid in owners
