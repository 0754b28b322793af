"""Which words of a recipe's judge decide its opinions, and which only say where it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft_pipeline.judging.forms import Form
from ft_pipeline.named_function import source_of
from ft_pipeline.recipe_gate import Judge
from ft_pipeline.store.fingerprint import code_digest

REACH = ("base_url", "key_variable", "timeout_seconds", "attempts", "calls_at_once")
"""Fields that say where a judge is and how patiently it is asked: no part of what it says."""
HERE = Path(__file__).parent
CODE = ("forms.py", "duels.py", "judge.py")
"""The files that decide what is asked and how replies are read."""


def identity_of(judge: Judge, *forms: Form, model: str = "") -> dict[str, Any]:
    """What decides a judge's opinions, to be hashed. `model`: the whole digest of a local model."""
    code = {"source": code_digest(source_of(judge.model, what="scripted judge"))} if judge.kind == "scripted" else {}
    return {
        "kind": judge.kind, "model": model or judge.model, "family": judge.family, "max_new_tokens": judge.max_new_tokens,
        "seed": judge.seed, "temperature": 0, "forms": {form.name: form.sha256 for form in forms},
        "code": code_digest(*(HERE / name for name in CODE)), **code,
    }  # fmt: skip


def reach_of(judge: Judge) -> dict[str, Any]:
    """Where it is and how patiently it is asked: for the job, beside what is hashed. The key itself is in neither."""
    return {name: getattr(judge, name) for name in REACH}


def judge_of(identity: Mapping[str, Any], reach: Mapping[str, Any]) -> Judge:
    """The judge of a job."""
    told = {name: identity[name] for name in ("kind", "model", "family", "max_new_tokens", "seed")}
    return Judge(**told, **reach)
