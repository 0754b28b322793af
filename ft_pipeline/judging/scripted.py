"""Judges without a model: a Python function, and a transcript that is read again."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import RecipeError
from ft_pipeline.judging.forms import Form, Messages
from ft_pipeline.judging.judge import NoReply, Reply
from ft_pipeline.store.fingerprint import code_digest, sha256_json


@dataclass(frozen=True)
class Scripted:
    """`f(*, form, **fields) -> label or text`: form is a name of forms.py; fields are prompt, first, second, reference or prompt, answer."""

    function: Callable[..., str]

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """As Speaker; the function's exceptions go through, because a broken function is a mistake and no silent judge."""
        return Reply(text=self.function(form=form.name, **fields))


def function_of(name: str) -> Callable[..., str]:
    """The function `package.module:name`. Raises RecipeError."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise RecipeError(f"scripted judge {name}: {error}", cure="install the package that holds it") from None
    if not inspect.isfunction(function):
        raise RecipeError(f"scripted judge {name}: {module} defines no function {attribute!r}")
    return function


def source_of(name: str) -> str:
    """Digest of the module that defines the function, which is not imported. Raises RecipeError when there is no source."""
    module = name.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise RecipeError(
            f"scripted judge {name}: no module {module} with Python source",
            why="What decides a verdict is versioned by its source.",
            cure="install the package that holds it, and name package.module:function",
        )
    return code_digest(Path(found.origin))


class Replay:
    """Says again what is in the rows of a transcript: a verdict is recomputed without its judge."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._said = {_key(row["form"], tuple(row["request"])): row for row in rows if row["request"]}

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """As Speaker. A call that failed then fails again; one that was not made is a failure too."""
        row = self._said.get(_key(form.name, form.messages(fields)))
        if row is None:
            raise NoReply("unknown", "the transcript holds no such call")
        if not row["response"]:
            cause, _, detail = row["error"].partition(": ")
            raise NoReply(cause, detail)
        return Reply(text=row["response"])


def _key(form: str, request: Messages) -> str:
    return sha256_json([form, list(request)])
