"""/v1/models: what may be trained on and what was trained; promotion by two people, deployment, rollback, archive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from ft_pipeline.errors import GateRefused, NotFoundError, UserError
from ft_pipeline.register import acts, approval
from ft_pipeline.register.approval import Request
from ft_pipeline.register.promotion import FOLLOWS
from ft_pipeline.serve.deploy import deploy, verified
from ft_pipeline.serve.fleet.inventory import POOL_PREFIX as FLEET
from ft_pipeline.store.catalog import ModelVersion, Transition
from ft_pipeline.store.catalog_rows import parse_model_name
from ft_pipeline.web import bases
from ft_pipeline.web.auth import Anybody, Approver, Reader
from ft_pipeline.web.job_bodies import Body, Name
from ft_pipeline.web.job_intake import offer_of
from ft_pipeline.web.job_views import Page
from ft_pipeline.web.model_views import Model, Moved, Shelf, base_view, moved_view
from ft_pipeline.web.moments import unix
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.refusals import Absent, Refusal

Stage = Literal["dev", "staging", "production", "archived"]
Reason = Annotated[str, Field(max_length=1000)]
SAID = "through the API"


class DeployBody(Body):
    """The specification's body, and why."""

    stage: Stage
    serving_pool: Name | None = None
    """Of a production version. Left out: the pool of its base."""
    reason: Reason = SAID


class ActBody(Body):
    """Why, for history; and where to."""

    serving_pool: Name | None = None
    reason: Reason = SAID


class Asked(Body):
    """Somebody asked for production; another one has to approve."""

    actor: str
    reason: str
    at: int
    stale: str
    """Why it no longer counts; empty while it does."""


class Deployed(Body):
    """How a version stands after an act."""

    id: str
    object: Literal["model.deployment"] = "model.deployment"
    stage: str
    serving_pools: list[str]
    moved: Moved | None
    waits_for_approval: Asked | None
    """Then nothing moved yet: POST /v1/models/{id}/approve by another key."""


class ModelDeleted(Body):
    """OpenAI's answer. The version is archived: its lineage stays."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool


class Models(Body):
    """OpenAI's list."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(platform: Platform) -> APIRouter:
    """The routes. Names hold slashes, so what follows one comes first."""
    routes = APIRouter(prefix="/v1/models", tags=["models"])
    shelf = Shelf(platform)
    _add_acts(routes, platform)
    _add_history(routes, platform)
    _add_sights(routes, platform, shelf)
    return routes


def _add_sights(routes: APIRouter, platform: Platform, shelf: Shelf) -> None:
    @routes.get("")
    def models(
        caller: Anybody, *, kind: Annotated[Literal["fine-tuned", "base"] | None, Query(alias="type")] = None,
        base_model: Annotated[str | None, Query(max_length=256)] = None, stage: Stage | None = None,
    ) -> Models:  # fmt: skip
        offer = offer_of(platform.settings.offer)
        jobs = platform.records.jobs_of_models(caller.tenant)
        versions = [] if kind == "base" else platform.catalog.models(caller.tenant)
        made = [shelf.model(v, offer, jobs.get(v.label)) for v in versions if stage in (None, v.stage)]
        if base_model is not None:
            made = [m for m in made if bases.matches(m.platform.base_model, m.platform.base_model_sha or "", asked=base_model, offer=offer)]  # fmt: skip
        if kind == "fine-tuned" or stage is not None or base_model is not None:
            return Models(data=made)
        return Models(data=[*made, *(base_view(name, base) for name, base in offer.bases.items())])

    @routes.get("/{model_id:path}")
    def retrieve(model_id: str, caller: Anybody) -> Model:
        offer = offer_of(platform.settings.offer)
        if model_id in offer.bases:
            return base_view(model_id, offer.bases[model_id])
        version = own_model(platform, caller, model_id)
        return shelf.model(version, offer, platform.records.jobs_of_models(caller.tenant).get(version.label))

    @routes.delete("/{model_id:path}")
    def archive(model_id: str, caller: Approver) -> ModelDeleted:
        version = exact_model(platform, caller, model_id)
        with _told(platform, caller, version, action="model.archive"):
            acts.archive(version.label, actor=caller.actor, reason=SAID, **_rooms(platform))
        return ModelDeleted(id=version.label, deleted=True)


def _add_acts(routes: APIRouter, platform: Platform) -> None:
    waiting: dict[int | str, dict[str, Any]] = {
        202: {"model": Deployed, "description": "Asked for; another key has to approve."}
    }

    @routes.post("/{model_id:path}/deploy", responses=waiting)
    def deploy_model(model_id: str, body: DeployBody, caller: Approver, *, response: Response) -> Deployed:
        version = exact_model(platform, caller, model_id)
        if body.serving_pool is not None and body.stage != "production":
            raise Refusal(f"serving_pool with stage {body.stage}", param="serving_pool", why="Only production answers.")
        with _told(platform, caller, version, action=f"model.deploy.{body.stage}"):
            made = _brought(platform, caller, version, body=body)
            moved = made if isinstance(made, Transition) else None
            asked = made if isinstance(made, Request) else None
            if asked is None and body.stage == "production":
                put(platform, version, body.serving_pool)
        response.status_code = 202 if asked else 200
        return _deployed(platform, version, moved, asked=asked)

    @routes.post("/{model_id:path}/approve")
    def approve(model_id: str, body: ActBody, caller: Approver) -> Deployed:
        version = exact_model(platform, caller, model_id)
        with _told(platform, caller, version, action="model.approve"):
            moved = acts.approve(version.label, actor=caller.actor, reason=body.reason, **_rooms(platform))
            put(platform, version, body.serving_pool)
        return _deployed(platform, version, moved)

    @routes.post("/{model_id:path}/rollback")
    def rollback(model_id: str, body: ActBody, caller: Approver) -> Deployed:
        version = own_model(platform, caller, model_id)
        with _told(platform, caller, version, action="model.rollback"):
            moved = acts.rollback(model_id, actor=caller.actor, reason=body.reason, **_rooms(platform))
            live = own_model(platform, caller, moved.model)
            put(platform, live, body.serving_pool)
        return _deployed(platform, live, moved)


