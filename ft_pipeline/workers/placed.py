"""Runs each job where its placement says: a child process of this machine, or a Job of a cluster. Connects to none before it must."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ft_pipeline.errors import RecipeError, UserError, did_you_mean
from ft_pipeline.settings import NO_MLFLOW, Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.kubernetes.profile import PROFILES, Profile, queue_of
from ft_pipeline.workers.local import LocalWorker
from ft_pipeline.workers.messages import Listener


class Worker(Protocol):
    """Runs a job and gives what it published."""

    def run(self, job: Job, listener: Listener) -> Artifact:
        """See LocalWorker.run."""
        ...


def cancelled_by_hand() -> bool:
    """Without an orchestrator an interruption is a person's Ctrl-C."""
    return True


@dataclass(frozen=True)
class PlacedWorker:
    """The worker of a house."""

    settings: Settings
    store: Store
    is_cancelled: Callable[[], bool] = field(default=cancelled_by_hand)
    """Asked when this process is interrupted: False leaves a Job in its cluster, where the next run finds it."""

    def run(self, job: Job, listener: Listener) -> Artifact:
        """See LocalWorker.run and KubernetesWorker.run."""
        if job.placement.worker == "local":
            return LocalWorker(self.settings, self.store).run(job, listener)
        from ft_pipeline.workers.kubernetes.client import connect
        from ft_pipeline.workers.kubernetes.worker import KubernetesWorker

        profile = cluster_profile(self.settings)
        if job.environment == "export":
            profile = replace(profile, image=_export_image(job, self.settings))
        return KubernetesWorker(
            settings=self.settings, store=self.store, cluster=connect(profile.namespace), profile=profile,
            is_cancelled=self.is_cancelled,
        ).run(job, listener)  # fmt: skip


def _export_image(job: Job, settings: Settings) -> str:
    if settings.export_image is None:
        raise UserError(
            f"{job.name} needs another image than the one that trains",
            why="llmcompressor pins other releases of transformers and compressed-tensors.",
            cure="build one from requirements-export.lock and this package, and name it in FT_EXPORT_IMAGE",
        )
    return settings.export_image


def cluster_profile(settings: Settings) -> Profile:
    """The profile that the settings name, with what its pods need to reach the store. Raises UserError."""
    if settings.cluster not in PROFILES:
        raise UserError(f"FT_CLUSTER is {settings.cluster!r}: {did_you_mean(settings.cluster, PROFILES)}")
    if "://" not in settings.store_uri:
        raise UserError(
            f"FT_STORE is {settings.store_uri}, a folder of this machine",
            why="Pods of a cluster cannot reach it.",
            cure="set FT_STORE to s3://bucket/prefix",
        )
    found = PROFILES[settings.cluster]
    environment = {**found.environment, "FT_STORE": settings.store_uri}
    if settings.s3_endpoint:
        environment["FT_S3_ENDPOINT"] = settings.s3_endpoint
    if settings.mlflow_uri != NO_MLFLOW and settings.mlflow_uri.startswith("http"):
        environment["FT_MLFLOW"] = settings.mlflow_uri
    namespace, image = settings.namespace or found.namespace, settings.image or found.image
    queue = queue_of(settings.queue) if settings.queue else found.queue
    return replace(found, environment=environment, namespace=namespace, image=image, queue=queue)


def placement_of(document: Mapping[str, Any], **defaults: Any) -> Placement:
    """The placement that a file says: `{kind: kubernetes, gpu: h100-80gb, nodes: 2, spot: true}`. `kind` is the worker.

    A GPU that is named is meant to be used: device is cuda. Raises RecipeError for unknown keys and values.
    """
    from pydantic import TypeAdapter, ValidationError

    values = {**defaults, **document}
    if "kind" in values:
        values["worker"] = values.pop("kind")
    if values.get("gpu"):
        values.setdefault("device", "cuda")
    try:
        return TypeAdapter(Placement).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        known = ["kind", *Placement.__dataclass_fields__]
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "placement"
        near = "" if name in known else f": {did_you_mean(name, known)}"
        raise RecipeError(f"placement.{name}: {first['msg']}{near}", cure="mend the placement file") from error


def read_placement(path: Path, **defaults: Any) -> Placement:
    """The placement in a YAML file. Raises UserError, RecipeError."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"FT_PLACEMENT names {path}: {error}", cure="point it at a YAML file, or unset it") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path} holds no mapping", cure="write `kind: kubernetes` and what else it should say")
    return placement_of(document.get("placement", document), **defaults)
