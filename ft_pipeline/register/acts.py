"""What a person does with a version, by the command line, the API or a Dagster job: the actor is named by the caller, and each act ends with a seal."""

from __future__ import annotations

from ft_pipeline.register import approval, promotion
from ft_pipeline.register.approval import Request
from ft_pipeline.register.artifact import seal
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, Transition


def promote(
    name: str,
    to_stage: str | None = None,
    *,
    actor: str,
    reason: str,
    catalog: Catalog,
    store: Store,
    settings: Settings,
) -> Transition | Request:
    """Moves `tenant/name@N` to a stage, by default the next one; where production takes a second person, asks for it.

    Raises NotFoundError, UserError, GateRefused as promotion.promote and approval.ask do.
    """
    model = catalog.model(name)
    made: Transition | Request
    if promotion.waits_for_a_person(model, to_stage, store=store, catalog=catalog):
        made = approval.ask(model, actor=actor, reason=reason, store=store, catalog=catalog, settings=settings)
    else:
        made = promotion.promote(catalog, model, to_stage, store=store, actor=actor, reason=reason)
    seal(catalog, settings)
    return made


def approve(
    name: str, *, actor: str, reason: str = "", catalog: Catalog, store: Store, settings: Settings
) -> Transition:
    """Completes what somebody else asked for. Raises as approval.approve does."""
    model = catalog.model(name)
    moved = approval.approve(model, actor=actor, reason=reason, store=store, catalog=catalog, settings=settings)
    seal(catalog, settings)
    return moved


def rollback(name: str, *, actor: str, reason: str, catalog: Catalog, store: Store, settings: Settings) -> Transition:  # noqa: ARG001 - one shape for all acts
    """Brings the version back that was in production before, or the one that `tenant/name@N` names. Raises as promotion.rollback does."""
    catalog.model(name)  # an unknown name gets the nearest one, not "nothing was there before"
    moved = promotion.rollback(catalog, name, actor=actor, reason=reason)
    seal(catalog, settings)
    return moved


def archive(name: str, *, actor: str, reason: str, catalog: Catalog, store: Store, settings: Settings) -> Transition:  # noqa: ARG001 - one shape for all acts
    """Takes a version out of service for good. Raises as promotion.archive does."""
    moved = promotion.archive(catalog, catalog.model(name), actor=actor, reason=reason)
    seal(catalog, settings)
    return moved
