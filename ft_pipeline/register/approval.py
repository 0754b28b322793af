"""Two people bring a version to production: one asks, signed, with what the version stood on; another approves, or nothing moves.

Nobody can name the second person: an approval comes only from whoever approves. A policy that promotes a PASS by itself needs
neither (promotion.py). Who somebody is, is what FT_ACTOR, the login, the API key or the Dagster launchpad says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ft_pipeline.errors import GateRefused, IntegrityError, NotFoundError, UserError
from ft_pipeline.register.attest import STATEMENT_TYPE, sign, verify_statement
from ft_pipeline.register.keys import signing_key, trusted_keys
from ft_pipeline.register.promotion import backing
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, ModelVersion, Transition
from ft_pipeline.store.fingerprint import canonical_json, code_digest
from ft_pipeline.store.manifest import Ref, Spec

KIND = "promotion_request"
FILE = "request.json"
"""DSSE envelope around an in-toto Statement v1 about the adapter of the version."""
PREDICATE_TYPE = "urn:ft-pipeline:promotion-request:v1"
OPEN_DAYS = 14
"""How long a request waits: what was seen then may be asked for again, nobody approves what is forgotten."""
NAMED = re.compile(r"\((request:[0-9a-f]{12})\)$")
"""How the reason of a move ends that completed a request."""
NO_PEOPLE = ("policy", "override", "transition")
"""What history names as approving without being a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Somebody asks that a version goes to production, signed."""

    ref: Ref
    model: str
    actor: str
    reason: str
    at: str
    """ISO time."""
    report_digest: str
    """Of the newest report of the version on its base when it was asked."""
    after: int
    """The last move of its line to or from production then; 0 before the first."""
    replaces: str | None
    """The version in production then."""
    stale: str = ""
    """Why it no longer counts, empty while it does."""

    @property
    def principal(self) -> str:
        """How history names it."""
        return f"request:{self.ref.digest[:12]}"


def ask(model: ModelVersion, *, actor: str, reason: str, store: Store, catalog: Catalog, settings: Settings) -> Request:
    """Records that the actor asks for production; the same person's open request again is that request.

    Raises GateRefused without a passed report, UserError for a version that is not in staging, an empty name or reason, or one
    that somebody else asked for already.
    """
    person = _person(actor)
    if open_now := request_of(model, store=store, catalog=catalog, settings=settings):
        if _person(open_now.actor) == person:
            return open_now
        raise UserError(
            f"{open_now.actor} asked for production of {model.label} already: {open_now.reason}",
            cure=f"`ft-pipeline approve {model.label}` is the second half",
        )
    if model.stage != "staging" or not reason.strip():
        said = f"{model.label} is in {model.stage}" if model.stage != "staging" else "the reason is empty"
        raise UserError(f"production cannot be asked for: {said}", cure='promote it to staging first; --reason "..."')
    facts = {
        **_now(model, store=store, catalog=catalog),
        "actor": actor, "reason": reason.strip(), "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }  # fmt: skip
    key = signing_key(settings)
    spec = Spec(
        kind=KIND, config={**facts, "key": key.public_key.keyid},
        parents={"registered": catalog.ref(_signed(model))}, code=code_digest(Path(__file__)),
    )  # fmt: skip
    with store.publish(spec) as draft:
        (draft.folder / FILE).write_bytes(canonical_json(sign(_statement(model, facts), key)))
    made = store.find(spec)
    assert made, "what was published is there"
    catalog.index(made.manifest)
    return _read(made.ref, store=store, settings=settings)


def approve(
    model: ModelVersion, *, actor: str, reason: str, store: Store, catalog: Catalog, settings: Settings
) -> Transition:
    """Completes the newest request: the asker is the actor of the move, who approves is named beside.

    Raises NotFoundError when nobody asked, GateRefused for the same person, a report that came since, a line that moved since, a
    request older than OPEN_DAYS; IntegrityError for a request that was tampered with.
    """
    person = _person(actor)
    asked = _requests(model, store=store, catalog=catalog, settings=settings)
    if not asked:
        raise NotFoundError(
            f"nobody asked for production of {model.label}, which is in {model.stage}",
            cure=f"`ft-pipeline promote {model.label} --to production` asks; somebody else approves",
        )
    request = asked[-1]
    if request.stale:
        raise GateRefused(
            f"the request of {request.actor} for {model.label} is stale: {request.stale}",
            why="An approval is for what was asked, on the evidence of that moment.",
            cure=f"look at it as it is now and ask again: `ft-pipeline promote {model.label} --to production`",
        )
    if _person(request.actor) == person:
        raise GateRefused(
            f"{actor} asked for production of {model.label} as {request.actor} and cannot approve it",
            why="Four eyes: whoever asks may not be the one who approves.",
            cure="somebody else approves: `ft-pipeline approvals` shows what waits",
        )
    note = backing(model, store=store, catalog=catalog).note
    why = f"{request.reason}{note}; {actor}: {reason.strip() or 'approved'} ({request.principal})"
    return catalog.transition(model.id, "production", actor=request.actor, approved_by=actor, reason=why)


def pending(catalog: Catalog, *, store: Store, settings: Settings, tenant: str | None = None) -> list[Request]:
    """The requests that wait, oldest first; a stale one too, with the reason, while its version is in staging."""
    found = [
        asked[-1]
        for model in catalog.models(tenant)
        if model.stage == "staging" and (asked := _requests(model, store=store, catalog=catalog, settings=settings))
    ]
    return sorted(found, key=lambda request: request.at)


def verify_requests(model: ModelVersion, *, store: Store, catalog: Catalog, settings: Settings) -> int:
    """The number of requests of a version, after each signature held and each move that names one has its asker as the actor.

    Raises IntegrityError naming the move.
    """
    known = {r.principal: r for r in _requests(model, store=store, catalog=catalog, settings=settings)}
    for move in catalog.history(model.id):
        named = NAMED.search(move.reason)
        if (move.from_stage, move.to_stage) != ("staging", "production") or not named:
            continue
        request = known.get(named[1])
        if request is None or request.actor != move.actor:
            said = f"was signed by {request.actor}" if request else "is missing"
            raise IntegrityError(
                f"transition {move.seq} of {move.model} says that {move.actor} asked for it, the {named[1]} {said}",
                why="Two people must have acted: the one who asked, signed, and the one who approved.",
                cure="restore the store or the catalog from a backup",
            )
    return len(known)


def request_of(model: ModelVersion, *, store: Store, catalog: Catalog, settings: Settings) -> Request | None:
    """The request that an approval of the version would complete, None when nobody asked or what was asked is stale."""
    found = _requests(model, store=store, catalog=catalog, settings=settings)
    return found[-1] if found and not found[-1].stale else None


def requests_of(model: ModelVersion, catalog: Catalog) -> list[Ref]:
    """Every request that was ever made for a version."""
    digest = model.registered_digest
    return [ref for ref in catalog.children(digest) if ref.kind == KIND] if digest else []


def _person(actor: str) -> str:
    """Who an actor is: `dagster:Ann` and `ann` are one. Raises UserError for nobody and for what is no person."""
    kind, _, name = actor.strip().rpartition(":")
    if not name.strip() or kind.casefold() in NO_PEOPLE:
        raise UserError(
            f"{actor!r} is not a person",
            why="A request and its approval come from two people.",
            cure="say who: FT_ACTOR, or the login name",
        )
    return name.strip().casefold()


def _signed(model: ModelVersion) -> str:
    if not model.registered_digest:
        raise GateRefused(
            f"{model.label} was never signed", cure=f"run its recipe again: `ft-pipeline run {model.line}`"
        )
    return model.registered_digest


def _now(model: ModelVersion, *, store: Store, catalog: Catalog) -> dict[str, Any]:
    """What a version stands on and what it would replace. Raises GateRefused without a report that backs it."""
    backing(model, store=store, catalog=catalog)
    reports = [r for r in catalog.reports(model.id) if r.base_digest == model.base_digest]
    return {
        "model": model.label, "adapter": model.adapter_digest, "base": model.base_digest, "registered": _signed(model),
        "report": reports[-1].report_digest if reports else model.report_digest, **_production(model.line, catalog),
    }  # fmt: skip


def _production(line: str, catalog: Catalog) -> dict[str, Any]:
    """What is in production of a line, and the last move that changed it."""
    moves = [t for t in catalog.history(line) if "production" in (t.from_stage, t.to_stage)]
    live = moves[-1].model if moves and moves[-1].to_stage == "production" else None
    return {"after": moves[-1].seq if moves else 0, "replaces": live}


def _statement(model: ModelVersion, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": model.label, "digest": {"sha256": model.adapter_digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": facts,
    }


def _requests(model: ModelVersion, *, store: Store, catalog: Catalog, settings: Settings) -> list[Request]:
    """Of a version, oldest first, signatures verified, each with why it is stale."""
    read = (_read(ref, store=store, settings=settings) for ref in requests_of(model, catalog))
    return sorted(_judged(read, model, catalog), key=lambda request: (request.at, request.ref.digest))


def _read(ref: Ref, *, store: Store, settings: Settings) -> Request:
    """The request of an artifact. Raises IntegrityError when it is not what was signed."""
    artifact = store.fetch(ref)
    claim = verify_statement(
        json.loads(artifact.file(FILE).read_bytes()), trusted_keys(settings), predicate_type=PREDICATE_TYPE
    )
    said = claim["predicate"]
    if said["registered"] != artifact.manifest.parents["registered"].digest:
        raise IntegrityError(
            f"the request {ref.digest[:12]} was signed for {said['model']}, and lies beside another version",
            why="A request counts for the version that it was signed for, and for no other.",
            cure="restore the store from a backup, or ask again",
        )
    return Request(
        ref=ref, model=said["model"], actor=said["actor"], reason=said["reason"], at=said["at"], report_digest=said["report"],
        after=said["after"], replaces=said["replaces"],
    )  # fmt: skip


def _judged(found: Iterable[Request], model: ModelVersion, catalog: Catalog) -> Iterable[Request]:
    moved = _production(model.line, catalog)
    reports = [r for r in catalog.reports(model.id) if r.base_digest == model.base_digest]
    for request in found:
        age = datetime.now(UTC) - datetime.fromisoformat(request.at)
        why = ""
        if model.stage != "staging":
            why = f"the version is in {model.stage} now"
        elif reports and reports[-1].report_digest != request.report_digest:
            why = f"the report {reports[-1].report_digest[:12]} came after it"
        elif moved["after"] != request.after:
            why = f"{moved['replaces'] or 'nothing'} is in production now, it was {request.replaces or 'nothing'} then"
        elif age > timedelta(days=OPEN_DAYS):
            why = f"it is {age.days} days old, and counts for {OPEN_DAYS}"
        yield replace(request, stale=why)
