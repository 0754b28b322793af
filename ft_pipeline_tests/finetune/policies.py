"""Prompts with answers, calibrated rewards and runs of policy methods over them, for this folder's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ft_pipeline.finetune.checkpoint import Checkpoints
from ft_pipeline.finetune.loop import Run, make_deterministic
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.metrics import Metrics
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.rewards.calibrate import calibrate, rewards_by_role
from ft_pipeline.finetune.rollout_store import Rollouts
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.recipe import Finetune
from ft_pipeline.recipe_reinforce import Reinforce, Reward
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests import tiny

HERE = Path(__file__).parent
PROBES = HERE / "probes-letters.jsonl"
LETTERS = "ft_pipeline_tests.finetune.policies:letters"
KINDS = ("zipfile", "json", "socket", "math")


def letters(completions: list[str], answer: list[str], **_columns: Any) -> list[float]:
    """Share of a completion's characters that are in the answer: a random model has some variance in it."""
    return [sum(a in w for a in c) / max(len(c), 1) for c, w in zip(completions, answer, strict=True)]


def plan(**changes: Any) -> Reinforce:
    rewards = (Reward(name=LETTERS, probes=str(PROBES), pass_at=1.0),)
    return Reinforce(**{"max_new_tokens": 6, "completions": 4, "rewards": rewards, **changes})


def prompts(store: Store, base: Artifact, *, count: int = 16, validation: int = 4) -> Artifact:
    rows = [
        {"prompt": [{"role": "user", "content": f"which module? {'really ' * (n % 4)}{n}"}], "answer": KINDS[n % 4]}
        for n in range(count)
    ]
    return tiny.publish_shards(store, tiny.publish_curated(store, rows, validation=validation, shape="rlvr"), base)


def given(store: Store, section: Finetune, base: Artifact, *, teacher: Artifact | None = None) -> dict[str, Any]:
    rewards = rewards_by_role(section.reinforce)
    made = {role: calibrate(store, reward, home=Path("/nowhere")) for role, reward in rewards.items()}
    return {"base": base.folder, "teacher_model": teacher, **made}


def run_over(road, folder: Path, asked: Any, **changes: Any) -> Run:
    """A run of a policy method; `road` has store, base and shards. `teacher` names the artifact of one."""
    teacher, every, keep = changes.pop("teacher", None), changes.pop("every_steps", 500), changes.pop("keep_steps", 100)
    plan_changes = changes.pop("reinforce", {})
    defaults = {
        "method": "grpo",
        "epochs": 1,
        "windows_per_step": 4,
        "windows_per_micro": 4,
        "reinforce": plan(**plan_changes),
    }
    section = tiny.recipe(**{**defaults, **changes}).finetune
    make_deterministic(1)
    folder.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(section=section, windows=road.shards.manifest.counts["train_windows"])
    trainee = load_trainee(road.base.folder, section)
    rollouts = Rollouts(folder / "rollouts", schedule.micros_per_step, keep)
    method = method_of(
        section, cache=folder / "windows", rollouts=rollouts, **given(road.store, section, road.base, teacher=teacher)
    )
    train, validation = (method.items(road.shards, split) for split in ("train", "validation"))
    return Run(
        trainee=trainee, method=method, schedule=schedule, train=train, validation=validation,
        checkpoints=Checkpoints(folder / "checkpoints", "f" * 64, ignore, every_steps=every),
        metrics=Metrics(folder=folder, steps=schedule.steps, listener=ignore), stop=asked,
    )  # fmt: skip
