"""The run of the issue, `{kind: kubernetes, gpu: h100-80gb, nodes: 2, spot: true}`, as manifests that tests may break."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from ft_pipeline import recipe
from ft_pipeline.settings import PACKAGE, load
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.kubernetes.manifest import manifests
from ft_pipeline.workers.kubernetes.profile import PROFILES, Profile
from ft_pipeline.workers.placed import placement_of

ISSUE = {"kind": "kubernetes", "gpu": "h100-80gb", "nodes": 2, "spot": True}
IMAGE = "registry.example/ft-pipeline-worker@sha256:" + "ab" * 32


def profile_of(name: str = "eks-karpenter", **more: Any) -> Profile:
    return replace(PROFILES[name], image=IMAGE, environment={"FT_STORE": "s3://acme-ft/store"}, **more)


def job_of(placement: Placement) -> Job:
    """Of a packaged recipe whose shards are not made."""
    from ft_pipeline.cli.k8s import _job

    found = recipe.read(Path(PACKAGE) / "recipes" / "llama31-8b-instruct-lora.yaml")
    return _job(load(), found, placement)[0]


def run_of_issue(name: str = "eks-karpenter", **more: Any) -> list[dict[str, Any]]:
    placement = placement_of({**ISSUE, **more})
    return copy.deepcopy(manifests(job_of(placement), placement, profile_of(name)))
