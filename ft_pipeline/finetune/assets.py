"""The door of finetune: `checkpoints` with the blocking check `complete`, and `adapter`."""

import warnings
from typing import Any

import dagster as dg

from ft_pipeline.encode.artifact import REFERENCE_KIND, pinned, resolved
from ft_pipeline.errors import NotFoundError
from ft_pipeline.finetune import certificate, policy_page
from ft_pipeline.finetune.adapter import package
from ft_pipeline.finetune.artifact import ADAPTER_CONFIG, read_completion, read_losses, shortfall
from ft_pipeline.finetune.figures import loss_curve, mlflow_page
from ft_pipeline.finetune.launch import parents_made, train_job
from ft_pipeline.finetune.metrics import perplexity
from ft_pipeline.finetune.resume_proof import read_certificate
from ft_pipeline.partitions import ADAPTER, CHECKPOINTS, PACKED_SHARDS, PINNED_BASE, REFERENCE_LOGPROBS, recipes
from ft_pipeline.resources import House
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.workers.job import Job

with warnings.catch_warnings():
    # partitioned checks are new in 1.13; unpartitioned, one failing tenant would block everybody (orchestration.md)
    warnings.simplefilter("ignore", dg.PreviewWarning)
    COMPLETE = dg.AssetCheckSpec(
        "complete",
        asset=CHECKPOINTS,
        blocking=True,
        partitions_def=recipes,
        description="Every planned step was made and the sampler is exhausted. Blocks packaging.",
    )
    CERTIFICATE = dg.AssetCheckSpec(
        "packing_certificate",
        asset=CHECKPOINTS,
        blocking=True,
        partitions_def=recipes,
        description="On this model and attention a packed row has the loss that it has alone, in train and eval mode, and a planted "
        "leak is seen. The trainer refuses to start otherwise; blocks packaging.",
    )


@dg.asset(
    key=CHECKPOINTS, deps=[PACKED_SHARDS, PINNED_BASE, REFERENCE_LOGPROBS], partitions_def=recipes, group_name="finetune", pool="gpu-train",
    kinds={"pytorch", "huggingface"}, owners=["team:ml-platform"], required_resource_keys={"house"},
    check_specs=[COMPLETE, CERTIFICATE],
    description="Trained tensors with the proof that the run is complete. A stopped run resumes bit for bit.",
)  # fmt: skip
def checkpoints(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Trains in a child process, or finds what the same inputs gave before."""
    house: House = context.resources.house
    key = context.partition_key
    shards, base = (house.store.fetch(house.catalog.head(key, asset)) for asset in ("packed_shards", "pinned_base"))
    recipe, where = resolved(house.recipe(key), pinned(house.catalog, key)), (house.settings.work, house.placement)
    others = parents_made(
        recipe, parts={"shards": shards, "base": base}, where=where,
        run=lambda job: _made(house, key, job), find=house.find,
        shelf=(house.store, house.settings.home),
    )  # fmt: skip
    for made in others.values():
        house.catalog.index(made.manifest)
    job = train_job(
        recipe,
        shards=shards,
        base=base,
        work=where[0],
        placement=where[1],
        others={r: a.ref for r, a in others.items()},
    )
    reused = house.store.manifest(job.spec.kind, job.spec.fingerprint) is not None
    artifact = house.worker.run(job, house.listener)
    house.catalog.set_head(key, "checkpoints", artifact, run_id=context.run.run_id)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata={
            **_place(house, artifact),
            **_curve(house, artifact),
            **_policy(house, artifact),
            "reused": dg.MetadataValue.bool(reused),
        },
        check_results=[_check(artifact), _certificate(artifact)],
    )


@dg.asset(
    key=ADAPTER, deps=[CHECKPOINTS, PINNED_BASE], partitions_def=recipes, group_name="finetune",
    kinds={"huggingface", "safetensors"}, owners=["team:ml-platform"], required_resource_keys={"house"},
    description="What is served: tensors, config with the base's digest, tokenizer, template, proof of completion.",
)  # fmt: skip
def adapter(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Packages the complete run."""
    house: House = context.resources.house
    key = context.partition_key
    trained, base = (house.store.fetch(house.catalog.head(key, asset)) for asset in ("checkpoints", "pinned_base"))
    artifact = package(house.store, checkpoints=trained, base=base, base_uri=house.recipe(key).base_model.uri)
    known = house.catalog.heads(key).get("adapter")
    house.catalog.set_head(key, "adapter", artifact, run_id=context.run.run_id)
    sizes = {name: entry.size for name, entry in artifact.manifest.files.items()}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.ref.digest),
        metadata={
            **_place(house, artifact),
            "reused": dg.MetadataValue.bool(known == artifact.ref),
            "megabytes": dg.MetadataValue.float(round(sum(sizes.values()) / 1e6, 3)),
            "files": dg.MetadataValue.json(sizes),
            "form": dg.MetadataValue.text("LoRA adapter" if ADAPTER_CONFIG in sizes else "full model"),
        },
    )


