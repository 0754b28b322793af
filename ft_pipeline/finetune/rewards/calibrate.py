"""Calibration of a reward: how often it passes what is wrong and fails what is right, on labelled probes; published as its artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError, RecipeError
from ft_pipeline.finetune.rewards.function import (
    CALIBRATION,
    KIND,
    PROBES,
    Score,
    function_of,
    parameters_in,
    probes_of,
    reward_code,
    reward_spec,
)
from ft_pipeline.finetune.rewards.trained import (
    Find,
    TrainedReward,
    is_model,
    refuse_other_words,
    trained_given,
    trained_of,
    trained_roles,
)
from ft_pipeline.recipe import Finetune
from ft_pipeline.recipe_data import STRICT
from ft_pipeline.recipe_reinforce import Reinforce, Reward
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.manifest import Manifest

LEAST_PROBES = 10
"""Of each label. Ten without an error still allow a rate of 26% (95%, rule of three): the report says the bound."""
SHOWN = 20
"""Wrong verdicts kept in the report."""
WHY = "A policy learns whatever its reward passes; one that passes wrong answers teaches them."


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What `calibration.json` says."""

    __pydantic_config__ = STRICT
    should_pass: int
    should_fail: int
    false_pass: int
    """Of should_fail: passed."""
    false_fail: int
    """Of should_pass: failed."""
    not_scored: int
    """The function gave None: counted as failed."""
    false_pass_bound: float
    """Upper end of the 95% interval (Clopper-Pearson) of the rate that was measured as false_pass / should_fail."""
    false_fail_bound: float
    wrong: tuple[dict[str, Any], ...]
    """The first wrong verdicts: {line, completion, answer, pass, reward}."""


def calibrate(store: Store, reward: Reward, *, home: Path, find: Find | None = None) -> Artifact:
    """The calibrated reward, measured now or found. It is published whatever the rates are: the limits are the recipe's.

    find: the artifact whose digest begins so, for a reward model. Raises RecipeError for an unknown function and for what is no reward
    model, DataError for probes that are none.
    """
    trained = trained_of(reward, store=store, find=find)
    spec = reward_spec(reward, home=home, trained=trained)
    if found := store.find(spec):
        return found
    content = probes_of(reward, home=home)
    report = measure(reward, read_probes(content), trained)
    with store.publish(spec) as draft:
        (draft.folder / PROBES).write_bytes(content)
        (draft.folder / CALIBRATION).write_text(json.dumps(asdict(report), sort_keys=True, indent=1))
        draft.counts.update(
            probes=report.should_pass + report.should_fail, false_pass=report.false_pass, false_fail=report.false_fail
        )
    if draft.artifact is None:
        raise AssertionError("published without an artifact")
    return draft.artifact


def refuse_uncalibrated(artifact: Artifact | None, reward: Reward) -> None:
    """Raises RecipeError with the cure when the artifact is none of this reward with this code, or exceeds its limits."""
    if artifact is None or not _is_of(artifact.manifest, reward):
        raise RecipeError(
            f"reward {reward.name} is not calibrated as it is now",
            why=WHY,
            cure="ft-pipeline rewards calibrate RECIPE",
        )
    if fault := excess(read_calibration(artifact), reward):
        raise RecipeError(
            f"reward {reward.name} {fault}",
            why=WHY,
            cure="mend the function or its probes and run `ft-pipeline rewards calibrate RECIPE`; the limits are in the recipe",
        )


def calibrated_rewards(
    section: Finetune, *, store: Store, home: Path, base: Artifact, find: Find
) -> dict[str, Artifact]:
    """Role -> the calibration of each reward of a recipe, and of a reward model, the model and its base; empty for most methods.

    base: of the policy. Raises RecipeError as `refuse_uncalibrated`, and for a reward model that reads other tokens.
    """
    found: dict[str, Artifact] = {}
    for role, reward in rewards_by_role(section.reinforce).items():
        trained = trained_of(reward, store=store, find=find)
        if trained is not None:
            refuse_other_words(reward, trained, base)
            found |= dict(zip(trained_roles(role), (trained.model, trained.base), strict=True))
        artifact = store.find(reward_spec(reward, home=home, trained=trained))
        refuse_uncalibrated(artifact, reward)
        if artifact is not None:
            found[role] = artifact
    return found


def score_functions(plan: Reinforce, given: Mapping[str, Any], *, device: str) -> list[Score]:
    """The rewards of a recipe in its order, in a training process. given: its parents by role. Raises as `refuse_uncalibrated`."""
    for role, reward in rewards_by_role(plan).items():
        refuse_uncalibrated(given.get(role), reward)
    models = {role: trained_given(role, given) for role, reward in rewards_by_role(plan).items() if is_model(reward)}
    return [function_of(r, models.get(role), device=device) for role, r in rewards_by_role(plan).items()]


