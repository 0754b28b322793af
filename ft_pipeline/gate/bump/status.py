"""What is open after a base change: each dependant of a base that moved, what became of it, and which pools that holds back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ft_pipeline.errors import NotFoundError
from ft_pipeline.gate.artifact import RECERTIFIED_KIND
from ft_pipeline.gate.bump.proposals import retrain_command
from ft_pipeline.gate.bump.recertify import read_recertification, trained_on
from ft_pipeline.gate.bump.verdict import CERTIFIES, RETRAINS, Recertification
from ft_pipeline.resources import Mark
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.manifest import Ref

PENDING, RUNNING, UNDECIDED, CURRENT = "pending", "running", "undecided", "current"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dependant:
    """A model line whose base moved, or `current`."""

    key: str
    version: str
    """`tenant/name@3 (production)` of its adapter; empty when none is registered."""
    old_base: str
    """Digest of the base that it was trained on."""
    new_base: str
    """Digest of the live base; where it is not fetched yet, its data version."""
    state: str
    """pending, running, undecided, current, or the verdict."""
    reason: str
    next_step: str
    retrain: str = ""
    """The command of a proposed training."""

    @property
    def is_open(self) -> bool:
        """True until it is decided."""
        return self.state in (PENDING, RUNNING, UNDECIDED, Recertification.REVIEW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """A pool whose base moved."""

    pool: str
    base: str
    new_base: str
    blocked_by: tuple[str, ...]
    """Deployed versions that are not certified for the new base: while there is one, the database refuses to move the pool."""


def dependants(catalog: Catalog, store: Store, marks: Mapping[str, Mark]) -> list[Dependant]:
    """Every model line with an adapter, by key."""
    versions = catalog.models()
    found = [_dependant((catalog, store), key, mark=marks.get(key), versions=versions) for key in catalog.recipe_keys()]
    return [one for one in found if one is not None]


def pools(catalog: Catalog, lines: list[Dependant]) -> list[Pool]:
    """The pools on a base that moved, with what holds them back."""
    # a line that was judged knows the digest of the new base, one that waits only its data version
    judged_last = sorted((d for d in lines if d.state != CURRENT), key=lambda d: d.state != PENDING)
    moved = {d.old_base: d.new_base for d in judged_last}
    known = catalog.pools().items()
    return [
        Pool(pool=pool, base=base, new_base=moved[base], blocked_by=tuple(_uncertified(catalog, pool, moved[base])))
        for pool, base in known
        if base in moved and catalog.deployed(pool)
    ]


def page(moved: list[Dependant], held: list[Pool]) -> str:
    """The dependants and pools as Markdown tables."""
    if not moved:
        return "No base model moved: every adapter stands on the base that it was trained on."
    rows = [
        f"| {d.key} | {d.version or '-'} | `{d.old_base[:12]}` | `{d.new_base[:12]}` | {d.state} | {d.reason} | {d.next_step} |"
        for d in moved
    ]
    lines = [
        "| model line | version | old base | new base | state | why | next |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    if held:
        lines += ["", "| pool | base | may move to | held back by |", "|---|---|---|---|"]
        lines += [
            f"| {p.pool} | `{p.base[:12]}` | `{p.new_base[:12]}` | {', '.join(p.blocked_by) or 'nothing: every version is certified'} |"
            for p in held
        ]
    return "\n".join(lines)


def _uncertified(catalog: Catalog, pool: str, new_base: str) -> Iterator[str]:
    for version in catalog.deployed(pool):
        reports = [r for r in catalog.reports(version.id) if r.base_digest == new_base]
        if not reports or not reports[-1].passed:
            yield version.label


def _dependant(
    where: tuple[Catalog, Store], key: str, *, mark: Mark | None, versions: list[ModelVersion]
) -> Dependant | None:
    catalog, store = where
    heads = catalog.heads(key)
    if not {"adapter", "base_model"} <= heads.keys():
        return None
    try:
        old = trained_on(store, heads["adapter"])
    except NotFoundError:
        return None
    if old is None:
        return None
    live = mark.version if mark is not None and mark.recorded_only else heads["base_model"].digest
    state, reason = _state(store, heads, old=old, mark=mark)
    own = [v for v in versions if v.adapter_digest == heads["adapter"].digest and v.line == key]
    return Dependant(
        key=key, version=f"{own[-1].label} ({own[-1].stage})" if own else "", old_base=old.digest, new_base=live, state=state,
        reason=reason, next_step=_next(state, key), retrain=retrain_command(key) if state in RETRAINS else "",
    )  # fmt: skip


def _state(store: Store, heads: Mapping[str, Ref], *, old: Ref, mark: Mark | None) -> tuple[str, str]:
    if mark is not None and mark.running:
        return RUNNING, "a run is judging it"
    if mark is not None and mark.recorded_only:
        return PENDING, "the base moved; it is not judged yet"
    live, report = heads["base_model"], heads.get("eval_report")
    if live == old:
        return CURRENT, "the live base is the one that it was trained on"
    if report is None or report.kind != RECERTIFIED_KIND:
        return UNDECIDED, "the base moved and no report is about the new one"
    artifact = store.fetch(report)
    about = artifact.manifest.parents
    if about["base"] != live or about["adapter"] != heads["adapter"]:
        return UNDECIDED, "the newest report is about another base or adapter"
    found = read_recertification(artifact)
    return found["verdict"], found["reason"]


def _next(state: str, key: str) -> str:
    if state in (PENDING, RUNNING):
        return "wait for the run"
    if state == UNDECIDED:
        return f"ft-pipeline bump judge {key}"
    if state == CURRENT:
        return ""
    verdict = Recertification(state)
    if verdict in CERTIFIES:
        return "nothing: it may stand on the new base"
    if verdict is Recertification.OBSOLETE:
        return f"retire it (ft-pipeline promote {key} --to archived), or go on with the old base"
    if verdict is Recertification.REVIEW:
        return f"read the report: ft-pipeline report {key}"
    return f"go on with the old base, or {retrain_command(key)}"
