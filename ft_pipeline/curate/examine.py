"""One block of raw rows is examined: normalised, validated, filtered, made comparable, signed. Runs in any process, in any order.

The outcome is a folder named by what went in, so that a killed run goes on where it was, and rows that are appended to a file do
not cost the earlier ones again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ft_pipeline.curate.artifact import Reason, Rejection
from ft_pipeline.curate.blocks import Block
from ft_pipeline.curate.comparison import Comparable, comparable
from ft_pipeline.curate.examined import BlockFiles, write_block
from ft_pipeline.curate.filters import Filters, batch_of, open_filters
from ft_pipeline.curate.flags import Flag
from ft_pipeline.curate.mapping import open_mapping
from ft_pipeline.curate.normalize import normalize
from ft_pipeline.curate.read import RawRow, rows_of_block
from ft_pipeline.curate.signing import keys_of, signed
from ft_pipeline.curate.validate import ControlTokens, as_json, escape, reason_to_reject
from ft_pipeline.recipe import Curate
from ft_pipeline.store.fingerprint import sha256_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How the rows of one source are read."""

    layout: str = "auto"
    mapping: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """Everything that decides what is found in a block, and where its outcome is kept."""

    config: Curate
    control_tokens: tuple[str, ...]
    sources: Mapping[str, Reading]
    folder: Path
    identity: str
    """Digest of code, config, tokens, word list and indexes."""
    words: Path | None = None
    indexes: tuple[Path, ...] = ()
    forgotten: frozenset[str] = frozenset()
    """Keys of rows that were taken down, 16 hex digits."""

    def place(self, block: Block) -> Path:
        """The folder of a block's outcome."""
        reading = self.sources[block.source]
        named = sha256_json([block.digest, self.identity, reading.layout, dict(reading.mapping or {})])
        return self.folder / named[:2] / named