def _add_history(routes: APIRouter, platform: Platform) -> None:
    @routes.get("/{model_id:path}/history")
    def history(model_id: str, caller: Reader) -> Page[Moved]:
        version = own_model(platform, caller, model_id)
        of = model_id if parse_model_name(model_id).version is None and ":" not in model_id else version.id
        return Page(data=[moved_view(move) for move in reversed(platform.catalog.history(of))], has_more=False)

    @routes.get("/{model_id:path}/approvals")
    def approvals(model_id: str, caller: Reader) -> Page[Asked]:
        version = own_model(platform, caller, model_id)
        rooms = _rooms(platform)
        waiting = approval.pending(
            rooms["catalog"], store=rooms["store"], settings=rooms["settings"], tenant=caller.tenant
        )
        return Page(data=[_asked(request) for request in waiting if request.model == version.label], has_more=False)


def own_model(platform: Platform, caller: Caller, name: str) -> ModelVersion:
    """A version of the tenant, by any of its names. Raises Absent: the same for another tenant's, and names no other model."""
    try:
        if parse_model_name(name).tenant == caller.tenant:
            return platform.catalog.model(name)
    except (NotFoundError, UserError) as error:
        # the catalog's own answer may name models of others
        raise absent(name) from error
    raise absent(name)


def absent(name: str) -> Absent:
    """For a model that is not the tenant's and for one that is none."""
    return Absent(f"no model {name!r}", code="model_not_found", cure="GET /v1/models lists those of your key")


def exact_model(platform: Platform, caller: Caller, name: str) -> ModelVersion:
    """A version by its number: what an act is done to must not depend on the moment. Raises Absent, Refusal."""
    version = own_model(platform, caller, name)
    if name != version.label:
        raise Refusal(f"{name} names no version", why="An act is done to one version.", cure=f"say {version.label}")
    return version


def put(platform: Platform, version: ModelVersion, pool: str | None) -> None:
    """Lets a production version answer from a pool, by default that of its base. Raises GateRefused, IntegrityError, Refusal."""
    rooms = _rooms(platform)
    fresh = platform.catalog.model_by_id(version.id)
    if pool is None:
        deploy(fresh, **rooms)
        return
    known = platform.catalog.pools()
    named = next((name for name in (pool, f"{FLEET}{pool}") if name in known), None)
    if named is None or known[named] != fresh.base_digest:
        fits = sorted(name.removeprefix(FLEET) for name, base in known.items() if base == fresh.base_digest)
        raise Refusal(
            f"no serving pool {pool!r} holds the base of {fresh.label}",
            code="pool_not_found",
            param="serving_pool",
            cure=f"one of {', '.join(fits)}" if fits else "leave it out",
        )
    verified(fresh, **rooms)
    platform.catalog.deploy(named, fresh.id)
    acts.seal(platform.catalog, platform.settings)


def _brought(
    platform: Platform, caller: Caller, version: ModelVersion, *, body: DeployBody
) -> Transition | Request | None:
    """Moves a version stage by stage to the one that is asked for. None when it is there already."""
    made: Transition | Request | None = None
    while version.stage != body.stage and not isinstance(made, Request):
        ahead = body.stage != "archived" and version.stage in FOLLOWS and not _is_behind(version.stage, body.stage)
        step = FOLLOWS[version.stage] if ahead else body.stage
        made = acts.promote(version.label, step, actor=caller.actor, reason=body.reason, **_rooms(platform))
        version = platform.catalog.model_by_id(version.id)
    return made


def _is_behind(stage: str, asked: str) -> bool:
    order = ("none", "dev", "staging", "production")
    return order.index(asked) < order.index(stage)


@contextmanager
def _told(platform: Platform, caller: Caller, version: ModelVersion, *, action: str) -> Iterator[None]:
    """The audit line of an act that was done; a refusal of the gate gets a code that programs can read."""
    try:
        yield
    except GateRefused as error:
        raise Refusal(error.what, code="gate_refused", why=error.why, cure=error.cure) from error
    except NotFoundError as error:
        raise Refusal(error.what, code="not_found", why=error.why, cure=error.cure) from error
    platform.records.audit(actor=caller.actor, tenant=caller.tenant, action=action, subject=version.label)


def _deployed(
    platform: Platform, version: ModelVersion, moved: Transition | None = None, *, asked: Request | None = None
) -> Deployed:
    fresh = platform.catalog.model_by_id(version.id)
    return Deployed(
        id=fresh.label, stage=fresh.stage, serving_pools=platform.catalog.pools_of(fresh.id),
        moved=moved_view(moved) if moved else None, waits_for_approval=_asked(asked) if asked else None,
    )  # fmt: skip


def _asked(request: Request) -> Asked:
    return Asked(actor=request.actor, reason=request.reason, at=unix(request.at), stale=request.stale)


def _rooms(platform: Platform) -> dict[str, Any]:
    return {"catalog": platform.catalog, "store": platform.store, "settings": platform.settings}
