"""A Python function that a recipe names: `package.module:function`. Versioned by its source, so the module is found without being run."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ft_pipeline.errors import RecipeError


def source_of(name: str, *, what: str) -> Path:
    """The file that defines the function; the module is not imported. `what`: who names it, for the error. Raises RecipeError."""
    module = name.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise RecipeError(
            f"{what} {name}: no module {module} with Python source",
            why="What decides a result is versioned by its source.",
            cure="install the package that holds it, and name package.module:function",
        )
    return Path(found.origin)


def function_named(name: str, *, what: str) -> Callable[..., Any]:
    """The function itself. Raises RecipeError when the module does not define one of that name."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise RecipeError(f"{what} {name}: {error}", cure="install the package that holds it") from None
    if not inspect.isfunction(found) or found.__module__ != module:
        raise RecipeError(
            f"{what} {name}: {module} defines no function {attribute!r}",
            why="It is versioned by that module's source, so it must be written in it.",
        )
    return found
