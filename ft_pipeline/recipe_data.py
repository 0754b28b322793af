"""The sections of a recipe that decide which rows are trained on, and how they become windows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

STRICT = {"extra": "forbid", "strict": True}
PiiKind = Literal["email", "phone", "ip", "card", "iban", "ssn", "secret"]
Layout = Literal[
    "auto", "chat", "sharegpt", "alpaca", "prompt_completion", "preference", "kto", "rlvr", "stepwise", "text"
]


STEP_SEPARATOR = "\n"
"""Of the steps of a solution; TRL's default."""
DATASET = "dataset"
"""What the recipe's own dataset is called among its sources."""
NAME_RULE = "lower-case letters, digits, - and _, at most 60"


def is_name(text: str) -> bool:
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
    """The raw rows: JSONL (.gz, .zst), Parquet, a folder of them, `hf://`, `s3://`, `https://`, `store://` (`data judge-pairs`), `blob://` (uploaded)."""

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
    split: Literal["validation", "holdout"] | None = None
    """All its rows go there, with the variants of them that other sources hold: none is trained on. None: by hash, as the dataset's own."""

    def __post_init__(self) -> None:
        if self.split and self.share is not None:
            raise ValueError(
                f"source {self.name}: share {self.share} is of the train rows, split {self.split} gives none"
            )
        if not is_name(self.name) or self.name == DATASET:
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
    step_separator: str = STEP_SEPARATOR
    """Layout stepwise: written behind each step, whose label is read there. A process reward cuts completions at it."""

    def __post_init__(self) -> None:
        if not self.step_separator:
            raise ValueError("step_separator is empty: no token would say where a step ends")
