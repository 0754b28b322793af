"""Webhook endpoints as the official client manages them: create, list, change, rotate, test, delete; and how deliveries went."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from ft_pipeline.store.platform.webhooks import EVENTS, Webhook, body_of
from ft_pipeline.web.auth import needs
from ft_pipeline.web.delivery import Sender
from ft_pipeline.web.moments import unix
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.refusals import Refusal

EventType = Literal[
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled", "platform.job.paused",
    "platform.budget.warned", "platform.budget.exhausted",
]  # fmt: skip
URL = Field(min_length=8, max_length=2048)
Reader = Annotated[Caller, Depends(needs("submit", "audit"))]
Submitter = Annotated[Caller, Depends(needs("submit"))]


class NewEndpoint(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=200)
    url: str = URL
    event_types: list[EventType] = Field(min_length=1)


class ChangedEndpoint(BaseModel):
    """What is to be other; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(default=None, min_length=1, max_length=200)
    url: str | None = Field(default=None, min_length=8, max_length=2048)
    event_types: list[EventType] | None = Field(default=None, min_length=1)


class Rotation(BaseModel):
    """Whether the old secret signs beside the new one for 24 hours."""

    model_config = ConfigDict(extra="forbid")
    keep_old_secret_active_for_24_hours: bool = False


class Tried(BaseModel):
    """Which event is sent as a sample."""

    model_config = ConfigDict(extra="forbid")
    event_type: EventType


class Endpoint(BaseModel):
    """An endpoint without its secret."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str


class EndpointWithSecret(Endpoint):
    """Shown once."""

    signing_secret: str


class EndpointList(BaseModel):
    """A page."""

    object: Literal["list"] = "list"
    data: list[Endpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """It is gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class TestResult(BaseModel):
    """What the endpoint answered."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypes(BaseModel):
    """What may be sent."""

    object: Literal["list"] = "list"
    data: list[str]


class Attempted(BaseModel):
    """One delivery."""

    id: str
    event: str
    attempts: int
    created_at: int
    delivered_at: int | None
    given_up_at: int | None
    last_error: str | None


class Deliveries(BaseModel):
    """The newest 50."""

    object: Literal["list"] = "list"
    data: list[Attempted]


def router(platform: Platform) -> APIRouter:
    """The routes. Addresses inside the platform's own network are refused (web/delivery.py)."""
    routes = APIRouter(prefix="/v1", tags=["webhooks"])
    records, sender = platform.records, Sender(platform.records, private=platform.settings.webhooks_private)
    _add_reading(routes, platform)

    @routes.post("/webhook_endpoints")
    def create(body: NewEndpoint, caller: Submitter) -> EndpointWithSecret:
        sender.refuse_address(body.url)
        made = records.add_webhook(
            caller.tenant, name=body.name, url=body.url, events=body.event_types, actor=caller.actor
        )
        return EndpointWithSecret(**_endpoint(made).model_dump(), signing_secret=made.secret)

    @routes.post("/webhook_endpoints/{webhook_id}")
    def change(webhook_id: str, body: ChangedEndpoint, caller: Submitter) -> Endpoint:
        if body.url is not None:
            sender.refuse_address(body.url)
        return _endpoint(
            records.change_webhook(
                caller.tenant, webhook_id, actor=caller.actor, name=body.name, url=body.url, events=body.event_types
            )
        )

    @routes.post("/webhook_endpoints/{webhook_id}/rotate_secret")
    def rotate(webhook_id: str, body: Rotation, caller: Submitter) -> EndpointWithSecret:
        keep = body.keep_old_secret_active_for_24_hours
        made = records.rotate_secret(caller.tenant, webhook_id, actor=caller.actor, keep_old=keep)
        return EndpointWithSecret(**_endpoint(made).model_dump(), signing_secret=made.secret)

    @routes.post("/webhook_endpoints/{webhook_id}/test", responses={400: {"description": "It did not answer."}})
    def try_out(webhook_id: str, body: Tried, caller: Submitter) -> TestResult:
        target = records.webhook(caller.tenant, webhook_id)
        sample = body_of("evt_test", body.event_type, {"id": "ftjob-000000000000000000000000"})
        status, error = sender.post(target, "evt_test", sample)
        if status is None:
            raise Refusal(f"{target.url} did not answer: {error}", code="webhook_unreachable")
        return TestResult(webhook_endpoint_id=webhook_id, event_type=body.event_type, status_code=status)

    @routes.delete("/webhook_endpoints/{webhook_id}")
    def delete(webhook_id: str, caller: Submitter) -> Deleted:
        records.delete_webhook(caller.tenant, webhook_id, actor=caller.actor)
        return Deleted(id=webhook_id)

    return routes


def _add_reading(routes: APIRouter, platform: Platform) -> None:
    records = platform.records

    @routes.get("/webhook_event_types")
    def event_types(_caller: Reader) -> EventTypes:
        return EventTypes(data=list(EVENTS))

    @routes.get("/webhook_endpoints")
    def endpoints(
        caller: Reader, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> EndpointList:
        found = records.webhooks(caller.tenant)
        if after is not None:
            ids = [w.id for w in found]
            found = found[ids.index(records.webhook(caller.tenant, after).id) + 1 :]
        page = [_endpoint(w) for w in found[:limit]]
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return EndpointList(data=page, first_id=first, last_id=last, has_more=len(found) > limit)

    @routes.get("/webhook_endpoints/{webhook_id}")
    def endpoint(webhook_id: str, caller: Reader) -> Endpoint:
        return _endpoint(records.webhook(caller.tenant, webhook_id))

    @routes.get("/webhook_endpoints/{webhook_id}/deliveries")
    def deliveries(webhook_id: str, caller: Reader) -> Deliveries:
        target = records.webhook(caller.tenant, webhook_id)
        return Deliveries(data=[_attempted(row) for row in records.deliveries(target.id)])


def _endpoint(found: Webhook) -> Endpoint:
    return Endpoint(
        id=found.id, name=found.name, url=found.url, event_types=list(found.events), created_at=unix(found.created_at),
        updated_at=unix(found.updated_at), signing_secret_hint=f"whsec_...{found.secret[-4:]}",
    )  # fmt: skip


def _attempted(row: dict[str, Any]) -> Attempted:
    moments = {name: None if row[name] is None else unix(row[name]) for name in ("delivered_at", "given_up_at")}
    return Attempted(
        id=row["id"], event=row["event"], attempts=row["attempts"], created_at=unix(row["created_at"]),
        last_error=row["last_error"], **moments,
    )  # fmt: skip
