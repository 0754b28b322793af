"""From a request to a row in the queue: compose, refuse what cannot run, forecast, submit. Both surfaces and the dry run come through here."""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ft_pipeline import planner
from ft_pipeline.billing.forecast import forecast
from ft_pipeline.errors import IntegrityError, NotFoundError, RecipeError, StorageError, UserError
from ft_pipeline.jobs.ask import Ask, Rows
from ft_pipeline.jobs.compose import Composed, Find, compose
from ft_pipeline.jobs.offer import Offer, read_offer
from ft_pipeline.jobs.permit import artifacts
from ft_pipeline.jobs.placements import placement_for
from ft_pipeline.planner import Plan
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.recipe import Recipe, identity, recipe_sha256
from ft_pipeline.resources import House
from ft_pipeline.store.fingerprint import sha256_json
from ft_pipeline.store.platform.files import FileRow, dataset_uri
from ft_pipeline.store.platform.rows import NewJob, TrainingJob
from ft_pipeline.web.job_ask import ask_of
from ft_pipeline.web.job_bodies import AliasBody, JobBody
from ft_pipeline.web.platform import Caller, Platform
from ft_pipeline.web.quotas import admission
from ft_pipeline.web.refusals import Mismatch, Refusal
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.placed import PlacedWorker

SHARED = ("base_model", "eval_suite")
"""Kinds of artifact that every tenant may name by digest."""
BYTES_A_TOKEN = 4.2
"""Of raw JSON (planning/prices.yaml)."""
MOST_KEY = 255
MANY = 40
"""Jobs that succeeded, newest first, among which a forecast looks for some like this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A request that can run."""

    ask: Ask
    composed: Composed
    placement: Placement
    plan: Plan
    estimate: Mapping[str, Any]


def prepare(platform: Platform, caller: Caller, body: JobBody | AliasBody) -> Prepared:
    """What a request comes to, computed without running anything. Raises Refusal (400) with the reason."""
    offer = offer_of(platform.settings.offer)
    find = rows_of(platform, caller.tenant)
    ask = ask_of(body, caller.tenant, find=find)
    try:
        composed = compose(ask, offer, find=find)
        placement = placement_for(platform.settings, body.platform.placement, offer.most)
        _refuse_foreign(platform, caller, composed.recipe)
        house = House(
            settings=platform.settings, store=platform.store, catalog=platform.catalog,
            worker=PlacedWorker(platform.settings, platform.store), placement=placement,
        )  # fmt: skip
        plan = planner.plan(house, composed.recipe)
    except (Refusal, StorageError):
        raise
    except UserError as error:
        # what is missing or wrong here is in the request, whatever the room that found it calls it
        home = str(platform.settings.home)
        what, why, cure = (text.replace(home, "FT_HOME") for text in (error.what, error.why, error.cure))
        raise Refusal(what, code="invalid_recipe", why=why, cure=cure) from error
    past = platform.records.find_jobs(tenant=caller.tenant, statuses=["succeeded"], limit=MANY)
    alike = [job for job in past if job.base_model == ask.model]
    spent = platform.records.intervals(of_jobs=[job.id for job in alike]) if alike else []
    known = [(job, [i for i in spent if i.job_id == job.id]) for job in alike]
    prices = read_prices(platform.settings.prices)
    return Prepared(
        ask=ask, composed=composed, placement=placement, plan=plan,
        estimate=forecast(plan, placement, prices=prices, past=known),
    )  # fmt: skip


