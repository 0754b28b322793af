"""The training job of a recipe, and those that must have run before: what the door hands to a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ft_pipeline.encode.artifact import starting_adapter
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.artifact import START, checkpoints_spec, refuse_misfit, refuse_unsupported
from ft_pipeline.finetune.compatibility import refuse_incompatible
from ft_pipeline.finetune.policies import policy_parents
from ft_pipeline.finetune.requirements import parent_jobs
from ft_pipeline.recipe import Recipe, identity, recipe_sha256
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Ref
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.job import Job, Placement

NONE: Mapping[str, Ref] = MappingProxyType({})


def train_job(
    recipe: Recipe,
    *,
    shards: Artifact,
    base: Artifact,
    work: Path,
    placement: Placement,
    others: Mapping[str, Ref] = NONE,
) -> Job:
    """The job that makes the `checkpoints` of a recipe. Raises RecipeError for what cannot be trained.

    others: by role, what the jobs of requirements.parent_jobs have made.
    """
    refuse_unsupported(recipe)
    refuse_incompatible(recipe, placement)
    refuse_apart(recipe, placement)
    refuse_misfit(recipe.finetune, shards=shards, base=base)
    spec = checkpoints_spec(recipe.finetune, shards=shards.ref, base=base.ref, others=others)
    return Job(
        name=f"finetune {recipe.key}",
        module="ft_pipeline.finetune.main",
        spec=spec,
        section=identity(recipe.finetune),
        folder=run_folder(work, spec.fingerprint),
        placement=placement,
        facts={"model_line": recipe.key, "recipe_sha256": recipe_sha256(recipe)},
    )


def refuse_apart(recipe: Recipe, placement: Placement) -> None:
    """Raises RecipeError for what needs one disk under all processes, on several machines: only the first one's files are kept."""
    section = recipe.finetune
    asked = "early_stop_evaluations" if section.early_stop_evaluations is not None else ""
    asked = "reinforce" if section.reinforce is not None else asked
    if placement.nodes > 1 and asked:
        raise RecipeError(
            f"placement.nodes {placement.nodes} with finetune.{asked}",
            why="Every process reads the checkpoints or rollouts that others wrote, and machines share no disk.",
            cure="set nodes: 1 and more processes",
        )


def parents_made(
    recipe: Recipe, *, parts: Mapping[str, Artifact], run: Callable[[Job], Artifact], where: tuple[Path, Placement],
    find: Callable[[str], Artifact], shelf: tuple[Store, Path],
) -> dict[str, Artifact]:  # fmt: skip
    """By role, what the method reads besides shards and base, made by `run` (which finds what was made before) or found calibrated.

    parts: `shards` and `base`; where: the work folder and the placement; find: the artifact whose digest begins so; shelf:
    the store, and where `home://` is. Raises RecipeError before anything is computed.
    """
    refuse_unsupported(recipe)
    refuse_misfit(recipe.finetune, shards=parts["shards"], base=parts["base"])
    work, placement = where
    store, home = shelf
    found = policy_parents(recipe.finetune, base=parts["base"], store=store, home=home, find=find)
    if start := starting_adapter(recipe.finetune, base=parts["base"], find=find):
        found[START] = start
    jobs = parent_jobs(recipe.finetune, parts=parts, find=find, work=work, placement=placement)
    return {**found, **{role: run(job) for role, job in jobs.items()}}
