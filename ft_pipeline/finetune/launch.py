"""The training job of a recipe: what the door hands to a worker."""

from __future__ import annotations

from pathlib import Path

from ft_pipeline.finetune.artifact import checkpoints_spec, refuse_misfit, refuse_unsupported
from ft_pipeline.recipe import Recipe, identity, recipe_sha256
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.job import Job, Placement


def train_job(recipe: Recipe, *, shards: Artifact, base: Artifact, work: Path, placement: Placement) -> Job:
    """The job that makes the `checkpoints` of a recipe. Raises RecipeError for what cannot be trained."""
    refuse_unsupported(recipe)
    refuse_misfit(recipe.finetune, shards=shards, base=base)
    spec = checkpoints_spec(recipe.finetune, shards=shards.ref, base=base.ref)
    return Job(
        name=f"finetune {recipe.key}",
        module="ft_pipeline.finetune.main",
        spec=spec,
        section=identity(recipe.finetune),
        folder=run_folder(work, spec.fingerprint),
        placement=placement,
        facts={"model_line": recipe.key, "recipe_sha256": recipe_sha256(recipe)},
    )
