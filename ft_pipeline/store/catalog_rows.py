"""What the catalog hands out: model versions, transitions, and how a model is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ft_pipeline.errors import UserError
from ft_pipeline.store.fingerprint import sha256_json

Stage = Literal["none", "dev", "staging", "production", "archived"]
STAGES: tuple[Stage, ...] = ("none", "dev", "staging", "production", "archived")
NEXT: dict[str, tuple[str, ...]] = {
    "none": ("dev",),
    "dev": ("staging", "archived"),
    "staging": ("production", "archived"),
    "production": ("archived",),
    "archived": ("production",),
}
"""Stage -> the stages that may follow. archived > production is the rollback."""
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(?P<tenant>[^/@:]+)/(?P<name>[^/@:]+)(@(?P<version>\d+|latest)|:(?P<stage>[a-z]+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewModel:
    """What has to be known of a model before it is a version. Every digest is 64 lower-case hex digits."""

    tenant: str
    name: str
    base_digest: str
    dataset_digest: str
    """Of the curated dataset."""
    adapter_digest: str
    report_digest: str
    recipe_sha256: str
    run_id: str
    code: str
    artifact_type: Literal["lora_adapter", "full_model"] = "lora_adapter"
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_modules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for field in ("base_digest", "dataset_digest", "adapter_digest", "report_digest", "recipe_sha256"):
            require_sha256(field, getattr(self, field))
        if self.artifact_type == "lora_adapter" and not self.lora_rank:
            raise UserError(f"{self.tenant}/{self.name}: a lora_adapter has a rank, got {self.lora_rank!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """One version of a model line. Only `stage` and `registered_digest` change over time."""

    id: int
    tenant: str
    name: str
    version: int
    stage: Stage
    base_digest: str
    dataset_digest: str
    adapter_digest: str
    report_digest: str
    registered_digest: str | None
    """Of the registered_model artifact, once attested."""
    recipe_sha256: str
    run_id: str
    code: str
    artifact_type: str
    lora_rank: int | None
    lora_alpha: int | None
    lora_modules: tuple[str, ...] | None
    created_at: str

    @property
    def line(self) -> str:
        """`tenant/name`."""
        return f"{self.tenant}/{self.name}"

    @property
    def label(self) -> str:
        """`tenant/name@3`."""
        return f"{self.line}@{self.version}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What an evaluation said of a version on a base: with `passed` the version is certified there."""

    base_digest: str
    suite_sha256: str
    passed: bool
    report_digest: str
    created_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """One move of one version between stages. `sha256` covers this row and the one before it, so history cannot be edited."""

    seq: int
    model: str
    """`tenant/name@3`."""
    from_stage: str
    to_stage: str
    report_id: int | None
    actor: str
    approved_by: str | None
    reason: str
    created_at: str
    previous_sha256: str
    sha256: str

    def seal(self) -> str:
        """What `sha256` must be."""
        return sha256_json(
            [self.previous_sha256, self.seq, self.model, self.from_stage, self.to_stage, self.report_id,
             self.actor, self.approved_by, self.reason, self.created_at]
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelName:
    """A parsed `tenant/name`, `tenant/name@3`, `tenant/name@latest` or `tenant/name:production`."""

    tenant: str
    name: str
    version: int | Literal["latest"] | None
    stage: str | None


def parse_model_name(text: str) -> ModelName:
    """The parts of a model's name. Raises UserError with the forms that are understood."""
    found = _NAME.fullmatch(text)
    if found is None or (found["stage"] and found["stage"] not in STAGES):
        raise UserError(
            f"{text!r} does not name a model",
            cure=f"write tenant/name, tenant/name@3, tenant/name@latest or tenant/name:STAGE ({', '.join(STAGES[1:])})",
        )
    version = found["version"]
    return ModelName(
        tenant=found["tenant"],
        name=found["name"],
        version=int(version) if version and version.isdigit() else "latest" if version else None,
        stage=found["stage"],
    )


def require_sha256(name: str, value: str) -> None:
    """Raises UserError when the value is not 64 lower-case hex digits."""
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise UserError(f"{name} is {value!r}", why="A digest is 64 lower-case hex digits of a sha256.")
