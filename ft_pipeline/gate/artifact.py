"""What the gate hands on: verdicts with their numbers and reasons, in an `eval_report` that anybody can read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from ft_pipeline.errors import IntegrityError
from ft_pipeline.recipe import STRICT
from ft_pipeline.store.fingerprint import sha256_json

VERDICTS = "verdicts.json"
SAMPLES = "samples.parquet"
REPORT = "report.html"
FOREST = "forest.png"
RECERTIFICATION = "recertification.json"
"""Of an adapter whose base moved: the verdict of gate/bump, beside the files that every report has."""
RECERTIFIED_KIND = "recertification"
JUDGED = frozenset({"adapter", "base", "old_base", "report", "old_report"})
"""Roles of what is measured; the other parents of a report are what it is measured on."""

Kind = Literal[
    "holdout", "benchmark", "safety", "over_refusal", "judge", "preflight", "retain", "retain_safety", "fidelity"
]


class Verdict(StrEnum):
    """What a gate says. Only PASS promotes."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    """The evidence supports neither PASS nor FAIL."""
    ERROR = "ERROR"
    """It could not be measured, for example a score that is not a number."""
    SKIPPED = "SKIPPED"
    """It was not measured: the recipe names no evidence for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """One gate. Scores are shares in [0, 1]; None where nothing was measured."""

    __pydantic_config__ = STRICT
    name: str
    kind: Kind
    verdict: Verdict
    base: float | None = None
    adapter: float | None = None
    difference: float | None = None
    """adapter - base."""
    low: float | None = None
    """One-sided lower bound of what the rule judges: of `difference`, for safety of `adapter`."""
    high: float | None = None
    """One-sided upper bound of the same."""
    threshold: float | None = None
    """Where the rule draws the line on the axis of `low` and `high`."""
    rows: int = 0
    rule: str = ""
    """The policy's rule in words."""
    reason: str = ""
    """Why this verdict, in a sentence for a person who knows no statistics."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else was counted: gains, losses, McNemar p, scorer, rows left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """How often the base differs from itself when it is asked again in batches of other shapes."""

    __pydantic_config__ = STRICT
    suite: str
    rows: int
    differing: int
    """Answers with another score."""

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.differing / self.rows


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """`verdicts.json`: the overall verdict and every gate behind it."""

    __pydantic_config__ = STRICT
    verdict: Verdict
    policy: str
    reason: str
    """The sentence that says which gate decided."""
    gates: tuple[GateResult, ...]
    noise: Noise | None = None
    """Of the engine that measured; None where nothing could be asked twice."""

    @property
    def passed(self) -> bool:
        """True when promotion is backed by evidence."""
        return self.verdict is Verdict.PASS

    def gate(self, name: str) -> GateResult:
        """The gate of a name. Raises KeyError."""
        return {g.name: g for g in self.gates}[name]


def suite_sha256(parents: Mapping[str, Any]) -> str:
    """Digest of everything that an adapter was measured on: suites and holdout. `parents`: role -> Ref."""
    return sha256_json({role: ref.digest for role, ref in parents.items() if role not in JUDGED})


def report_json(report: EvalReport) -> bytes:
    """`verdicts.json`: stable bytes for equal reports."""
    return (json.dumps(asdict(report), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_report(artifact: Any) -> EvalReport:
    """The report of an `eval_report` artifact (anything with `file(name) -> Path`). Raises IntegrityError."""
    from pydantic import TypeAdapter, ValidationError

    path: Path = artifact.file(VERDICTS)
    try:
        return TypeAdapter(EvalReport).validate_json(path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(
            f"{path} is not an eval report: {error.errors()[0]['msg']} at {error.errors()[0]['loc']}",
            cure="run the recipe again with this version: a changed gate makes a new report",
        ) from None


def evaluation_of(recipe: Any, parents: Mapping[str, Any], **where: Any) -> Any:
    """The job that puts a whole model through the gates of its recipe in the place of the adapter; publishes the suites.

    `parents`: adapter (the whole model), base, curated. `where`: store, settings, placement.
    """
    from ft_pipeline.gate.evaluation import evaluation_job, publish_suites

    store = where.pop("store")
    suites = publish_suites(recipe.gate, store, where["settings"])
    return evaluation_job(recipe.gate, {**parents, **suites}, key=recipe.key, **where)


def holdout_tasks(curated: Any) -> list[Any]:
    """The holdout rows of a `curated_dataset` that have an answer: gate.holdout.Task."""
    from ft_pipeline.gate.holdout import read_tasks

    return read_tasks(curated)[0]


def write_joined(draft: Any, gates: Sequence[GateResult]) -> EvalReport:
    """Writes a report of gates that were measured apart, under the policy of the draft's config."""
    from ft_pipeline.gate.policy import parse_policy
    from ft_pipeline.gate.report import write_report
    from ft_pipeline.gate.verdicts import overall

    config = draft.spec.config
    policy = parse_policy(config["policy"], origin=config["policy_name"])
    report = overall(gates, policy, name=config["policy_name"])
    write_report(draft, report, {})
    return report
