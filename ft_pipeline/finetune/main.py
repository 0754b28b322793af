"""`python -m ft_pipeline.finetune.main job.json`: trains, resumes, and publishes `checkpoints` with the proof of completion.

Torch is imported inside the body: the stop signal must be heard before, and a refused job must not wait for it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline import settings
from ft_pipeline.errors import Interrupted
from ft_pipeline.finetune.artifact import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COMPLETION,
    LOSSES,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    Completion,
)  # fmt: skip
from ft_pipeline.finetune.metrics import Metrics, Mirror, next_attempt
from ft_pipeline.finetune.preemption import StopRequest
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.recipe import Finetune
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import canonical_json, sha256_json
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, Message, log
from ft_pipeline.workers.startup import UNUSED_BY_A_MODEL, hide

if TYPE_CHECKING:
    from ft_pipeline.finetune.checkpoint import State
    from ft_pipeline.finetune.loop import Run

CHECKPOINTS = "checkpoints"
GENERATION_CONFIG = "generation_config.json"


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the job's `checkpoints`. Raises Interrupted (75) after a saved stop, another FtError (42) for good."""
    stop = StopRequest()
    section = read_section(job.section)
    parents = {role: store.fetch(ref) for role, ref in job.spec.parents.items()}
    shards, base = parents.pop("shards"), parents.pop("base")
    schedule = Schedule(section=section, windows=shards.manifest.counts["train_windows"])
    metrics = _metrics(job, schedule, mailbox)
    try:
        run, boundary = _prepared(job, (base.folder, schedule, metrics, stop), (shards, parents))
        state = _trained(run)
        with store.publish(job.spec) as draft:
            _write(draft.folder, run, state)
            completion = _completion(run, state, boundary)
            (draft.folder / COMPLETION).write_text(json.dumps(completion, sort_keys=True, indent=1))
            draft.counts.update(steps=state.step, rows=completion["rows"], trained_tokens=completion["trained_tokens"])
            _close(metrics, "FINISHED")
            draft.execution.update(metrics.facts())
    except BaseException as error:
        _close(metrics, "KILLED" if isinstance(error, Interrupted) else "FAILED")
        raise
    mailbox(Message(kind="result", facts=metrics.facts()))
    shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)


def read_section(section: Any) -> Finetune:
    """The recipe's section from plain JSON values."""
    from pydantic import TypeAdapter

    return TypeAdapter(Finetune).validate_json(json.dumps(dict(section)))


def _metrics(job: Job, schedule: Schedule, mailbox: Mailbox) -> Metrics:
    attempt = next_attempt(job.folder)
    uri = settings.load().mlflow_uri
    tags = {"recipe_sha256": str(job.facts.get("recipe_sha256", "")), "fingerprint": job.spec.fingerprint}
    experiment = str(job.facts.get("model_line", job.name))
    tags["attempt"] = str(attempt)
    mirror = None if uri == settings.NO_MLFLOW else Mirror(uri, experiment=experiment, tags=tags, listener=mailbox)
    return Metrics(folder=job.folder, steps=schedule.steps, listener=mailbox, mirror=mirror, attempt=attempt)


def _close(metrics: Metrics, status: str) -> None:
    if metrics.mirror:
        metrics.mirror.close(status)


def _prepared(
    job: Job, parts: tuple[Path, Schedule, Metrics, StopRequest], given: tuple[Artifact, dict[str, Artifact]]
) -> tuple[Run, dict[str, Any]]:
    """The run, ready to step, and what the boundary check found on the untrained model."""
    from ft_pipeline.finetune.boundary import check_boundaries
    from ft_pipeline.finetune.checkpoint import Checkpoints
    from ft_pipeline.finetune.loop import Run, make_deterministic
    from ft_pipeline.finetune.methods.method import method_of
    from ft_pipeline.finetune.model import load_trainee

    folder, schedule, metrics, stop = parts
    shards, others = given
    place = job.placement
    make_deterministic(place.threads)
    trainee = load_trainee(folder, schedule.section, device=place.device)
    method = method_of(schedule.section, cache=settings.load().work / "windows", **others)
    train, validation = (method.items(shards, split) for split in ("train", "validation"))
    boundary = check_boundaries(trainee, train)
    checkpoints = Checkpoints(
        job.folder / CHECKPOINTS, job.spec.fingerprint, metrics.listener,
        keep=place.keep_checkpoints, every_steps=place.checkpoint_steps, every_seconds=place.checkpoint_minutes * 60,
    )  # fmt: skip
    log(metrics.listener, f"attempt {metrics.attempt}: {schedule.steps} steps, boundary check {boundary}")
    return Run(
        trainee=trainee, method=method, schedule=schedule, train=train, validation=validation,
        checkpoints=checkpoints, metrics=metrics, stop=stop,
    ), boundary  # fmt: skip


def _trained(run: Run) -> State:
    from ft_pipeline.finetune.loop import train

    return train(run)


def _write(folder: Path, run: Run, state: State) -> None:
    """The trained tensors with their config, and the trajectory."""
    import torch
    from safetensors.torch import save_file

    section, tensors = run.schedule.section, run.trainee.tensors()
    if section.lora is not None:
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(run.trainee.adapter_config(), sort_keys=True, indent=1))
    else:
        dtype = getattr(torch, section.dtype)
        save_file({n: t.to(dtype) for n, t in tensors.items()}, folder / MODEL_WEIGHTS, metadata={"format": "pt"})
        _write_model_config(folder, run)
    (folder / LOSSES).write_bytes(b"".join(canonical_json(entry) + b"\n" for entry in state.losses))


def _write_model_config(folder: Path, run: Run) -> None:
    """The base model's own config with the type of the saved weights."""
    base = Path(run.trainee.model.config._name_or_path)
    config = json.loads((base / MODEL_CONFIG).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = run.schedule.section.dtype
    (folder / MODEL_CONFIG).write_text(json.dumps(config, sort_keys=True, indent=1))
    if (base / GENERATION_CONFIG).is_file():
        shutil.copyfile(base / GENERATION_CONFIG, folder / GENERATION_CONFIG)


def _completion(run: Run, state: State, boundary: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    schedule = run.schedule
    micros = range(state.step * schedule.micros_per_step)
    seen = sorted({row for micro in micros for i in schedule.windows_of(micro) for row in run.train[i].row_ids})
    proof = Completion(
        planned_steps=schedule.steps,
        steps=state.step,
        windows_consumed=len(micros) * schedule.section.windows_per_micro,
        sampler_exhausted=schedule.sampler_exhausted and state.step == schedule.steps,
        rows=len(seen),
        row_ids_sha256=sha256_json(seen),
        trained_tokens=sum(entry["trained_tokens"] for entry in state.losses),
        validation_loss=state.validations.get(str(state.step)),
        validation_loss_before=state.validations.get("0"),
        boundary=boundary,
    )
    return asdict(proof)


if __name__ == "__main__":
    hide(UNUSED_BY_A_MODEL)
    sys.exit(run_child(body, sys.argv))
