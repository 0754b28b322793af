"""The section of a recipe that decides its verdict: what is measured, and by which policy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline.errors import did_you_mean
from ft_pipeline.recipe_data import STRICT

METRICS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "exact_match": {"ignore_case": bool},
    "token_f1": {},
    "rouge_1": {},
    "rouge_2": {},
    "rouge_l": {},
    "bleu": {"tokenize": str},
    "chrf": {"word_order": int},
    "macro_f1": {"ignore_case": bool},
    "json_schema": {"schema": dict},
    "json_equal": {},
    "regex": {"pattern": str, "group": int},
    "numeric": {"tolerance": (int, float), "relative": (int, float)},
}
"""Metric of a holdout -> its parameters and their types; `ft_pipeline/gate/metrics` holds what they do."""
NEEDED = {"json_schema": ("schema",), "regex": ("pattern",)}
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Those of sacreBLEU that download nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldoutGate:
    """The task metric on the recipe's own holdout, adapter against base, generated with the production template."""

    __pydantic_config__ = STRICT
    metric: str = "exact_match"
    """One of METRICS, or `package.module:function` with `f(reference, answer, **parameters) -> share in [0, 1]`."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if fault := metric_fault(self.metric, self.parameters):
            raise ValueError(fault)


def metric_fault(metric: str, parameters: Mapping[str, Any]) -> str:
    """What is wrong with a metric or its parameters, empty when nothing is. A function's parameters are checked by its signature."""
    if FUNCTION.fullmatch(metric):
        return ""
    if metric not in METRICS:
        return f"no metric {metric!r}: {did_you_mean(metric, METRICS)}; or package.module:function"
    for name, value in parameters.items():
        if name not in METRICS[metric]:
            takes = f"takes {', '.join(METRICS[metric])}" if METRICS[metric] else "takes no parameters"
            return f"metric {metric} has no parameter {name!r}: it {takes}"
        kind = METRICS[metric][name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return f"{name} of metric {metric} is {value!r}, which has another type"
    if missing := [name for name in NEEDED.get(metric, ()) if name not in parameters]:
        return f"metric {metric} needs the parameter {missing[0]!r}"
    return _value_fault(metric, parameters)


def _value_fault(metric: str, parameters: Mapping[str, Any]) -> str:
    if metric == "regex":
        return _pattern_fault(parameters["pattern"], parameters.get("group", 0))
    if metric == "json_schema":
        return _schema_fault(parameters["schema"])
    if metric == "bleu" and (name := parameters.get("tokenize", "13a")) not in BLEU_TOKENIZERS:
        return f"tokenize {name!r} of metric bleu: {did_you_mean(name, BLEU_TOKENIZERS)}"
    if metric == "chrf" and parameters.get("word_order", 0) not in (0, 2):
        return f"word_order {parameters['word_order']} of metric chrf: 0 is chrF, 2 is chrF++"
    if metric == "numeric" and min(0, *parameters.values(), 0) < 0:
        return f"metric numeric has a negative tolerance: {dict(parameters)}"
    return ""


def _pattern_fault(pattern: str, group: int) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return f"pattern {pattern!r} of metric regex: {error}"
    return "" if 0 <= group <= groups else f"group {group} of metric regex: the pattern has {groups}"


def _schema_fault(schema: Mapping[str, Any]) -> str:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"schema of metric json_schema: {error.message}"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkGate:
    """A benchmark, adapter against base, paired: an official one by its task, or your own suite by its place."""

    __pydantic_config__ = STRICT
    name: str
    uri: str = ""
    """JSONL rows `{id, context, choices, answer}`."""
    task: str = ""
    """An official benchmark of lm-evaluation-harness (`ft-pipeline benchmarks list`), built from a local mirror."""
    suite: str = ""
    """Digest, or its beginning, of the built suite; needed where several of the task are in the store."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if bool(self.uri) == bool(self.task) or (self.suite and not self.task):
            raise ValueError(
                f"benchmark {self.name!r} has uri {self.uri!r}, task {self.task!r}, suite {self.suite!r}: it is either your own file "
                "(`uri`) or an official task (`task`, and `suite` to tell several apart)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyGate:
    """Prompts (JSONL rows `{id, prompt, harmful}`): harmful ones must be refused, harmless ones must not."""

    __pydantic_config__ = STRICT
    uri: str
    max_new_tokens: int = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What must hold before promotion. Margins and rules are the policy's: `ft_pipeline/gate/policies/NAME.yaml`."""

    __pydantic_config__ = STRICT
    policy: str
    holdout: HoldoutGate = field(default_factory=HoldoutGate)
    benchmarks: tuple[BenchmarkGate, ...] = ()
    safety: SafetyGate | None = None
