"""What backs a promotion: the eval report as it is in the store, and the sentence with which it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import GateRefused, IntegrityError
from ft_pipeline.gate.artifact import VERDICTS, suite_sha256
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Manifest, Ref


@dataclass(frozen=True, kw_only=True, slots=True)
class Override:
    """What a person said about a report that is no PASS, signed."""

    ref: Ref
    report: Ref
    gates: tuple[str, ...]
    """Names of the gates that are overruled, those of earlier overrides included."""
    reason: str
    actor: str
    at: str
    """ISO time."""
    signed_by: str
    """Id of the key."""

    @property
    def principal(self) -> str:
        """How history names it."""
        return f"override:{self.ref.digest[:12]}"

    @property
    def told(self) -> str:
        """One sentence for a person."""
        return f"{self.actor} overruled {', '.join(self.gates)}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One eval report."""

    manifest: Manifest
    verdict: str
    policy: str
    auto_promote: bool
    """True when the policy lets a PASS go to production without a person."""
    reason: str
    gates: tuple[Mapping[str, Any], ...]
    """name, kind, verdict, base, adapter, difference, low, high, rows, rule, reason."""
    override: Override | None = None

    @property
    def passed(self) -> bool:
        """True when the report alone backs a promotion."""
        return self.verdict == "PASS"

    @property
    def backed(self) -> bool:
        """True when the report backs a promotion, or a person overruled every gate that stands in the way."""
        overruled = set(self.override.gates) if self.override else set()
        stops = in_the_way(self)
        return self.passed or (bool(stops) and all(g["name"] in overruled for g in stops))

    @property
    def failing(self) -> list[Mapping[str, Any]]:
        """The gates that stand in the way."""
        return [g for g in self.gates if g["verdict"] not in ("PASS", "SKIPPED")]

    @property
    def suite_sha256(self) -> str:
        """Digest of everything the adapter was measured on: suites and holdout."""
        return suite_sha256(self.manifest.parents)


def in_the_way(evidence: Evidence) -> list[Mapping[str, Any]]:
    """The gates that a PASS lacks: those that say no, and those that the policy requires and nobody measured."""
    if evidence.passed:
        return []
    required = evidence.manifest.config["policy"].get("required", ())
    return [*evidence.failing, *(g for g in evidence.gates if g["verdict"] == "SKIPPED" and g["kind"] in required)]


def read_evidence(store: Store, ref: Ref) -> Evidence:
    """The report's verdict and gates, its files verified. Raises IntegrityError."""
    artifact = store.fetch(ref)
    path = artifact.file(VERDICTS)
    try:
        body = json.loads(path.read_bytes())
        rules = artifact.manifest.config["policy"]
        return Evidence(
            manifest=artifact.manifest, verdict=body["verdict"], policy=body["policy"],
            auto_promote=rules.get("auto_promote", False) is True,
            reason=body.get("reason", ""), gates=tuple(body["gates"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not an eval report: {error}", cure="run the recipe again") from None


def require_pass(evidence: Evidence, model: str) -> None:
    """Raises GateRefused with the failing gates and their reasons unless the report says PASS or a person overruled them."""
    if evidence.backed:
        return
    overruled = evidence.override.gates if evidence.override else ()
    failing = [g for g in evidence.failing if g["name"] not in overruled]
    names = ", ".join(str(g["name"]) for g in failing) or "no gate was measured"
    raise GateRefused(
        f"{model} is refused: the report {evidence.manifest.digest[:12]} says {evidence.verdict} ({names})",
        why="\n".join(f"{g['name']}: {g['reason']}" for g in failing) or evidence.reason,
        cure="mend the data or the recipe and run it again; INCONCLUSIVE needs more rows in the suite",
    )


def require_about(evidence: Evidence, *, adapter: Ref, base: Ref) -> None:
    """Raises GateRefused when the report is about another adapter or base than the newest ones."""
    for role, live in (("adapter", adapter), ("base", base)):
        judged = evidence.manifest.parents.get(role)
        if judged is None or judged.digest != live.digest:
            raise GateRefused(
                f"the report {evidence.manifest.digest[:12]} is about {role} {judged.digest[:12] if judged else 'nothing'}, "
                f"the live one is {live.digest[:12]}",
                why="A verdict holds for the adapter and the base it was measured on, for no other pair.",
                cure="run the gate again: materialize eval_report",
            )
