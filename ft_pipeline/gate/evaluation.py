"""Asks for an evaluation: publishes the suites, works out what the report is, and runs the child that makes it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft_pipeline.errors import RecipeError, UserError
from ft_pipeline.gate.benchmarks import CHOICES, SAFETY, publish_suite
from ft_pipeline.gate.judge_config import judge_refs, judge_section, reach, safety_section
from ft_pipeline.gate.metrics.function import function_code, is_function
from ft_pipeline.gate.official import the_suite
from ft_pipeline.gate.policy import Policy, policy_json, read_policy
from ft_pipeline.recipe import Gate, Recipe, identity
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.fingerprint import code_digest, sha256_file, sha256_json
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.job import Job, Placement

ROOM = Path(__file__).parent
NOT_EVALUATION = {
    "assets.py",
    "__init__.py",
    "evaluation.py",
    "official.py",
    "official_rows.py",
    "notify.py",
    "judge_config.py",
    "mirror.py",
}
MODULE = "ft_pipeline.gate.main"


def publish_suites(gate: Gate, store: Store, settings: Settings) -> dict[str, Ref]:
    """The suites that the recipe names, published: role -> reference. Raises NotFoundError, DataError, UserError."""
    names = [b.name for b in gate.benchmarks]
    if repeated := {n for n in names if names.count(n) > 1} | (
        {"holdout", "safety", "over_refusal", "judge"} & set(names)
    ):
        raise UserError(
            f"benchmark name {sorted(repeated)[0]!r} is taken",
            why="Gates are told apart by name.",
            cure="rename it in the recipe",
        )
    refs = {
        f"suite:{b.name}": the_suite(store, b.task, b.suite)
        if b.task
        else publish_suite(store, settings, name=b.name, uri=b.uri, kind=CHOICES).ref
        for b in gate.benchmarks
    }
    if gate.safety:
        refs["safety"] = publish_suite(store, settings, name="safety", uri=gate.safety.uri, kind=SAFETY).ref
    return refs | judge_refs(gate, store, settings)


def report_config(gate: Gate, policy: Policy) -> dict[str, Any]:
    """What decides a report besides its parents: the sections without locations, and the policy's content, not only its name."""
    body = identity(gate)
    return {
        "policy_name": gate.policy,
        "policy": policy_json(policy),
        "holdout": body["holdout"] | _metric_code(gate.holdout.metric),
        "benchmarks": [b["name"] for b in body["benchmarks"]],
        "safety": safety_section(gate),
        "judge": judge_section(gate),
    }


def _metric_code(metric: str) -> dict[str, str]:
    """A changed metric of the recipe's own is another metric."""
    return {"metric_code": function_code(metric)} if is_function(metric) else {}


def report_spec(gate: Gate, parents: Mapping[str, Ref]) -> Spec:
    """The report of an adapter. `parents`: adapter, base, curated and the suites' roles. Raises NotFoundError on an unknown policy."""
    return Spec(
        kind="eval_report", config=report_config(gate, read_policy(gate.policy)), parents=dict(parents), code=_code()
    )


def refuse_scores(recipe: Recipe) -> None:
    """Raises RecipeError for a reward model: it gives numbers, and every gate here judges written answers."""
    if recipe.finetune.method in ("reward", "process_reward"):
        raise RecipeError(
            f"{recipe.key} trains a reward model, and the gate judges written answers",
            why="A score is no answer: nothing was measured, and nothing is registered.",
            cure="its accuracy on the validation pairs is on the page of checkpoints; use the adapter by its digest",
        )


def evaluation_job(
    gate: Gate, parents: Mapping[str, Ref], *, settings: Settings, placement: Placement, key: str
) -> Job:
    """The job that makes the report of a model line `key`."""
    spec = report_spec(gate, parents)
    return Job(
        name=f"gate {key}",
        module=MODULE,
        spec=spec,
        section=spec.config,
        folder=run_folder(settings.work, spec.fingerprint),
        placement=placement,
        facts={"recipe": key, "reach": reach(gate)},
    )


def _code() -> str:
    sources = sorted(p for p in ROOM.rglob("*.py") if p.name not in NOT_EVALUATION and p.parent.name != "bump")
    return sha256_json([code_digest(*sources), sha256_file(ROOM / "report.html.jinja")])