def _made(house: House, key: str, job: Job) -> Artifact:
    """What a job publishes. The reference's log-probabilities are an asset of encode: found here, never made."""
    if job.spec.kind != REFERENCE_KIND:
        return house.worker.run(job, house.listener)
    found = house.store.find(job.spec)
    if found is None:
        raise NotFoundError(
            f"{key} has no reference_logprobs of its present rows and reference",
            why="The loss compares with them.",
            cure=f"materialize reference_logprobs first: `ft-pipeline run {key}`",
        )
    return found


def _place(house: House, artifact: Artifact) -> dict[str, dg.MetadataValue]:
    return {
        "digest": dg.MetadataValue.text(artifact.ref.digest),
        "dagster/uri": dg.MetadataValue.text(house.store.bucket.path(artifact.ref.path)),
        "dagster/row_count": dg.MetadataValue.int(artifact.manifest.counts["rows"]),
        "steps": dg.MetadataValue.int(artifact.manifest.counts["steps"]),
    }


def _curve(house: House, artifact: Artifact) -> dict[str, dg.MetadataValue]:
    losses, proof, execution = read_losses(artifact), read_completion(artifact), artifact.manifest.execution
    facts: dict[str, Any] = {
        "loss curve": dg.MetadataValue.md(loss_curve(losses)),
        "final_loss": dg.MetadataValue.float(losses[-1]["loss"]),
        "tokens_per_second": dg.MetadataValue.float(float(execution.get("tokens_per_second", 0))),
        "exact_resume": dg.MetadataValue.text(read_certificate(artifact)["told"]),
        "checkpoint_stall_share": dg.MetadataValue.float(float(execution.get("checkpoint_stall_share", 0))),
        "attempts": dg.MetadataValue.int(int(execution.get("attempts", 1))),
        "steps_replayed": dg.MetadataValue.int(int(execution.get("steps_replayed", 0))),
    }
    if proof.validation_loss is not None:
        facts["validation_loss"] = dg.MetadataValue.float(proof.validation_loss)
        if artifact.manifest.config.get("method") in ("sft", "cpt"):
            facts["validation_perplexity"] = dg.MetadataValue.float(perplexity(proof.validation_loss))
    if page := mlflow_page(house.settings.mlflow_uri, execution):
        facts["mlflow"] = dg.MetadataValue.url(page)
    return facts


def _policy(house: House, artifact: Artifact) -> dict[str, Any]:
    """Of a run that sampled completions: what they earned and what they cost; nothing of another one."""
    made = policy_page.rollouts_of(house.store, artifact, keep_steps=house.placement.keep_rollout_steps)
    if made is None:
        return {}
    house.catalog.index(made.manifest)
    return {
        "policy curves": dg.MetadataValue.md(policy_page.policy_curves(read_losses(artifact))),
        "completions": dg.MetadataValue.md(policy_page.completions_table(made)),
        **policy_page.policy_facts(artifact, made),
    }


def _check(artifact: Artifact) -> dg.AssetCheckResult:
    proof = read_completion(artifact)
    lacks = shortfall(proof)
    return dg.AssetCheckResult(
        check_name="complete",
        passed=lacks is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=lacks or f"{proof.steps} of {proof.planned_steps} steps, sampler exhausted, {proof.rows} rows seen",
        metadata={
            "rows": dg.MetadataValue.int(proof.rows),
            "trained_tokens": dg.MetadataValue.int(proof.trained_tokens),
        },
    )


def _certificate(artifact: Artifact) -> dg.AssetCheckResult:
    facts = read_completion(artifact).boundary
    return dg.AssetCheckResult(
        check_name=CERTIFICATE.name,
        passed=facts.get("fault", "") == "",
        severity=dg.AssetCheckSeverity.ERROR,
        description=certificate.told(facts),
        metadata={"certificate": dg.MetadataValue.json(facts)},
    )


defs = dg.Definitions(assets=[checkpoints, adapter])
