"""The nouns of the room: `checkpoints` (trained tensors with proof that the run is complete) and `adapter` (what is served)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ft_pipeline.encode.artifact import statistics
from ft_pipeline.errors import IntegrityError, RecipeError
from ft_pipeline.finetune.requirements import refuse_kind, refuse_sections
from ft_pipeline.recipe import STEP_SEPARATOR, STRICT, Finetune, Recipe, identity
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Manifest, Ref, Spec

CHECKPOINTS_KIND = "checkpoints"
ADAPTER_KIND = "adapter"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODEL_WEIGHTS, MODEL_CONFIG = "model.safetensors", "config.json"
LOSSES = "losses.jsonl"
"""One line a step: {step, loss, grad_norm, learning_rate, tokens, trained_tokens}; with validation_loss where one was measured."""
COMPLETION, RESUME = "completion.json", "resume.json"
START = "start"
"""Role of the adapter whose weights training starts from; without one it starts from the base."""
RUNTIME = (
    "adapters.py",
    "attention.py",
    "batches.py",
    "boundary.py",
    "certificate.py",
    "composing.py",
    "head.py",
    "loop.py",
    "main.py",
    "methods",
    "model.py",
    "noise.py",
    "policies.py",
    "quantize.py",
    "resume_certificate.py",
    "resume_proof.py",
    "retention.py",
    "rollout.py",
    "schedule.py",
    "score.py",
    "start.py",
    "teacher.py",
    "value_head.py",
)
"""The files that decide the bytes. Checkpoints, signals and metrics do not: a resumed run ends in the same bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The proof that a run was trained to its end: what `completion.json` holds."""

    __pydantic_config__ = STRICT
    planned_steps: int
    steps: int
    windows_consumed: int
    sampler_exhausted: bool
    """True when the windows that are left do not fill another step."""
    rows: int
    """Distinct rows that the model saw."""
    row_ids_sha256: str
    """Digest of the sorted ids of those rows."""
    trained_tokens: int
    """Over all epochs."""
    validation_loss: float | None
    """Mean negative log-likelihood per trained token in nats, None without validation rows."""
    validation_loss_before: float | None
    boundary: dict[str, Any]
    """What the packed-against-single check found before the first step."""
    stopped_early: bool = False
    """The validation loss stopped falling (recipe: early_stop_evaluations)."""
    published_step: int | None = None
    """After which the weights are those of the artifact: the last one, or the best one of an early stop."""


def checkpoints_spec(
    section: Finetune, *, shards: Ref, base: Ref, others: Mapping[str, Ref] = MappingProxyType({})
) -> Spec:
    """What trained tensors are made of. `others`: what the method reads besides, by role (requirements.parent_specs)."""
    here = Path(__file__).parent
    return Spec(
        kind=CHECKPOINTS_KIND,
        config=identity(section),
        parents={"shards": shards, "base": base, **others},
        code=code_digest(*(here / name for name in RUNTIME)),
    )


def adapter_spec(base_uri: str, *, checkpoints: Ref, shards: Ref, base: Ref, start: Ref | None = None) -> Spec:
    """What a served adapter is made of: the tensors, the base model's tokenizer and template, the base model's name.

    start: the adapter whose weights training started from. A direct parent, because what it saw this one has seen too (takedown).
    """
    return Spec(
        kind=ADAPTER_KIND,
        config={"base_name": base_name(base_uri)},
        parents={"checkpoints": checkpoints, "base": base, "shards": shards, **({"start": start} if start else {})},
        code=code_digest(Path(__file__).parent / "adapter.py"),
    )


def shards_seen(adapter: Manifest, adapters: Mapping[str, Manifest]) -> set[str]:
    """Digests of the shards that an adapter was trained on, and of those of the adapters it started from. adapters: by digest, all there are."""
    found = {adapter.parents["shards"].digest} if "shards" in adapter.parents else set()
    start = adapter.parents.get(START)
    return found | shards_seen(adapters[start.digest], adapters) if start and start.digest in adapters else found


def base_name(uri: str) -> str:
    """The name of a base model without its location: `owner/name` on the Hub, else the last folder."""
    scheme, _, path = uri.rstrip("/").rpartition("://")
    parts = path.partition("@")[0].split("/")
    return "/".join(parts[-2:]) if scheme == "hf" else parts[-1]


def read_completion(artifact: Artifact) -> Completion:
    """The proof of an artifact. Raises IntegrityError when it is none."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Completion).validate_json(artifact.file(COMPLETION).read_bytes())
    except ValidationError as error:
        raise IntegrityError(f"{artifact.ref.path}/{COMPLETION} is no proof of completion: {error}") from None


