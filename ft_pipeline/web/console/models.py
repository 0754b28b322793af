"""Pages of models: the versions with their stages, one version with gates, lineage and history, and the buttons that move it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from ft_pipeline.errors import IntegrityError, NotFoundError, UserError
from ft_pipeline.gate.artifact import REPORT
from ft_pipeline.register import acts, approval
from ft_pipeline.register.card_plots import forest_svg
from ft_pipeline.register.chain import manifests_of
from ft_pipeline.register.evidence import Evidence, read_evidence
from ft_pipeline.register.graph import lineage_svg
from ft_pipeline.store.catalog import ModelVersion
from ft_pipeline.web.console.pages import HEADERS, page
from ft_pipeline.web.console.session import checked_form, require_role, signed_in
from ft_pipeline.web.platform import Caller, Platform

SignedIn = Annotated[Caller, Depends(signed_in)]
Pressed = Annotated[Caller, Depends(checked_form)]


def add(routes: APIRouter, platform: Platform) -> None:
    """Adds the routes."""

    @routes.get("/models")
    def models(request: Request, caller: SignedIn) -> HTMLResponse:
        found = sorted(platform.catalog.models(caller.tenant), key=lambda m: (m.line, -m.version))
        return page(request, "models.html", caller=caller, models=found)

    @routes.get("/models/{label:path}")
    def model(request: Request, caller: SignedIn, label: str) -> HTMLResponse:
        return page(request, "model.html", caller=caller, **_facts(platform, _own(platform, caller, label)))

    @routes.get("/reports/job/{job_id}")
    def report_of_job(caller: SignedIn, job_id: str) -> HTMLResponse:
        job = platform.records.job(job_id, tenant=caller.tenant)
        return _report(platform, str((job.promotion or {}).get("report")))

    @routes.get("/reports/model/{label:path}")
    def report_of_model(caller: SignedIn, label: str) -> HTMLResponse:
        return _report(platform, _own(platform, caller, label).report_digest)

    @routes.post("/models/{label:path}")
    def act(
        caller: Pressed, label: str, *, act: Annotated[str, Form()], reason: Annotated[str, Form(max_length=2000)] = ""
    ) -> RedirectResponse:
        require_role(caller, "approve")
        version = _own(platform, caller, label)
        if not reason.strip():
            raise UserError("the reason is empty", why="Whoever audits this will ask why.", cure="write one")
        _act(platform, version, caller=caller, name=act, reason=reason.strip())
        platform.records.audit(
            actor=caller.actor, tenant=caller.tenant, action=f"model.{act}", subject=version.label, detail={"reason": reason.strip()}
        )  # fmt: skip
        return RedirectResponse(f"/console/models/{version.label}", 303)


def _own(platform: Platform, caller: Caller, label: str) -> ModelVersion:
    """A version of the caller's tenant. Raises NotFoundError, the same for another tenant's."""
    missing = NotFoundError(f"no model {label!r}", cure="choose one of the list")
    if label.partition("/")[0] != caller.tenant:
        raise missing
    try:
        return platform.catalog.model(label)
    except UserError:
        raise missing from None


def _act(platform: Platform, version: ModelVersion, *, caller: Caller, name: str, reason: str) -> None:
    known: dict[str, Callable[..., object]] = {
        "promote": acts.promote, "approve": acts.approve, "rollback": acts.rollback, "archive": acts.archive,
    }  # fmt: skip
    if name not in known:
        raise UserError(f"no button {name!r}")
    known[name](
        version.label, actor=caller.actor, reason=reason, catalog=platform.catalog, store=platform.store, settings=platform.settings
    )  # fmt: skip


def _report(platform: Platform, digest: str) -> HTMLResponse:
    """The page that the gate made, its bytes verified. It needs no script and no other file."""
    made = platform.store.fetch(platform.catalog.ref(digest))
    return HTMLResponse(made.file(REPORT).read_text(encoding="utf-8"), headers=HEADERS)


def _facts(platform: Platform, version: ModelVersion) -> dict[str, Any]:
    catalog, store, settings = platform.catalog, platform.store, platform.settings
    damaged, evidence, graph, request = "", None, "", None
    try:
        evidence = read_evidence(store, catalog.ref(version.report_digest))
        graph = _graph(platform, version)
        request = approval.request_of(version, store=store, catalog=catalog, settings=settings)
    except (IntegrityError, NotFoundError) as error:
        damaged = str(error)
    return {
        "model": version,
        "evidence": evidence,
        "forest": forest_svg(evidence.gates) if evidence else "",
        "graph": graph,
        "damaged": damaged,
        "asked": request,
        "history": catalog.history(version.line),
        "buttons": _buttons(version, evidence, asked=request is not None),
    }


def _graph(platform: Platform, version: ModelVersion) -> str:
    if version.registered_digest is None:
        return ""
    ref = platform.catalog.ref(version.registered_digest)
    return lineage_svg(manifests_of(platform.store, ref), ref.digest)


def _buttons(version: ModelVersion, evidence: Evidence | None, *, asked: bool) -> list[tuple[str, str]]:
    """(act, what the button says) for what may follow the present stage."""
    if version.stage == "staging" and asked:
        return [("approve", "Approve for production"), ("archive", "Archive")]
    automatic = evidence is not None and evidence.auto_promote and evidence.passed
    follow = {
        "dev": [("promote", "Promote to staging"), ("archive", "Archive")],
        "staging": [
            ("promote", "Promote to production" if automatic else "Ask for production"),
            ("archive", "Archive"),
        ],
        "production": [("archive", "Archive")],
        "archived": [("rollback", "Roll back to this version")],
    }
    return follow.get(version.stage, [])
