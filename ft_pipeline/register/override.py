"""A person overrules a verdict: who, why, which gates of which report; signed, and each override names the one before it.

The report stays as it is. What is overruled reaches staging; production takes a second person, whatever the policy promotes by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft_pipeline.errors import GateRefused, UserError, did_you_mean
from ft_pipeline.register.attest import STATEMENT_TYPE, sign, verify_statement
from ft_pipeline.register.evidence import Evidence, Override, in_the_way, read_evidence
from ft_pipeline.register.keys import signing_key, trusted_keys
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.fingerprint import canonical_json, code_digest
from ft_pipeline.store.manifest import Ref, Spec

KIND = "override"
FILE = "override.json"
"""DSSE envelope around an in-toto Statement v1 about the report."""
PREDICATE_TYPE = "urn:ft-pipeline:override:v1"
SAFETY_KINDS = ("safety", "retain_safety")


def overrule(
    report: Ref, gates: Sequence[str], *, line: str, reason: str, store: Store, catalog: Catalog, settings: Settings
) -> Override:
    """Records that the actor overrules these gates of a report, with those that were overruled before.

    Raises UserError for a gate that does not stand in the way or an empty reason, GateRefused for safety where the policy
    refuses that.
    """
    before = override_of(report, store=store, catalog=catalog, settings=settings)
    evidence = read_evidence(store, report)
    _require_overrulable(evidence, gates, before)
    if not reason.strip():
        raise UserError(
            "an override needs a reason", why="Whoever audits this will ask why.", cure='add --reason "..."'
        )
    facts = {
        "gates": sorted({*gates, *(before.gates if before else ())}), "reason": reason.strip(), "actor": settings.actor,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "model": line, "policy": evidence.policy, "verdict": evidence.verdict,
    }  # fmt: skip
    key = signing_key(settings)
    spec = Spec(
        kind=KIND,
        config={**facts, "key": key.public_key.keyid},
        parents={"report": report, **({"previous": before.ref} if before else {})},
        code=code_digest(Path(__file__)),
    )
    with store.publish(spec) as draft:
        (draft.folder / FILE).write_bytes(canonical_json(sign(_statement(facts, report, before), key)))
        draft.counts["gates"] = len(facts["gates"])
    made = store.find(spec)
    assert made, "what was published is there"
    catalog.index(made.manifest)
    return _read(made.ref, store=store, settings=settings)


def override_of(report: Ref, *, store: Store, catalog: Catalog, settings: Settings) -> Override | None:
    """The newest override of a report, None when nobody overruled it. Raises IntegrityError when one was tampered with."""
    made = [ref for ref in catalog.children(report.digest) if ref.kind == KIND]
    found = [_read(ref, store=store, settings=settings) for ref in made]
    about = [override for override in found if override.report == report]
    return max(about, key=lambda o: (o.at, o.ref.digest), default=None)


def with_override(evidence: Evidence, *, store: Store, catalog: Catalog, settings: Settings) -> Evidence:
    """The evidence with what a person said about it."""
    found = override_of(evidence.manifest.ref, store=store, catalog=catalog, settings=settings)
    return replace(evidence, override=found)


def _require_overrulable(evidence: Evidence, gates: Sequence[str], before: Override | None) -> None:
    open_gates = {str(g["name"]): g for g in in_the_way(evidence)}
    for name in gates:
        if name not in open_gates or (before and name in before.gates):
            left = set(open_gates) - set(before.gates if before else ())
            said = "was overruled before" if before and name in before.gates else "does not stand in the way"
            raise UserError(
                f"gate {name!r} of the report {evidence.manifest.digest[:12]} {said}",
                why=f"The report says {evidence.verdict}: {evidence.reason}.",
                cure=f"name one that does: {did_you_mean(name, left)}" if left else "there is nothing to overrule",
            )
        rules = evidence.manifest.config["policy"]
        if open_gates[name]["kind"] in SAFETY_KINDS and rules.get("safety_override", "refused") != "allowed":
            raise GateRefused(
                f"{name} cannot be overruled: policy {evidence.policy} refuses that",
                why=str(open_gates[name]["reason"]),
                cure="mend the model; only a policy with `safety_override: allowed` lets a person overrule safety",
            )


def _statement(facts: dict[str, Any], report: Ref, before: Override | None) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"report of {facts['model']}", "digest": {"sha256": report.digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**facts, "previous": before.ref.digest if before else None},
    }


def _read(ref: Ref, *, store: Store, settings: Settings) -> Override:
    """The override of an artifact, its bytes and signature verified, and that of each before it. Raises IntegrityError."""
    artifact = store.fetch(ref)
    envelope = json.loads(artifact.file(FILE).read_bytes())
    claim = verify_statement(envelope, trusted_keys(settings), predicate_type=PREDICATE_TYPE)
    said, parents = claim["predicate"], artifact.manifest.parents
    before = _read(parents["previous"], store=store, settings=settings) if "previous" in parents else None
    made = Override(
        ref=ref, report=parents["report"], gates=tuple(said["gates"]), reason=said["reason"], actor=said["actor"], at=said["at"],
        signed_by=envelope["signatures"][0]["keyid"],
    )  # fmt: skip
    signed = (claim["subject"][0]["digest"]["sha256"], said["previous"])
    if signed != (made.report.digest, before.ref.digest if before else None):
        raise GateRefused(
            f"the override {ref.digest[:12]} was signed for the report {signed[0][:12]}, not for {made.report.digest[:12]}",
            why="An override counts for the report that it was signed for, and for no other.",
            cure="restore the store from a backup, or overrule the report again",
        )
    return made
