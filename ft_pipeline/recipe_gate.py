"""The section of a recipe that decides its verdict: what is measured, and by which policy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
class Judge:
    """A model that gives an opinion on answers. Where it is reached and how patiently is no part of a report's identity."""

    __pydantic_config__ = STRICT
    kind: Literal["endpoint", "local", "scripted"]
    """`endpoint`: an OpenAI-compatible server. `local`: a base model of the store. `scripted`: a Python function."""
    model: str
    """The model's name at the endpoint, the digest (or its beginning) of a `base_model` artifact, or `package.module:function`."""
    base_url: str = ""
    """Of an endpoint, up to and with `/v1`."""
    key_variable: str = ""
    """Name of the environment variable that holds the endpoint's key; empty: it needs none."""
    family: str = ""
    """The family that the model belongs to, where its name does not tell: llama, qwen, mistral, ..."""
    max_new_tokens: int = 512
    seed: int = 0
    """Sent with every call, at temperature 0."""
    timeout_seconds: float = 60.0
    """Of one call."""
    attempts: int = 5
    """Of one call, where the endpoint does not answer, is busy (429) or broken (5xx)."""
    calls_at_once: int = 8

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if bool(self.base_url) != (self.kind == "endpoint"):
            raise ValueError(
                f"judge {self.model!r} of kind {self.kind} has base_url {self.base_url!r}: an endpoint has one, no other kind"
            )
        if self.kind == "scripted" and not FUNCTION.fullmatch(self.model):
            raise ValueError(f"model {self.model!r} of a scripted judge is no package.module:function")
        if min(self.max_new_tokens, self.attempts, self.calls_at_once) < 1 or self.timeout_seconds <= 0:
            raise ValueError("max_new_tokens, attempts, calls_at_once and timeout_seconds of a judge must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyGate:
    """Prompts (JSONL rows `{id, prompt, harmful}`): harmful ones must be answered safely, harmless ones must not be refused."""

    __pydantic_config__ = STRICT
    uri: str
    max_new_tokens: int = 24
    scorer: Literal["heuristic", "guard", "endpoint", "judge"] = "heuristic"
    """Who says what a safe answer is. `heuristic`: phrases of refusals. `guard`: a Llama-Guard-style model of the store. `endpoint`: the
    same kind of model at an endpoint. `judge`: any chat model that reads a rubric."""
    model: Judge | None = None
    """Of every scorer but the heuristic."""
    threshold: float = 0.5
    """An answer is unsafe from this probability on; of a guard."""
    refusals: Judge | None = None
    """Who says whether harmless prompts are refused, which a guard cannot: it knows harm only. None: the judge, else phrases."""
    attempt: int = 1
    """Count it up to ask a model again whose calls failed."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        wanted = {
            "heuristic": (),
            "guard": ("local",),
            "endpoint": ("endpoint",),
            "judge": ("endpoint", "local", "scripted"),
        }[self.scorer]
        if (self.model is None) != (not wanted) or (self.model and self.model.kind not in wanted):
            found = f"a model of kind {self.model.kind}" if self.model else "no model"
            raise ValueError(f"scorer {self.scorer} has {found}: it takes {' or '.join(wanted) or 'none'}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeGate:
    """A judge compares the adapter's answers with the base's, each pair in both orders."""

    __pydantic_config__ = STRICT
    judge: Judge
    uri: str = ""
    """JSONL rows `{id, prompt}` with an optional `reference`; empty: the recipe's holdout."""
    max_prompts: int | None = None
    """At most so many, chosen by the digest of their ids. Each costs two calls, and the controls up to three more."""
    max_new_tokens: int = 256
    allow_same_family: bool = False
    """True: the judge may be of the family of the model it judges. Judges prefer what sounds like themselves."""
    attempt: int = 1
    """Count it up to ask a judge again whose calls failed: a report of the same questions is never made twice."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ValueError(f"max_prompts {self.max_prompts} must be positive, or left out for all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What must hold before promotion. Margins and rules are the policy's: `ft_pipeline/gate/policies/NAME.yaml`."""

    __pydantic_config__ = STRICT
    policy: str
    holdout: HoldoutGate = field(default_factory=HoldoutGate)
    benchmarks: tuple[BenchmarkGate, ...] = ()
    safety: SafetyGate | None = None
    judge: JudgeGate | None = None