def rewards_by_role(plan: Reinforce | None) -> dict[str, Reward]:
    """`reward_1`, `reward_2`, ... in the order of the recipe."""
    return {f"reward_{n}": reward for n, reward in enumerate(plan.rewards if plan else (), 1)}


def _is_of(manifest: Manifest, reward: Reward) -> bool:
    wanted = {"name": reward.name, "parameters": reward.parameters, "pass_at": reward.pass_at}
    known = {name: manifest.config.get(name) for name in wanted}
    return manifest.kind == KIND and known == wanted and manifest.code == reward_code(reward)


def measure(reward: Reward, probes: Sequence[Mapping[str, Any]], trained: TrainedReward | None = None) -> Calibration:
    """The verdicts of a reward on its probes. trained: the reward model that it names."""
    rewards: list[float] = []
    for _, block in groupby(probes, key=lambda probe: json.dumps(probe.get("parameters"), sort_keys=True)):
        lines = list(block)
        score = function_of(parameters_in(lines[0], reward), trained)
        rewards += score([p["completion"] for p in lines], **columns_of(lines))
    passed = [value >= reward.pass_at for value in rewards]
    wrong = [place for place, probe in enumerate(probes) if passed[place] != probe["pass"]]
    positives = sum(probe["pass"] for probe in probes)
    false_pass = sum(not probes[place]["pass"] for place in wrong)
    return Calibration(
        should_pass=positives, should_fail=len(probes) - positives,
        false_pass=false_pass, false_fail=len(wrong) - false_pass,
        not_scored=sum(value != value for value in rewards),
        false_pass_bound=upper_bound(false_pass, len(probes) - positives),
        false_fail_bound=upper_bound(len(wrong) - false_pass, positives),
        wrong=tuple({"line": n + 1, **probes[n], "reward": _number(rewards[n])} for n in wrong[:SHOWN]),
    )  # fmt: skip


def columns_of(probes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns that a reward gets in training, as far as a probe knows them."""
    return {
        "prompts": [p.get("prompt", "") for p in probes],
        "prompt_ids": [[] for _ in probes],
        "answer": [str(p["answer"]) for p in probes],
        "completion_ids": [[] for _ in probes],
        "row_id": [f"probe-{n + 1}" for n in range(len(probes))],
    }


def read_probes(content: bytes) -> list[dict[str, Any]]:
    """The probes in JSONL bytes. Raises DataError with the line for one that is no {completion, answer, pass}, and for too few."""
    probes = []
    for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            probe = json.loads(line)
            fits = isinstance(probe["completion"], str) and isinstance(probe["pass"], bool) and "answer" in probe
        except (ValueError, KeyError, TypeError):
            fits, probe = False, {}
        if not fits:
            raise DataError(
                f"probe {number} is not {{completion: text, answer: text, pass: true or false}}: {line[:120]}"
            )
        probes.append(probe)
    passing = sum(probe["pass"] for probe in probes)
    if min(passing, len(probes) - passing) < LEAST_PROBES:
        raise DataError(
            f"{passing} probes should pass and {len(probes) - passing} should fail: {LEAST_PROBES} of each are the least",
            why="A rate over fewer says nothing.",
            cure="add probes, above all wrong completions that look right",
        )
    return probes


def excess(report: Calibration, reward: Reward) -> str | None:
    """Which limit a calibration exceeds, in words; None when it is within both."""
    for name, count, of, limit in (
        ("false passes", report.false_pass, report.should_fail, reward.max_false_pass),
        ("false fails", report.false_fail, report.should_pass, reward.max_false_fail),
    ):
        # both sides as whole numbers: 1 of 20 is within a limit of .05
        if count > round(limit * of, 9):
            return f"has {count} {name} on {of} probes, the limit is {limit:g}"
    return None


def read_calibration(artifact: Artifact) -> Calibration:
    """The report of an artifact."""
    from pydantic import TypeAdapter

    return TypeAdapter(Calibration).validate_json(artifact.file(CALIBRATION).read_bytes())


def upper_bound(errors: int, of: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided Clopper-Pearson interval of a rate, rounded to 6 digits."""
    from scipy.stats import beta

    return 1.0 if errors == of else round(float(beta.ppf(confidence, errors + 1, of - errors)), 6)


def _number(value: float) -> float | None:
    return None if value != value else value
