"""Judges and classifiers of a recipe as parts of a report: what is hashed, which artifacts they are, and where the rest is reached."""

from __future__ import annotations

from typing import Any

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.gate.benchmarks import OPEN, publish_suite
from ft_pipeline.judging.forms import PAIR, PAIR_WITH_REFERENCE, REFUSAL, harm_form
from ft_pipeline.judging.identity import identity_of, reach_of
from ft_pipeline.recipe import Gate, Judge
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Ref

MODEL_KIND = "base_model"


def judges_of(gate: Gate) -> dict[str, Judge]:
    """Role -> who is asked. A judge of safety also says what a refusal is, unless another is named for that."""
    safety, found = gate.safety, {"judge_model": gate.judge.judge if gate.judge else None}
    if safety:
        refusals = safety.refusals or (safety.model if safety.scorer == "judge" else None)
        found |= {"safety_model": safety.model, "safety_refusals": refusals}
    return {role: judge for role, judge in found.items() if judge}


def judge_refs(gate: Gate, store: Store, settings: Settings) -> dict[str, Ref]:
    """The artifacts that opinions rest on: prompts for the judge, and local models. Raises NotFoundError, DataError, UserError."""
    refs = {role: model_ref(store, judge.model) for role, judge in judges_of(gate).items() if judge.kind == "local"}
    if gate.judge and gate.judge.uri:
        refs["judge_prompts"] = publish_suite(store, settings, name="judge", uri=gate.judge.uri, kind=OPEN).ref
    return refs


def judge_section(gate: Gate) -> dict[str, Any] | None:
    """What decides the judge's gate besides its prompts; None without one."""
    if gate.judge is None:
        return None
    one = gate.judge
    return {
        "judge": identity_of(one.judge, PAIR, PAIR_WITH_REFERENCE), "max_prompts": one.max_prompts, "max_new_tokens": one.max_new_tokens,
        "allow_same_family": one.allow_same_family, "attempt": one.attempt,
    }  # fmt: skip


def safety_section(gate: Gate) -> dict[str, Any] | None:
    """What decides the safety gates besides their prompts; None without them."""
    if gate.safety is None:
        return None
    one, judges = gate.safety, judges_of(gate)
    forms = {"safety_model": harm_form(one.scorer), "safety_refusals": REFUSAL}
    asked = {role: identity_of(judges[role], form) if role in judges else None for role, form in forms.items()}
    return {
        "max_new_tokens": one.max_new_tokens, "scorer": one.scorer, "threshold": one.threshold, "attempt": one.attempt,
        "model": asked["safety_model"], "refusals": asked["safety_refusals"],
    }  # fmt: skip


def reach(gate: Gate) -> dict[str, dict[str, Any]]:
    """Role -> where and how patiently it is asked: for the job, not hashed."""
    return {role: reach_of(judge) for role, judge in judges_of(gate).items()}


def model_ref(store: Store, digest: str) -> Ref:
    """The one model of the store whose digest begins so. Raises NotFoundError, UserError."""
    found = {m.digest: m.ref for m in store.all(MODEL_KIND) if m.digest.startswith(digest.lower())}
    if not found:
        known = ", ".join(sorted(m.digest[:12] for m in store.all(MODEL_KIND))) or "none"
        raise NotFoundError(
            f"no base model {digest!r} in the store (there are: {known})",
            why="A local judge or guard is a model of the store, so that its every byte is known.",
            cure="run `ft-pipeline pin` on a recipe that names the judge as its base model, or take `kind: endpoint`",
        )
    if len(found) > 1:
        raise UserError(
            f"{digest} fits {len(found)} models: {', '.join(d[:16] for d in sorted(found))}", cure="give more digits"
        )
    return next(iter(found.values()))
