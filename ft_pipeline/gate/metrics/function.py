"""A metric of the recipe's own: `package.module:function`, a part of the report's identity by the digest of its source."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from ft_pipeline.errors import DataError, RecipeError
from ft_pipeline.gate.metrics.metric import Metric
from ft_pipeline.named_function import function_named, source_of
from ft_pipeline.store.fingerprint import code_digest


def is_function(name: str) -> bool:
    """True for `package.module:function`."""
    return ":" in name


def function_code(name: str) -> str:
    """Digest of the module that defines the function, which is not imported. Raises RecipeError when there is no source."""
    return code_digest(source_of(name, what="holdout metric"))


def function_metric(name: str, parameters: Mapping[str, Any]) -> Metric:
    """`f(reference, answer, **parameters) -> share in [0, 1]`. Raises RecipeError when it cannot be called so."""
    function = function_named(name, what="holdout metric")
    try:
        inspect.signature(function).bind("reference", "answer", **parameters)
    except TypeError as error:
        raise RecipeError(
            f"holdout metric {name} with parameters {dict(parameters)} cannot be called: {error}",
            cure="def metric(reference: str, answer: str, *, your_parameter) -> float",
        ) from None

    def score(reference: str, answer: str) -> float:
        try:
            made = function(reference, answer, **parameters)
        except Exception as error:
            raise DataError(
                f"holdout metric {name} failed on the answer {answer[:80]!r}: {type(error).__name__}: {error}",
                why="An answer that a metric cannot score would be missing in silence.",
                cure="return 0.0 for what is wrong, and test the function on an empty answer",
            ) from error
        return _share(name, made)

    return Metric(score=score)


def _share(name: str, made: Any) -> float:
    number = float(made) if isinstance(made, int | float) else math.nan
    if not 0 <= number <= 1:
        raise DataError(
            f"holdout metric {name} gave {made!r}, which is no share of 0 to 1",
            why="Margins are shares: what has another scale cannot be compared with them.",
            cure="return a number from 0.0 (wrong) to 1.0 (right)",
        )
    return number
