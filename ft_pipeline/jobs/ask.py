"""What a tenant asks for, in one shape: OpenAI's body, the specification's body and the platform's own fields come together here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ft_pipeline.jobs.presets import Method

Auto = Literal["auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A file of the tenant's own that rows are read from."""

    id: str
    uri: str
    """Where the workers read it."""
    count: int | None = None
    """Rows that can be trained on, where its validation counted them."""
    tokens: int | None = None
    """In all rows: counted there, else estimated from the file's bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyper:
    """The knobs of a request. None: not said; "auto" is the same."""

    n_epochs: int | None = None
    batch_size: int | None = None
    """Windows or pairs of one optimizer step."""
    learning_rate_multiplier: float | None = None
    """Times the preset's rate."""
    beta: float | None = None
    """dpo."""
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_target_modules: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """The specification's `eval_config`."""

    run_mmlu_regression: bool = False
    task_eval_file: Rows | None = None
    """The holdout, in place of rows of the training file."""
    safety_scan: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request for a training job."""

    tenant: str
    model: str
    """A name of the offer."""
    training: Rows
    validation: Rows | None = None
    method: Method = "lora"
    hyper: Hyper = field(default_factory=Hyper)
    rewards: tuple[Mapping[str, Any], ...] = ()
    """grpo: as in a recipe."""
    seed: int = 0
    suffix: str | None = None
    examination: Examination | None = None
    sections: Mapping[str, Any] = field(default_factory=dict)
    """`platform.recipe`: sections, or a whole recipe, laid over what the request composes."""
