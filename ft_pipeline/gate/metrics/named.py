"""The metrics by the names of `ft_pipeline/recipe_gate.py`, which also says what parameters they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ft_pipeline.gate.metrics import corpus, structured, text
from ft_pipeline.gate.metrics.function import function_metric, is_function
from ft_pipeline.gate.metrics.metric import Corpus, Metric, Score


def _each(score: Callable[..., float], **parameters: Any) -> Metric:
    bound: Score = partial(score, **parameters)
    return Metric(score=bound)


BUILDERS: Mapping[str, Callable[..., Metric]] = {
    "exact_match": partial(_each, text.exact_match),
    "token_f1": partial(_each, text.token_f1),
    "rouge_1": partial(_each, text.rouge_1),
    "rouge_2": partial(_each, text.rouge_2),
    "rouge_l": partial(_each, text.rouge_l),
    "bleu": corpus.bleu,
    "chrf": corpus.chrf,
    "macro_f1": corpus.macro_f1,
    "json_schema": structured.json_schema,
    "json_equal": structured.json_equal,
    "regex": structured.regex,
    "numeric": structured.numeric,
}
"""Name -> what makes the metric of its parameters."""


def metric_of(name: str, parameters: Mapping[str, Any]) -> Metric:
    """The metric of a recipe's section, which was validated there. Raises RecipeError for a function that is none."""
    return function_metric(name, parameters) if is_function(name) else BUILDERS[name](**parameters)


def corpus_of(name: str, parameters: Mapping[str, Any]) -> Corpus | None:
    """The score of a whole set, where the metric has one. Imports nothing of the recipe's."""
    return None if is_function(name) else BUILDERS[name](**parameters).corpus
