"""The encode job of a recipe: what the door hands to a worker."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ft_pipeline.encode.artifact import base_digests, shards_spec
from ft_pipeline.recipe import Recipe, identity
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.manifest import Ref
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.job import Job, Placement


def encode_job(recipe: Recipe, *, curated: Ref, base: Artifact, work: Path, placement: Placement) -> Job:
    """The job that makes the `packed_shards` of a recipe. The base is a fact, not a parent: see `shards_spec`."""
    spec = shards_spec(recipe.encode, curated=curated, base_digests=base_digests(base))
    return Job(
        name=f"encode {recipe.key}",
        module="ft_pipeline.encode.main",
        spec=spec,
        section=identity(recipe.encode),
        folder=run_folder(work, spec.fingerprint),
        placement=placement,
        facts={"base": asdict(base.ref)},
    )
