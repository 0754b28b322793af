"""Personal data and secrets: where they are in a row, masked; and the row without them.

Names, addresses and dates of birth are not looked for: they have no form that a pattern could know. In the 427 rows of Self-Instruct's
seed it finds 9 e-mail addresses and 3 telephone numbers, all real; loose patterns found no others, and the phone rule was loosened after
looking there. Of 3,395 passages of EnterprisePII,
where "yes" means names and business secrets, 7 have an address and 2 a number, and all of those are labelled "no".
10 us a row of 480 characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.flags import Action, Batch, Flag
from ft_pipeline.curate.pii_patterns import DIGITS_HINT, RULES, Rule
from ft_pipeline.curate.validate import FIXED_KEYS, strings
from ft_pipeline.recipe import Pii

ACTIONS: Mapping[str, Action] = {"flag": "note", "redact": "change", "reject": "drop"}
MAX_FLAGS = 32
"""Of one row: a row with 10,000 addresses is said once to have them, not 10,000 times."""
MAX_ROUNDS = 8


class Span(NamedTuple):
    """One finding in one text."""

    start: int
    end: int
    rule: Rule


def pii(batch: Batch, config: Pii) -> tuple[list[Flag], dict[int, Mapping[str, Any]]]:
    """A flag for each finding (the first 32 of a row), and the new contents of redacted rows by position."""
    if config.policy == "off":
        return [], {}
    flags: list[Flag] = []
    redacted: dict[int, Mapping[str, Any]] = {}
    for row, rules in _suspects(batch.wholes, config.kinds).items():
        content = batch.contents[row]
        found = [(path, text, span) for path, text in strings(content) for span in spans(text, rules)]
        flags += [
            Flag(
                row=row,
                filter="pii",
                action=ACTIONS[config.policy],
                reason=Reason.PERSONAL_DATA,
                evidence={**_evidence(*place), "found": len(found)},
            )
            for place in found[:MAX_FLAGS]
        ]
        if found and config.policy == "redact":
            redacted[row] = _redacted(content, rules)
    return flags, redacted


def spans(text: str, rules: Sequence[Rule] = RULES) -> list[Span]:
    """What the rules find, in order, none over another: the earlier rule wins."""
    found: list[Span] = []
    for rule in rules:
        group = "found" if "found" in rule.pattern.groupindex else 0
        for match in rule.pattern.finditer(text):
            start, end = match.span(group)
            if rule.holds(match) and all(end <= other.start or start >= other.end for other in found):
                found.append(Span(start, end, rule))
    return sorted(found, key=lambda span: span.start)


def redact(text: str, rules: Sequence[Rule] = RULES) -> str:
    """The text with `[EMAIL]`, `[CARD]`... in place of what the rules find; nothing is found in it any more."""
    # once more: what stood beside a number can be one by itself when that is gone
    for _ in range(MAX_ROUNDS):
        found = spans(text, rules)
        if not found:
            return text
        text = "".join(_pieces(text, found))
    return text


def _pieces(text: str, found: Sequence[Span]) -> Iterator[str]:
    at = 0
    for span in found:
        yield text[at : span.start]
        yield f"[{span.rule.kind.upper()}]"
        at = span.end
    yield text[at:]


def _suspects(texts: Sequence[str], kinds: Sequence[str]) -> dict[int, list[Rule]]:
    """Row -> the rules whose hint is true of its text, rows in order."""
    import polars as pl

    whole = pl.DataFrame({"row": range(len(texts)), "text": texts}, schema={"row": pl.Int64, "text": pl.String})
    with_digits = whole.filter(pl.col("text").str.contains(DIGITS_HINT))
    suspects: dict[int, list[Rule]] = {}
    for rule in (r for r in RULES if r.kind in kinds):
        hits = (with_digits if rule.has_digits else whole).filter(pl.col("text").str.contains(rule.hint))
        for row in hits["row"].to_list():
            suspects.setdefault(row, []).append(rule)
    return dict(sorted(suspects.items()))


def _evidence(path: str, text: str, span: Span) -> dict[str, Any]:
    start, end, rule = span
    # a key of a tool's arguments is a part of the path, and may be personal itself
    place = {"path": redact(path), "span": [start, end]}
    return {"rule": rule.name, "kind": rule.kind, **place, "value": rule.mask(text[start:end])}


def _redacted(value: Any, rules: Sequence[Rule]) -> Any:
    """New value of the same shape. A key that is redacted to one that is there already is numbered."""
    if isinstance(value, str):
        return redact(value, rules)
    if isinstance(value, list):
        return [_redacted(inner, rules) for inner in value]
    if not isinstance(value, Mapping):
        return value
    made: dict[str, Any] = {}
    for key, inner in value.items():
        name = fresh = key if key in FIXED_KEYS else redact(key, rules)
        while fresh in made:
            fresh = f"{name} {len(made) + 1}"
        made[fresh] = _redacted(inner, rules)
    return made