def shortfall(proof: Completion) -> str | None:
    """What a run lacks to be complete, None when it was trained to its end or stopped where its recipe says so."""
    if proof.stopped_early:
        return None
    if proof.steps != proof.planned_steps:
        return f"stopped after {proof.steps} of {proof.planned_steps} steps"
    return None if proof.sampler_exhausted else f"{proof.steps} steps left windows for another one"


def read_losses(artifact: Artifact) -> list[dict[str, Any]]:
    """The whole trajectory, one entry a step."""
    return [json.loads(line) for line in artifact.file(LOSSES).read_text(encoding="utf-8").splitlines()]


def refuse_unsupported(recipe: Recipe) -> None:
    """Raises RecipeError for what this version cannot train, before anything is computed."""
    section = recipe.finetune
    refuse_sections(section)
    if recipe.encode.step_separator != STEP_SEPARATOR and section.method != "process_reward":
        raise RecipeError(
            f"encode.step_separator {recipe.encode.step_separator!r} belongs to process_reward, not to {section.method}",
            why="It would change nothing, and look as if it did.",
            cure="leave it out",
        )
    if section.epochs < 1 or section.windows_per_micro < 1:
        raise RecipeError(
            f"epochs {section.epochs} and windows_per_micro {section.windows_per_micro} must be at least 1"
        )
    if not 0 <= section.warmup_share < 1:
        raise RecipeError(f"finetune.warmup_share {section.warmup_share} must be at least 0 and below 1")
    if section.lora is not None:
        _refuse_lora(recipe)


def _refuse_lora(recipe: Recipe) -> None:
    lora = recipe.finetune.lora
    if lora is None:
        return
    if lora.targets != "all-linear" and {"lm_head", "embed_tokens"} & set(lora.targets):
        raise RecipeError(
            f"finetune.lora.targets {list(lora.targets)} hold the head or the embedding",
            why="Serving engines drop an adapter on them without a word, so the served model would not be the gated one.",
            cure="all-linear, or names of projections",
        )
    if lora.rank < 1 or lora.alpha < 1 or not 0 <= lora.dropout < 1:
        raise RecipeError(f"finetune.lora rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout} cannot be used")


def refuse_misfit(section: Finetune, *, shards: Artifact, base: Artifact) -> None:
    """Raises RecipeError when the shards are of another method, do not fill one step, or hold rows longer than the base model reads."""
    refuse_kind(section, statistics(shards).get("examples"))
    windows = shards.manifest.counts["train_windows"]
    if windows < section.windows_per_step:
        raise RecipeError(
            f"finetune.windows_per_step {section.windows_per_step} is more than the {windows} windows of the training split",
            why="An epoch would not hold one optimizer step.",
            cure=f"windows_per_step {max(1, windows // 4)}, a smaller encode.window_tokens, or more rows",
        )
    reads = json.loads(base.file(MODEL_CONFIG).read_text(encoding="utf-8")).get("max_position_embeddings")
    longest = statistics(shards)["longest_row_tokens"]
    if reads is not None and longest > reads:
        raise RecipeError(
            f"a row has {longest} tokens, the base model reads {reads}",
            cure=f"encode.window_tokens of at most {reads}",
        )
