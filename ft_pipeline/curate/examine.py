"""Raw rows become fit rows and ledger entries: normalise, break or refuse control tokens, validate. One row at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ft_pipeline.curate.artifact import Rejection
from ft_pipeline.curate.comparison import comparable
from ft_pipeline.curate.ledger import Entry, Fit, entry
from ft_pipeline.curate.normalize import normalize
from ft_pipeline.curate.read import RawRow
from ft_pipeline.curate.validate import ControlTokens, as_json, escape, reason_to_reject

ROW_ID_DIGITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Named:
    row_id: str
    origin: str
    excerpt: str


@dataclass
class Examined:
    """What came of the raw rows."""

    fit: list[Fit] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)
    layouts: Counter[str] = field(default_factory=Counter)
    rows_in: int = 0


def examine(rows: Iterable[RawRow], *, layout: str, control: ControlTokens, break_tokens: bool) -> Examined:
    """Every row as fit or as an entry with its reason, in order.

    row_id: "r" and 16 digits of the row's key; the second row of the same bytes gets "-2". So ids stay when rows are moved or added.
    """
    made = Examined()
    repeats: Counter[str] = Counter()
    for raw in rows:
        made.rows_in += 1
        key = f"r{raw.key[:ROW_ID_DIGITS]}"
        repeats[key] += 1
        row_id = key if repeats[key] == 1 else f"{key}-{repeats[key]}"
        named = _Named(row_id=row_id, origin=raw.origin, excerpt=raw.excerpt)
        _examine(raw, named, made, layout=layout, control=control, break_tokens=break_tokens)
    return made


def _examine(
    raw: RawRow, named: _Named, made: Examined, *, layout: str, control: ControlTokens, break_tokens: bool
) -> None:
    normal = normalize(raw.value, layout) if raw.value is not None and raw.rejection is None else raw.rejection
    if normal is None or isinstance(normal, Rejection):
        if normal is not None:
            made.ledger.append(entry(named, "dropped", "normalize", rejection=normal))
        return
    made.layouts[normal.layout] += 1
    content, broken = escape(normal.content, control) if break_tokens else (normal.content, ())
    if reason := reason_to_reject(normal.shape, content, control):
        made.ledger.append(entry(named, "dropped", "validate", rejection=reason))
        return
    made.ledger += [entry(named, "changed", "normalize", rejection=change) for change in normal.changes]
    made.ledger += [entry(named, "changed", "validate", rejection=change) for change in broken]
    made.fit.append(
        Fit(
            row_id=named.row_id,
            origin=named.origin,
            shape=normal.shape,
            content=as_json(content),
            excerpt=named.excerpt,
            comparable=comparable(named.row_id, normal.shape, content),
        )
    )
