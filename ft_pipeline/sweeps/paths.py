"""Dotted paths into a recipe: which exist, which a sweep may vary, and a document with one value changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ft_pipeline.errors import RecipeError, did_you_mean
from ft_pipeline.recipe import Recipe, identity

NO_WEIGHT = ("tenant", "name", "description", "schedule")
"""Fields by which trials cannot differ."""


def refuse_path(base: Recipe, path: str, *, others: Iterable[str], trained_only: bool) -> None:
    """Raises RecipeError when a sweep of the recipe cannot vary the path. trained_only: trials end before the gate."""
    _refuse_unknown(path)
    root = path.split(".")[0]
    if root in NO_WEIGHT:
        raise RecipeError(f"{path} changes no weight", why="A trial differs by what it computes.", cure="leave it out")
    if root == "gate" and trained_only:
        raise RecipeError(f"{path} is read by the gate, which stop: train leaves out", cure="stop: gate")
    if inside := [other for other in others if other.startswith(f"{path}.")]:
        raise RecipeError(f"{path} holds {inside[0]}", why="Which of both would win?", cure="keep one of them")
    section: Any = identity(base)
    walked: list[str] = []
    for part in path.split(".")[:-1]:
        section, walked = section[part], [*walked, part]
        if section is None:
            name = ".".join(walked)
            raise RecipeError(f"{path}: {name} is null in the recipe", cure=f"give {name} in the recipe, or sweep whole values of {name}")  # fmt: skip


def _refuse_unknown(path: str) -> None:
    section: Any = Recipe
    walked = ""
    for part in path.split("."):
        if not is_dataclass(section):
            raise RecipeError(f"parameter {path}: {walked} has no parts that a sweep can name", cure=f"whole values of {walked}")  # fmt: skip
        names = {f.name for f in fields(section)}
        if part not in names:
            raise RecipeError(
                f"unknown parameter {path}: {did_you_mean(part, names)}",
                why="A misspelt parameter would give trials that do not differ.",
                cure=f"a name in {walked or 'the recipe'}",
            )
        section, walked = _section_of(get_type_hints(section)[part]), f"{walked}.{part}".lstrip(".")


def _section_of(hint: Any) -> Any:
    """The dataclass that a field holds, itself or beside None; a list of them has no names."""
    if get_origin(hint) in (tuple, list) or (
        isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping)
    ):
        return None
    return next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)


def with_value(document: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with another value at a path."""
    head, _, rest = path.partition(".")
    return {**document, head: with_value(document[head], rest, value) if rest else value}
