"""How a model looks: OpenAI's object, and under `platform` what stands behind it: adapter, base, data, evidence, stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from ft_pipeline.errors import FtError
from ft_pipeline.gate.artifact import VERDICTS
from ft_pipeline.jobs.offer import Base, Offer
from ft_pipeline.store.catalog import ModelVersion, Transition
from ft_pipeline.store.platform.events import MadeBy
from ft_pipeline.web import bases
from ft_pipeline.web.moments import unix
from ft_pipeline.web.platform import Platform

MOST_REMEMBERED = 4096
SHOWN = ("name", "kind", "verdict", "base", "adapter", "difference", "low", "high", "rows", "reason")


class ModelPlatform(BaseModel):
    """Of a base model all but type, base_model and uri are null."""

    type: Literal["fine-tuned", "base"]
    base_model: str | None
    uri: str | None = None
    """Where a base is from."""
    stage: str | None = None
    """none, dev, staging, production, archived."""
    artifact_uri: str | None = None
    artifact_type: str | None = None
    base_model_sha: str | None = None
    dataset_version: str | None = None
    """Digest of the curated data set; a dropped row is in its ledger."""
    eval_metrics: dict[str, Any] | None = None
    """Of the newest report on its base: verdict, task_score, safety_pass, `<benchmark>_delta`, and each gate."""
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_modules: list[str] | None = None
    recipe_sha256: str | None = None
    run_id: str | None = None
    job_id: str | None = None
    """None for a version of the command line."""
    training_file: str | None = None
    serving_pools: list[str] | None = None


class Model(BaseModel):
    """OpenAI's `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    platform: ModelPlatform


class Moved(BaseModel):
    """A move between stages, as history keeps it."""

    seq: int
    model: str
    from_stage: str
    to_stage: str
    actor: str
    approved_by: str | None
    reason: str
    created_at: int
    sha256: str
    """Covers this line and the one before it."""


@dataclass
class Shelf:
    """Looks up what stands behind versions; what a digest names never changes, so it is read once."""

    platform: Platform
    _metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    _bases: dict[str, str] = field(default_factory=dict)

    def model(self, version: ModelVersion, offer: Offer, made: MadeBy | None = None) -> Model:
        """The object of a version."""
        catalog, store = self.platform.catalog, self.platform.store
        reports = [r for r in catalog.reports(version.id) if r.base_digest == version.base_digest]
        report = reports[-1].report_digest if reports else version.report_digest
        return Model(
            id=version.label, created=unix(version.created_at), owned_by=version.tenant,
            platform=ModelPlatform(
                type="fine-tuned", base_model=self.base_name(version.base_digest, offer), stage=version.stage,
                artifact_uri=store.bucket.path(catalog.ref(version.adapter_digest).path), artifact_type=version.artifact_type,
                base_model_sha=version.base_digest, dataset_version=version.dataset_digest, eval_metrics=self._metrics_of(report),
                lora_rank=version.lora_rank, lora_alpha=version.lora_alpha,
                lora_modules=list(version.lora_modules) if version.lora_modules is not None else None,
                recipe_sha256=version.recipe_sha256, run_id=version.run_id, job_id=made.job_id if made else None,
                training_file=made.training_file if made else None, serving_pools=catalog.pools_of(version.id),
            ),
        )  # fmt: skip

    def base_name(self, digest: str, offer: Offer) -> str | None:
        """Of a base model; not remembered while it is not known."""
        if digest not in self._bases and (found := bases.name_of(self.platform, digest, offer)):
            self._bases[digest] = found
        return self._bases.get(digest)

    def _metrics_of(self, report_digest: str) -> dict[str, Any] | None:
        """None where the report is no longer in the store."""
        if report_digest not in self._metrics:
            try:
                ref = self.platform.catalog.ref(report_digest)
                said = json.loads(self.platform.store.fetch_file(ref, VERDICTS).read_bytes())
            except FtError:
                return None
            if len(self._metrics) >= MOST_REMEMBERED:
                self._metrics.clear()
            self._metrics[report_digest] = metrics_of(said)
        return self._metrics[report_digest]


def base_view(name: str, base: Base) -> Model:
    """A base model that may be trained on."""
    return Model(
        id=name, created=0, owned_by="platform", platform=ModelPlatform(type="base", base_model=name, uri=base.uri)
    )


def metrics_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """The specification's names of what a report measured, and each gate with its bounds."""
    made: dict[str, Any] = {"verdict": said["verdict"], "policy": said["policy"]}
    for gate in said["gates"]:
        if gate["verdict"] == "SKIPPED":
            continue
        if gate["kind"] == "holdout":
            made |= {"task_score": gate["adapter"], "task_delta": gate["difference"]}
        elif gate["kind"] == "benchmark":
            made[f"{gate['name']}_delta"] = gate["difference"]
        elif gate["kind"] == "safety":
            made["safety_pass"] = gate["verdict"] == "PASS"
    return made | {"gates": [{name: gate.get(name) for name in SHOWN} for gate in said["gates"]]}


def moved_view(move: Transition) -> Moved:
    """A line of history."""
    return Moved(
        seq=move.seq, model=move.model, from_stage=move.from_stage, to_stage=move.to_stage, actor=move.actor,
        approved_by=move.approved_by, reason=move.reason, created_at=unix(move.created_at), sha256=move.sha256,
    )  # fmt: skip
