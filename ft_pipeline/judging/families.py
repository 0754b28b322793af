"""Families of models, by name: a judge prefers what sounds like itself (Panickssery et al. 2024), so it may not judge its own kind."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ft_pipeline.errors import RecipeError
from ft_pipeline.recipe_gate import Judge

FAMILIES = {
    "llama": r"llama|vicuna|alpaca",
    "qwen": r"qwen|qwq",
    "mistral": r"mi[sx]tral|ministral|magistral|codestral|devstral",
    "gemma": r"gemma",
    "gemini": r"gemini",
    "gpt": r"gpt|\bo[134]\b",
    "claude": r"claude",
    "deepseek": r"deepseek",
    "phi": r"\bphi",
    "command": r"command-?[ar]|\bcohere|\baya\b",
    "glm": r"glm",
    "kimi": r"kimi|moonshot",
    "granite": r"granite",
    "olmo": r"olmo|tulu",
    "smollm": r"smollm",
    "falcon": r"falcon",
    "nemotron": r"nemotron",
    "yi": r"\byi-",
}
"""Family -> what names of its models hold, lower case. A distilled model has the names of both its parents, and both count."""


def families_of(*names: str) -> set[str]:
    """Every family that one of the names tells of."""
    return {family for family, rule in FAMILIES.items() for name in names if re.search(rule, name.lower())}


def refuse_own_kind(judge: Judge, *, judge_names: Iterable[str] = (), generator_names: Iterable[str]) -> None:
    """Raises RecipeError when the judge is of the family of the model it would judge, or of none that is known."""
    if judge.kind == "scripted":
        return
    own = {judge.family.lower()} if judge.family else families_of(judge.model, *judge_names)
    if not own:
        raise RecipeError(
            f"the name of the judge {judge.model!r} tells no family",
            why="A judge prefers answers of its own family; that it judges another one has to be known.",
            cure="name it: `family: mistral` beside `model`, or set `allow_same_family: true`",
        )
    generators = list(generator_names)
    if both := own & families_of(*generators):
        raise RecipeError(
            f"the judge {judge.model!r} and the model that it would judge ({', '.join(generators)}) are both of the family {sorted(both)[0]}",
            why="A judge prefers answers that sound like its own.",
            cure="take a judge of another family, or set `allow_same_family: true` and say so to whoever reads the report",
        )
