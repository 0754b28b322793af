"""A recipe: every field changes the weights or the verdict. What does not (GPUs, spot, checkpoints) is a Placement.

A recipe is one whole YAML file, or the same object by REST: strict, no includes, no inheritance. Each section belongs to one
room, which hashes only its own section and its parents' digests: changing one field recomputes only what depends on it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from ft_pipeline.cron import cron_fault
from ft_pipeline.errors import NotFoundError, RecipeError, did_you_mean
from ft_pipeline.store.fingerprint import sha256_json

STRICT = {"extra": "forbid", "strict": True}
PiiKind = Literal["email", "phone", "ip", "card", "iban", "ssn", "secret"]
Layout = Literal["auto", "chat", "sharegpt", "alpaca", "prompt_completion", "preference", "kto", "rlvr", "text"]


DATASET = "dataset"
"""What the recipe's own dataset is called among its sources."""
NAME_RULE = "lower-case letters, digits, - and _, at most 60"


def _is_name(text: str) -> bool:
    return text.replace("-", "").replace("_", "").isalnum() and text == text.lower() and len(text) <= 60


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """The base model: a folder, `hf://owner/name` or `s3://`; `home://` is FT_HOME."""

    __pydantic_config__ = STRICT
    uri: str
    revision: str | None = None
    """A 40-hex commit (Hub) or the content digest of the snapshot. Left out: pinned at first use and written down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The raw rows: JSONL (.gz, .zst), Parquet, a folder of them, `hf://`, `s3://` or `https://`."""

    __pydantic_config__ = STRICT
    uri: str
    revision: str | None = None
    layout: Layout = "auto"
    mapping: Mapping[str, str] | None = None
    """Key of a known layout -> Jinja template over the row's columns: `{prompt: "{{ question }}", completion: "{{ answer }}"}`."""
    licence: str = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows mixed into the dataset: a second one, or rows that keep the base model safe."""

    __pydantic_config__ = STRICT
    name: str
    uri: str
    revision: str | None = None
    layout: Layout = "auto"
    mapping: Mapping[str, str] | None = None
    licence: str = "unknown"
    share: float | None = None
    """Share of the kept train rows that come from here, 0 to 1; what is too much is drawn by hash of the row id. None: all of them."""
    cap: int | None = None
    """At most so many kept rows."""
    safety: bool = False
    """Counted as the safety share of the dataset."""

    def __post_init__(self) -> None:
        if not _is_name(self.name) or self.name == DATASET:
            raise ValueError(f"source {self.name!r}: {NAME_RULE}; {DATASET} is the recipe's own")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"source {self.name}: share {self.share} must be between 0 and 1")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"source {self.name}: cap {self.cap} must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Shares of the curated rows, cut by hash of the near-duplicate cluster, so that no variant straddles two splits."""

    __pydantic_config__ = STRICT
    validation: float = 0.05
    holdout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.validation, self.holdout) < 0 or self.validation + self.holdout >= 1:
            raise ValueError(f"validation {self.validation} + holdout {self.holdout} must leave rows to train on")


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Which near-equal rows are dropped: MinHash candidates, then exact Jaccard over character 5-grams."""

    __pydantic_config__ = STRICT
    policy: Literal["prompt_and_response", "whole_example", "off"] = "prompt_and_response"
    threshold: float = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Statistics of a row's text that speak of noise (Gopher, arXiv 2112.11446, A1.1)."""

    __pydantic_config__ = STRICT
    policy: Literal["off", "flag", "reject"] = "flag"


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """Which languages a row may be in. Off while `keep` is empty."""

    __pydantic_config__ = STRICT
    keep: tuple[str, ...] = ()
    """ISO 639-1 codes."""
    policy: Literal["flag", "reject"] = "reject"
    min_confidence: float = 0.8
    """A language that is recognised with less is taken as unknown, and an unknown one is kept."""

    def __post_init__(self) -> None:
        if wrong := [code for code in self.keep if not (len(code) == 2 and code.isalpha() and code.islower())]:
            raise ValueError(f"keep: {', '.join(wrong)} is not an ISO 639-1 code: two lower-case letters, as in `en`")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence {self.min_confidence} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pii:
    """Personal data and secrets in the text. redact: `[EMAIL]` stands there instead."""

    __pydantic_config__ = STRICT
    policy: Literal["off", "flag", "redact", "reject"] = "flag"
    kinds: tuple[PiiKind, ...] = get_args(PiiKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Toxicity:
    """Words that a dataset must not teach. Off while `words` is None."""

    __pydantic_config__ = STRICT
    words: str | None = None
    """URI of a word list, a word or phrase a line; matched at word boundaries only."""
    policy: Literal["flag", "reject"] = "flag"
    max_share: float = 0.05
    """The run stops when more than this share of the rows is toxic."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"max_share {self.max_share} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A benchmark whose test items must not be trained on: a local folder or file, `hf://`, `s3://`.

    JSON, JSON lines, CSV, TSV, Parquet or Arrow; of a folder with splits the test split.
    """

    __pydantic_config__ = STRICT
    name: str
    uri: str

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > 60:
            raise ValueError(f"benchmark name {self.name!r} must have 1 to 60 characters")


@dataclass(frozen=True, kw_only=True, slots=True)
class Contamination:
    """Rows that hold items of a benchmark, or of the recipe's own holdout: lexical only, by word n-grams."""

    __pydantic_config__ = STRICT
    benchmarks: tuple[Benchmark, ...] = ()
    policy: Literal["remove", "flag", "fail"] = "remove"
    holdout: Literal["off", "remove", "flag", "fail"] = "flag"
    """What happens to train rows that hold a row of the recipe's own holdout."""
    threshold: float = 0.5
    """Share of one item's n-grams in one row."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} must be above 0 and at most 1")
        names = [b.name for b in self.benchmarks]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"benchmark {repeated[0]!r} is named twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curate:
    """What a row must be to be trained on."""

    __pydantic_config__ = STRICT
    splits: Splits = field(default_factory=Splits)
    near_duplicates: NearDuplicates = field(default_factory=NearDuplicates)
    control_tokens: Literal["reject", "escape"] = "reject"
    quality: Quality = field(default_factory=Quality)
    language: Language = field(default_factory=Language)
    pii: Pii = field(default_factory=Pii)
    toxicity: Toxicity = field(default_factory=Toxicity)
    contamination: Contamination = field(default_factory=Contamination)
    max_rejected_share: float = 0.5
    """The run stops when more than this share of rows is rejected before duplicates are looked for."""
    max_rejected: Mapping[str, float] = field(default_factory=dict)
    """Reason -> largest share of the rows: `{role_order: 0.01}` stops the run above 1%."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encode:
    """How rows become fixed-length windows of tokens."""

    __pydantic_config__ = STRICT
    window_tokens: int = 4096
    overlong: Literal["reject", "truncate", "split"] = "reject"
    """Rows longer than a window. truncate: cut behind the mask; split: text and completions go on in further windows."""
    loss: Literal["assistant", "all"] = "assistant"
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): W + (alpha / rank) B A."""

    __pydantic_config__ = STRICT
    rank: int
    alpha: int
    dropout: float = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    quantize: Literal["none", "nf4"] = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetune:
    """How the weights change. A decision (learning rate, epochs, batch) has no default; a habit has one."""

    __pydantic_config__ = STRICT
    method: Literal["sft", "cpt", "dpo"]
    lora: Lora | None
    """`null` trains every weight."""
    learning_rate: float
    epochs: int
    windows_per_step: int
    """Windows in one optimizer step over all ranks."""
    windows_per_micro: int
    """Windows in one forward pass: composed independently of the world size."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    beta: float | None = None
    """DPO only."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.windows_per_step % self.windows_per_micro:
            raise ValueError(
                f"windows_per_step {self.windows_per_step} is not a multiple of windows_per_micro {self.windows_per_micro}"
            )
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate {self.learning_rate} must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldoutGate:
    """The task metric on the recipe's own holdout, adapter against base, generated with the production template."""

    __pydantic_config__ = STRICT
    metric: Literal["exact_match", "rouge_l", "token_f1"] = "exact_match"
    max_new_tokens: int = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkGate:
    """A multiple-choice suite (JSONL rows `{id, context, choices, answer}`), adapter against base, paired."""

    __pydantic_config__ = STRICT
    name: str
    uri: str


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One model line `tenant/name`: from raw rows to a gated adapter."""

    __pydantic_config__ = STRICT
    tenant: str
    name: str
    description: str = ""
    schedule: str | None = None
    """Cron expression of the retraining schedule. With `description` the only field that changes no weight: not hashed."""
    base_model: BaseModel
    dataset: Dataset
    mix: tuple[Source, ...] = ()
    """Further sources, mixed into the dataset."""
    curate: Curate = field(default_factory=Curate)
    encode: Encode = field(default_factory=Encode)
    finetune: Finetune
    gate: Gate

    def __post_init__(self) -> None:
        for part in (self.tenant, self.name):
            if not _is_name(part):
                raise ValueError(f"{part!r} is not a name: {NAME_RULE}")
        names = [source.name for source in self.mix]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"mix: two sources are called {twice}")
        if (shares := sum(source.share or 0 for source in self.mix)) >= 1:
            raise ValueError(f"mix: the shares add up to {shares:g}, which leaves nothing of the dataset itself")
        if self.schedule is not None and (fault := cron_fault(self.schedule)):
            raise ValueError(f"schedule {self.schedule!r}: {fault}")

    @property
    def key(self) -> str:
        """`tenant/name`: the partition key and the model line."""
        return f"{self.tenant}/{self.name}"


def identity(section: Any) -> dict[str, Any]:
    """The section as plain JSON values: what is hashed."""
    return json.loads(json.dumps(asdict(section), allow_nan=False))


def recipe_sha256(whole: Recipe) -> str:
    """Digest of every field that changes the weights or the verdict."""
    body = identity(whole)
    del body["description"], body["schedule"]
    return sha256_json(body)


def parse(document: Mapping[str, Any], *, origin: str) -> Recipe:
    """The recipe of a document. Raises RecipeError with the path, the value and the nearest valid name."""
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(json.dumps(document, allow_nan=False))
    except ValidationError as error:
        raise RecipeError(
            f"{origin} is not a recipe: " + "; ".join(_explain(e) for e in error.errors()),
            why="A recipe is hashed into every artifact, so nothing in it may be guessed.",
            cure="mend the named fields; `ft-pipeline plan RECIPE` checks without running",
        ) from None
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{origin} is not a recipe: {error}", cure="use plain YAML values, no NaN and no dates"
        ) from None


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)


def read(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises RecipeError, NotFoundError."""
    if not path.is_file():
        raise NotFoundError(f"no recipe at {path}", cure="`ft-pipeline recipes` lists those that are known")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a date like 2026-13-45
        raise RecipeError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise RecipeError(
            f"{path} holds {type(document).__name__}, not a mapping", cure="copy one of `ft-pipeline recipes`"
        )
    return parse(document, origin=str(path))


def _explain(error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    place = ".".join(loc) or "recipe"
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown key {place}: {did_you_mean(loc[-1], _names_at(loc[:-1]))}"
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "value_error":
        return f"{place}: {error['msg'].removeprefix('Value error, ')}"
    return f"{place}: {error['msg']} (got {error['input']!r})"


def _names_at(path: list[str]) -> set[str]:
    """The valid keys of the section at a path."""
    section: Any = Recipe
    for part in path:
        if not is_dataclass(section) or part.isdigit():
            continue
        hint = get_type_hints(section).get(part)
        section = next((t for t in (hint, *_inner(hint)) if is_dataclass(t)), section)
    return {f.name for f in fields(section)}


def _inner(hint: Any) -> list[Any]:
    return [t for arg in get_args(hint) for t in (arg, *get_args(arg))]