@dataclass
class _Found:
    """The rows of a block, sorted into fit ones and entries."""

    keys: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    layouts: Counter[str] = field(default_factory=Counter)
    ordinals: list[int] = field(default_factory=list)
    """Of the fit rows, among all."""
    shapes: list[str] = field(default_factory=list)
    contents: list[Mapping[str, Any]] = field(default_factory=list)
    excerpts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Examiner:
    """An examination with its filters open."""

    examination: Examination
    filters: Filters
    control: ControlTokens
    mappings: Mapping[str, Any]

    def examine(self, block: Block) -> Path:
        """The folder with the outcome of a block; made now, or found from before."""
        place = self.examination.place(block)
        if BlockFiles(place).are_whole:
            place.touch()
            return place
        found = self._sorted(block)
        filtered = self.filters.over(batch_of(found.shapes, found.contents))
        contents = filtered.batch.contents
        compared = [comparable(shape, content) for shape, content in zip(found.shapes, contents, strict=True)]
        columns = {
            "shape": found.shapes,
            "content": [as_json(content) for content in contents],
            "excerpt": self._excerpts(found.excerpts, filtered.flags),
            **_texts(compared),
        }
        numbers = {
            "all_keys": np.array([int(key[:16], 16) for key in found.keys], np.uint64),
            "all_numbers": np.array(found.numbers, np.int32),
            "ordinal": np.array(found.ordinals, np.int32),
            "score": np.asarray(filtered.scores, np.float32),
            "dropped": _dropped(filtered.flags, len(contents)),
            **keys_of(compared),
            **self._signed(columns),
        }
        counts = {"rows": len(found.keys), "fit": len(contents), "layouts": dict(found.layouts)}
        flags = [_told(flag, found.ordinals) for flag in filtered.flags]
        write_block(place, columns, numbers, entries=found.entries, flags=flags, counts=counts)
        return place

    def _sorted(self, block: Block) -> _Found:
        found = _Found()
        for ordinal, raw in enumerate(rows_of_block(block)):
            found.keys.append(raw.key)
            found.numbers.append(raw.number)
            self._place(raw, ordinal, found, source=block.source)
        return found

    def _place(self, raw: RawRow, ordinal: int, found: _Found, *, source: str) -> None:
        if raw.key[:16] in self.examination.forgotten:
            found.entries.append(_taken_down(ordinal))
            return
        reading = self.examination.sources[source]
        normal: Any = raw.rejection
        if raw.value is not None:
            normal = normalize(raw.value, reading.layout, self.mappings[source])
        if isinstance(normal, Rejection):
            found.entries.append(self._entry(raw, ordinal, ("dropped", "normalize", normal)))
            return
        found.layouts[normal.layout] += 1
        content, broken = normal.content, ()
        if self.examination.config.control_tokens == "escape":
            content, broken = escape(content, self.control)
        if reason := reason_to_reject(normal.shape, content, self.control):
            found.entries.append(self._entry(raw, ordinal, ("dropped", "validate", reason)))
            return
        found.entries += [self._entry(raw, ordinal, ("changed", "normalize", change)) for change in normal.changes]
        found.entries += [self._entry(raw, ordinal, ("changed", "validate", change)) for change in broken]
        found.ordinals.append(ordinal)
        found.shapes.append(normal.shape)
        found.contents.append(content)
        found.excerpts.append(raw.excerpt)

    def _entry(self, raw: RawRow, ordinal: int, what: tuple[str, str, Rejection]) -> dict[str, Any]:
        """A line of the ledger. What the filters look for must not stand in it, though the row never reached them."""
        action, stage, rejection = what
        return {
            "ordinal": ordinal, "action": action, "stage": stage, "reason": str(rejection.reason),
            "evidence": self.filters.masked(rejection.evidence()), "excerpt": self.filters.masked(raw.excerpt),
        }  # fmt: skip

    def _excerpts(self, excerpts: Sequence[str], flags: Sequence[Flag]) -> list[str]:
        told = {flag.row for flag in flags if flag.filter in ("pii", "toxicity")}
        return [self.filters.masked(text) if row in told else text for row, text in enumerate(excerpts)]

    def _signed(self, columns: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        prompts, responses = columns["prompt"], columns["response"]
        whole = [f"{p}\n{r}" if p else r for p, r in zip(prompts, responses, strict=True)]
        return signed(whole, prompts, threshold=self.examination.config.near_duplicates.threshold)


def _taken_down(ordinal: int) -> dict[str, Any]:
    """A line of the ledger that quotes nothing of the row."""
    gone = {"action": "dropped", "stage": "takedown", "reason": str(Reason.FORGOTTEN), "evidence": "{}", "excerpt": ""}
    return {"ordinal": ordinal, **gone}


_open: Examiner | None = None
"""Of this process: word lists and indexes are opened once, not for each block."""


def begin(examination: Examination) -> None:
    """Opens what the examination needs, in the process that will examine."""
    global _open
    _open = examiner(examination)


def examine(block: Block) -> Path:
    """`Examiner.examine` of this process."""
    if _open is None:
        raise RuntimeError("begin() comes first")
    return _open.examine(block)


def examiner(examination: Examination) -> Examiner:
    """An examination with its filters open."""
    filters = open_filters(examination.config, words=examination.words, indexes=examination.indexes)
    mappings = {name: open_mapping(reading.mapping) for name, reading in examination.sources.items()}
    return Examiner(examination, filters, ControlTokens(examination.control_tokens), mappings)


def _told(flag: Flag, ordinals: Sequence[int]) -> dict[str, Any]:
    return {
        "ordinal": ordinals[flag.row],
        "filter": flag.filter,
        "action": flag.action,
        "reason": str(flag.reason),
        "evidence": json.dumps(flag.evidence, sort_keys=True, ensure_ascii=True),
    }


def _dropped(flags: Sequence[Flag], rows: int) -> np.ndarray:
    made = np.zeros(rows, bool)
    made[[flag.row for flag in flags if flag.action == "drop"]] = True
    return made


def _texts(compared: Sequence[Comparable]) -> dict[str, list[str]]:
    return {"prompt": [row.prompt for row in compared], "response": [row.response for row in compared]}
