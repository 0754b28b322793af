"""What a request for a job may say: OpenAI's body, and the specification's. Every field is honoured, or refused with the reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Auto = Literal["auto"]
FileId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Metadata = dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]]
MOST_SEED = 2**31 - 1


class Body(BaseModel):
    """Unknown fields are refused: what is not read would look as if it were honoured."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Hyperparameters(Body):
    """OpenAI's knobs, and the specification's LoRA fields."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=100, strict=True)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=8192, strict=True)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] | None = None
    beta: Auto | Annotated[float, Field(gt=0, le=100)] | None = None
    lora_rank: Annotated[int, Field(ge=1, le=512, strict=True)] | None = None
    lora_alpha: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None
    lora_target_modules: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = None
    compute_multiplier: Auto | None = None
    eval_interval: Auto | Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None = None
    eval_samples: Auto | None = None
    reasoning_effort: Literal["default"] | None = None


class Supervised(Body):
    """OpenAI's `method.supervised`."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Body):
    """OpenAI's `method.dpo`."""

    hyperparameters: Hyperparameters | None = None


class Reinforcement(Body):
    """OpenAI's `method.reinforcement`. Of its graders those that a built-in reward computes exactly (web/job_ask.py)."""

    grader: dict[str, Any]
    hyperparameters: Hyperparameters | None = None


class Method(Body):
    """OpenAI's `method`."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class EvalConfig(Body):
    """The specification's `eval_config`."""

    run_mmlu_regression: bool = False
    task_eval_file: FileId | None = None
    safety_scan: bool = False


class PlatformExtras(Body):
    """What OpenAI has no field for (`extra_body={"platform": {...}}`)."""

    recipe: dict[str, Any] = Field(default_factory=dict, description="Sections of a recipe, or a whole one.")
    placement: dict[str, Any] = Field(default_factory=dict, description="GPUs, nodes, spot: changes no weight.")
    eval_config: EvalConfig | None = None


MethodName = Literal["lora", "qlora", "sft", "dpo", "cpt"]


class Common(Body):
    """What both bodies have."""

    training_file: FileId
    validation_file: FileId | None = None
    hyperparameters: Hyperparameters | None = None
    method: MethodName | Method | None = None
    metadata: Annotated[Metadata, Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED, strict=True)] | None = None
    suffix: Annotated[str, StringConstraints(max_length=64)] | None = None
    platform: PlatformExtras = Field(default_factory=PlatformExtras)


class JobBody(Common):
    """POST /v1/fine_tuning/jobs."""

    model: Name
    integrations: Annotated[list[dict[str, Any]], Field(max_length=5)] | None = None


class AliasBody(Common):
    """POST /v1/fine-tuning/jobs, as the specification has it."""

    base_model: Name
    eval_config: EvalConfig | None = None
