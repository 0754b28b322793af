"""Rows on their way, and the ledger: nothing is dropped or changed without an entry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from ft_pipeline.curate.artifact import Reason, Rejection
from ft_pipeline.curate.comparison import Comparable

Stage = Literal["normalize", "validate", "exact_duplicate", "near_duplicate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A row that may be trained on."""

    row_id: str
    origin: str
    shape: str
    content: str
    excerpt: str
    comparable: Comparable


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A row of a split."""

    row_id: str
    shape: str
    content: str
    cluster: str
    origin: str
    split: str
    num_characters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A line of the ledger."""

    row_id: str
    origin: str
    action: Literal["dropped", "changed"]
    stage: Stage
    reason: Reason
    evidence: str
    excerpt: str


def entry(row: Any, action: Literal["dropped", "changed"], stage: Stage, *, rejection: Rejection) -> Entry:
    """The entry of something that has a row_id, an origin and an excerpt."""
    return Entry(
        row_id=row.row_id,
        origin=row.origin,
        action=action,
        stage=stage,
        reason=rejection.reason,
        evidence=rejection.evidence(),
        excerpt=row.excerpt,
    )


def duplicate_entry(row: Fit, reason: Reason, **evidence: Any) -> Entry:
    """The entry of a duplicate: its evidence names the row that stays."""
    return Entry(
        row_id=row.row_id,
        origin=row.origin,
        action="dropped",
        stage="exact_duplicate" if reason == Reason.EXACT_DUPLICATE else "near_duplicate",
        reason=reason,
        evidence=json.dumps(evidence, sort_keys=True),
        excerpt=row.excerpt,
    )
