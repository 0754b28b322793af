"""`python -m ft_pipeline.finetune.main job.json`: trains, resumes, and publishes `checkpoints` with the proof of completion.

Torch is imported inside the body: the stop signal must be heard before, and a refused job must not wait for it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.workers.preemption import StopRequest, listen, stop_request

if __name__ == "__main__":
    listen()

from ft_pipeline import settings
from ft_pipeline.errors import Interrupted
from ft_pipeline.finetune.artifact import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COMPLETION,
    LOSSES,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    START,
    Completion,
)  # fmt: skip
from ft_pipeline.finetune.compatibility import warning
from ft_pipeline.finetune.guards import Drift
from ft_pipeline.finetune.metrics import Metrics, Mirror, next_attempt
from ft_pipeline.finetune.ranks import run_alone_or_ranked
from ft_pipeline.finetune.resume_proof import write_certificate
from ft_pipeline.finetune.retention import best_step
from ft_pipeline.finetune.rollout_store import FOLDER as ROLLOUTS
from ft_pipeline.finetune.rollout_store import Rollouts, publish_rollouts, read_tax
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.finetune.status import RANKS
from ft_pipeline.recipe import Finetune
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import canonical_json, sha256_json
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, Message, ignore, log
from ft_pipeline.workers.startup import UNUSED_BY_A_MODEL, hide

if TYPE_CHECKING:
    import torch

    from ft_pipeline.finetune.checkpoint import Checkpoints, State
    from ft_pipeline.finetune.effect import Probe
    from ft_pipeline.finetune.loop import Run
    from ft_pipeline.finetune.parallel import World

CHECKPOINTS = "checkpoints"
GENERATION_CONFIG = "generation_config.json"


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the job's `checkpoints`. Raises Interrupted (75) after a saved stop, StorageError (5), another FtError (42) for good."""
    stop = stop_request()
    section = read_section(job.section)
    parents = {role: store.fetch(ref) for role, ref in job.spec.parents.items()}
    shards, base = parents.pop("shards"), parents.pop("base")
    schedule = Schedule(section=section, windows=shards.manifest.counts["train_windows"])
    world = _joined(job)
    metrics = _metrics(job, schedule, mailbox) if world.leads else _quiet_metrics(job, schedule, world.rank)
    try:
        ready = _prepared(job, (base.folder, schedule, metrics, stop, world), (shards, parents))
        ready.rollouts.recording = True
        run, state = ready.run, _trained(ready.run)
        tensors = run.trainee.tensors()  # all processes of a sharded run take part
        ready.refuse_no_effect(tensors)
        if not world.leads:
            return
        with store.publish(job.spec) as draft:
            _write(draft.folder, run, (state, tensors))
            write_certificate(draft.folder, ready.certificate)
            completion = _completion(run, state, ready.boundary)
            (draft.folder / COMPLETION).write_text(json.dumps(completion, sort_keys=True, indent=1))
            draft.counts.update(steps=state.step, rows=completion["rows"], trained_tokens=completion["trained_tokens"])
            _close(metrics, "FINISHED")
            draft.execution.update(metrics.facts())
        ready.publish_rollouts(store, draft.artifact)
    except BaseException as error:
        _close(metrics, "KILLED" if isinstance(error, Interrupted) else "FAILED")
        raise
    finally:
        world.leave()
    mailbox(Message(kind="result", facts=metrics.facts()))
    run.checkpoints.clear(state)


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
    plan = schedule.section.reinforce
    watch = None if plan is None else Drift(plan.guards, mailbox)
    return Metrics(
        folder=job.folder, steps=schedule.steps, listener=mailbox, mirror=mirror, attempt=attempt, watch=watch
    )


def _joined(job: Job) -> World:
    from ft_pipeline.finetune.parallel import join

    return join(job.placement)


def _quiet_metrics(job: Job, schedule: Schedule, rank: int) -> Metrics:
    """Of a process that does not lead: its own lines in a folder of its own, for who looks for the slow one."""
    folder = job.folder / RANKS / str(rank)
    folder.mkdir(parents=True, exist_ok=True)
    return Metrics(folder=folder, steps=schedule.steps, listener=ignore)


def _close(metrics: Metrics, status: str) -> None:
    if metrics.mirror:
        metrics.mirror.close(status)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A run before its first step, with what was found out about it."""

    run: Run
    boundary: dict[str, Any]
    """What the boundary check found on the untrained model."""
    certificate: dict[str, Any]
    """Whether a killed run of this recipe ends in the same bytes."""
    probe: Probe
    rollouts: Rollouts

    def publish_rollouts(self, store: Store, checkpoints: Artifact | None) -> None:
        """Of a policy, as an artifact of their own, with what they cost."""
        if checkpoints is not None and (made := publish_rollouts(store, self.rollouts, checkpoints=checkpoints)):
            log(self.run.metrics.listener, f"rollouts: {made.manifest.counts['rows']} completions", **read_tax(made))
            shutil.rmtree(self.rollouts.folder)

    def refuse_no_effect(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises TrainingFailed when training changed nothing that can be seen."""
        from ft_pipeline.finetune.effect import refuse_no_effect

        refuse_no_effect(self.run.trainee, tensors, self.probe)