def submit(
    platform: Platform, caller: Caller, body: JobBody | AliasBody, *, key: str | None
) -> tuple[TrainingJob, bool]:
    """The job of a request, and whether it is new. Raises Refusal; 429 beyond the quota, 422 for a key of another request."""
    said = body.model_dump(mode="json", exclude_unset=True)
    digest = sha256_json({"body": said, "surface": type(body).__name__})
    if key is not None and (known := _known(platform, caller, key=key, digest=digest)):
        return known, False
    made = prepare(platform, caller, body)
    found, tenant = made.composed.recipe, platform.records.tenant(caller.tenant)
    new = NewJob(
        id=f"ftjob-{secrets.token_hex(12)}", tenant=caller.tenant, line=found.key, tier=tenant.tier,
        recipe=json.dumps(identity(found), sort_keys=True), recipe_sha256=recipe_sha256(found), request=said,
        placement=asdict(made.placement), estimate=made.estimate, base_model=made.ask.model,
        base_revision=found.base_model.revision, training_file=made.ask.training.id,
        validation_file=made.ask.validation.id if made.ask.validation else None, created_by=caller.key,
    )  # fmt: skip
    job, is_new = platform.records.submit(new, admit=admission(tenant.limits), key=key, request_sha256=digest)
    if is_new:
        detail = {"line": job.line, "base_model": job.base_model, "recipe_sha256": job.recipe_sha256}
        platform.records.audit(
            actor=caller.actor, tenant=caller.tenant, action="job.submit", subject=job.id, detail=detail
        )
    return job, is_new


def checked_key(key: str | None) -> str | None:
    """An Idempotency-Key that can be kept. Raises Refusal."""
    if key is not None and (not key.strip() or len(key) > MOST_KEY or not key.isprintable()):
        raise Refusal(
            f"the Idempotency-Key has {len(key)} characters", cure=f"1 to {MOST_KEY} printable ones, a UUID for example"
        )
    return key


def offer_of(path: Path) -> Offer:
    """The offer, read again when its file changed."""
    return _offer(path, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=4)
def _offer(path: Path, _changed_ns: int) -> Offer:
    return read_offer(path)


def rows_of(platform: Platform, tenant: str) -> Find:
    """Finds a file of the tenant. The same 400 for one of another tenant and for none."""

    def find(file_id: str) -> Rows:
        try:
            row = platform.records.file(file_id, tenant=tenant)
        except NotFoundError:
            raise Refusal(
                f"no file {file_id!r}", code="file_not_found", cure="upload it: POST /v1/files, purpose fine-tune"
            ) from None
        if row.status == "error":
            raise Refusal(
                f"file {file_id} cannot be trained on: {row.status_details or 'its rows could not be read'}",
                code="invalid_training_file",
                cure=f"GET /v1/files/{file_id} says what is wrong with which rows",
            )
        return Rows(id=row.id, uri=dataset_uri(row), **_reported(row))

    return find


def _reported(row: FileRow) -> dict[str, int]:
    """What the validation of a file counted; while it has not ended its bytes tell how many tokens there are."""
    if row.report is None:
        return {"tokens": round(row.bytes / BYTES_A_TOKEN)}
    return {"count": int(row.report["usable_rows"]), "tokens": int(row.report["tokens"]["total"])}


def _known(platform: Platform, caller: Caller, *, key: str, digest: str) -> TrainingJob | None:
    """The job that a key was used for: asked before anything is composed, so that a retry costs nothing."""
    used = platform.records.idempotent(caller.tenant, key)
    if used is None:
        return None
    if used.request_sha256 != digest:
        raise Mismatch(
            f"the Idempotency-Key {key!r} was used for another request", code="idempotency_mismatch",
            why="The same key promises the same job.", cure="send a new key with a new request",
        )  # fmt: skip
    return platform.records.job(used.object_id, tenant=caller.tenant)


def _refuse_foreign(platform: Platform, caller: Caller, found: Recipe) -> None:
    """Raises RecipeError for an artifact or a line that is not the tenant's: the same words for what does not exist."""
    own = {model.adapter_digest for model in platform.catalog.models(caller.tenant)}
    for field, named in artifacts(found):
        if "/" in named and named.split("/")[0] == caller.tenant:
            continue
        if not re.fullmatch(r"[0-9a-f]{64}", named) or not _is_open(platform, named, own):
            raise RecipeError(
                f"{field}: {named!r} names nothing that this key may read",
                why="An artifact of the store is yours when a version of yours is made of it; base models and suites are everybody's.",
                cure="write all 64 digits of its digest, or a model line of your own",
            )


def _is_open(platform: Platform, digest: str, own: set[str]) -> bool:
    if digest in own:
        return True
    try:
        return platform.catalog.ref(digest).kind in SHARED
    except (UserError, IntegrityError):
        return False
