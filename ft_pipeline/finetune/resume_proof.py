"""The exact-resume certificate: whether a killed run of a recipe ends in the same bytes. Facts only, the same on every run. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ft_pipeline.finetune.artifact import RESUME
from ft_pipeline.store.artifacts import Artifact

Verdict = Literal["bit-exact", "tolerance", "not provable", "not run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What the canary found: a tiny model of the same class, trained by the same code and recipe, killed, stopped and resumed."""

    verdict: Verdict
    reason: str = ""
    """Of what is not provable or was not run."""
    difference: float = 0.0
    """tolerance: the next power of ten above the largest relative difference of a trained tensor."""
    scope: Mapping[str, Any] = field(default_factory=dict)
    """What was tried: model, attention, device, dtype, adapter, processes, steps, and where it was killed and stopped."""

    def facts(self) -> dict[str, Any]:
        """As JSON values, with one sentence for people."""
        facts = {**asdict(self), "scope": dict(self.scope)}
        return {**facts, "told": told(facts)}


def told(facts: Mapping[str, Any]) -> str:
    """One sentence for a metadata page or a model card."""
    verdict = facts["verdict"]
    if verdict in ("not provable", "not run"):
        return f"{verdict}: {facts['reason']}"
    scope = facts["scope"]
    within = f" within {facts['difference']:.0e}" if verdict == "tolerance" else ""
    return (
        f"{verdict}{within} ({scope['model']} of the same class, {scope['device']}, {scope['dtype']}, killed in micro-batch "
        f"{scope['killed_in_micro']} and stopped in {scope['stopped_in_micro']} of {scope['micros']})"
    )


def not_run(reason: str) -> dict[str, Any]:
    """The facts of a certificate that nobody made."""
    return Proof(verdict="not run", reason=reason).facts()


def write_certificate(folder: Path, facts: Mapping[str, Any]) -> None:
    """`resume.json` of the artifact."""
    (folder / RESUME).write_text(json.dumps(facts, sort_keys=True, indent=1), encoding="utf-8")


def read_certificate(artifact: Artifact) -> dict[str, Any]:
    """The facts of an artifact; `not run` for one of an older version."""
    if RESUME not in artifact.manifest.files:
        return not_run("the artifact is older than the certificate")
    return json.loads(artifact.file(RESUME).read_bytes())