def _prepared(
    job: Job, parts: tuple[Path, Schedule, Metrics, StopRequest, World], given: tuple[Artifact, dict[str, Artifact]]
) -> Ready:
    """The run, ready to step."""
    from ft_pipeline.finetune.boundary import check_boundaries
    from ft_pipeline.finetune.effect import Probe
    from ft_pipeline.finetune.loop import Run, make_deterministic
    from ft_pipeline.finetune.methods.method import method_of
    from ft_pipeline.finetune.model import load_trainee
    from ft_pipeline.finetune.resume_certificate import certified
    from ft_pipeline.finetune.rollout import side_by_side
    from ft_pipeline.finetune.start import start_from

    folder, schedule, metrics, stop, world = parts
    shards, others = given
    place = job.placement
    make_deterministic(place.threads)
    _leave_if_asked(stop, world, "the model was loaded")
    trainee = load_trainee(folder, schedule.section, device=place.device)
    start_from(trainee, others.get(START))
    rollouts = Rollouts(
        job.folder / ROLLOUTS, schedule.micros_per_step, place.keep_rollout_steps, updates=schedule.updates
    )
    also = {"base": folder, "device": place.device, "rollouts": rollouts}
    method = method_of(schedule.section, cache=settings.load().work / "windows", **also, **others)
    train, validation = (method.items(shards, split) for split in ("train", "validation"))
    _leave_if_asked(stop, world, "the checks before the first step")
    boundary = check_boundaries(trainee, side_by_side(train))
    probe = Probe.of(trainee, method, train)
    run = Run(
        trainee=trainee, method=method, schedule=schedule, train=train, validation=validation,
        checkpoints=_checkpoints(job, schedule.section, metrics), metrics=metrics, stop=stop, world=world,
    )  # fmt: skip
    certificate = certified(run, base=folder, folder=metrics.folder)
    told = f"boundary check {boundary}; exact resume: {certificate['verdict']}"
    log(metrics.listener, f"attempt {metrics.attempt}: {schedule.steps} steps, {told}")
    if untested := warning(schedule.section, place):
        log(metrics.listener, untested)
    _leave_if_asked(stop, world, "the first step of this attempt")
    return Ready(run=run, boundary=boundary, certificate=certificate, probe=probe, rollouts=rollouts)


def _leave_if_asked(stop: StopRequest, world: World, before: str) -> None:
    """All processes leave, or none."""
    (asked,) = world.agreed(stop.asked)
    if asked:  # and never set to False: a signal may have come since the vote
        stop.leave(before)


def _checkpoints(job: Job, section: Finetune, metrics: Metrics) -> Checkpoints:
    from ft_pipeline.finetune.checkpoint import Checkpoints

    place = job.placement
    return Checkpoints(
        job.folder / CHECKPOINTS, job.spec.fingerprint, metrics.listener,
        keep=place.keep_checkpoints, every_steps=place.checkpoint_steps, every_seconds=place.checkpoint_minutes * 60,
        keep_best=place.keep_best or section.early_stop_evaluations is not None, keep_every=place.keep_every,
    )  # fmt: skip


def _trained(run: Run) -> State:
    from ft_pipeline.finetune.loop import train

    return train(run)


def _write(folder: Path, run: Run, trained: tuple[State, dict[str, torch.Tensor]]) -> None:
    """The trained tensors with their config, and the trajectory."""
    import torch
    from safetensors.torch import save_file

    section, (state, tensors) = run.schedule.section, trained
    dtype = getattr(torch, section.dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if section.lora is not None:
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(run.trainee.adapter_config(), sort_keys=True, indent=1))
    else:
        save_file(tensors, folder / MODEL_WEIGHTS, metadata={"format": "pt"})
        _write_model_config(folder, run)
    (folder / LOSSES).write_bytes(b"".join(canonical_json(entry) + b"\n" for entry in state.losses))


def _write_model_config(folder: Path, run: Run) -> None:
    """The base model's own config with the type of the saved weights."""
    from ft_pipeline.finetune.score import SCORED, classifier_config

    base = Path(run.trainee.model.config._name_or_path)
    config = json.loads((base / MODEL_CONFIG).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = run.schedule.section.dtype
    if (name := run.schedule.section.method) in SCORED:
        config = classifier_config(config, name)
    (folder / MODEL_CONFIG).write_text(json.dumps(config, sort_keys=True, indent=1))
    if (base / GENERATION_CONFIG).is_file():
        shutil.copyfile(base / GENERATION_CONFIG, folder / GENERATION_CONFIG)


def _completion(run: Run, state: State, boundary: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    schedule = run.schedule
    micros = range(state.step * schedule.micros_per_step)
    seen = sorted({row for micro in micros for i in schedule.windows_of(micro) for row in run.train[i].row_ids})
    early = state.step < schedule.steps
    best = best_step(state.measured) if schedule.section.early_stop_evaluations is not None else None
    proof = Completion(
        planned_steps=schedule.steps,
        steps=state.step,
        windows_consumed=len(micros) * schedule.section.windows_per_micro,
        sampler_exhausted=schedule.sampler_exhausted and not early,
        rows=len(seen),
        row_ids_sha256=sha256_json(seen),
        trained_tokens=sum(entry["trained_tokens"] for entry in state.losses),
        validation_loss=state.validations.get(str(best or state.step)),
        validation_loss_before=state.validations.get("0"),
        boundary=boundary,
        stopped_early=early,
        published_step=best or state.step,
    )
    return asdict(proof)


if __name__ == "__main__":
    hide(UNUSED_BY_A_MODEL)
    sys.exit(run_alone_or_ranked(body, sys.argv))
