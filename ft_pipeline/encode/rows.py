"""A block of curated rows as tokens: rendered, tokenised, masked, fitted to the window, spilled. Runs in the processes of a pool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.encode.spill import Draft, write_block
from ft_pipeline.encode.template import Encoded, Rejected, Rendered, Template, load_template, refuse_long_windows
from ft_pipeline.recipe import Encode
from ft_pipeline.workers.startup import UNUSED_BY_A_TOKENIZER, hide

BATCH_ROWS = 256
BATCH_LETTERS = 1 << 20
CONTEXT_TOKENS = 1
"""A further piece of a split row repeats so many tokens, untrained: without one its first token would not be predicted."""
Piece = tuple[Sequence[int], tuple[tuple[int, int], ...]]
"""Token ids and the spans of the trained ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A block to encode."""

    path: Path
    """Where it is spilled."""
    rows: Any
    """Arrow table: row_id, shape, content, origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What becomes of a row in windows: its pieces, and what the ledger says about it."""

    pieces: tuple[Piece, ...]
    note: tuple[str, Rejected] | None = None


_tools: tuple[Template, Encode] | None = None
"""Of this process: a tokenizer takes a second to load and does not travel between processes."""


def open_tools(base: Path, section: Encode) -> None:
    """In a worker: loads its tokenizer."""
    hide(UNUSED_BY_A_TOKENIZER)
    use_tools(loaded(base, section), section)


def loaded(base: Path, section: Encode) -> Template:
    """The tokenizer and template of a base model's folder. Raises DataError when the section does not fit them."""
    template = load_template(base, loss=section.loss)
    refuse_long_windows(template, section.window_tokens)
    return template


def use_tools(template: Template, section: Encode) -> None:
    """What `encode_block` of this process works with."""
    global _tools
    _tools = template, section


def encode_block(task: Task) -> tuple[Path, int]:
    """Spills the block; where, and the number of its curated rows come back."""
    if _tools is None:
        raise RuntimeError("open_tools or use_tools comes first")
    draft = Draft()
    for rows in _batches(task.rows.to_pylist()):
        _add(draft, rows, _tools)
    write_block(task.path, draft)
    return task.path, len(task.rows)


def fitted(row: Encoded, shape: str, section: Encode) -> Fitted:
    """The row within windows: whole, rejected, cut, or split. Ids and trained spans are cut together, after masking.

    A split row's trained tokens are trained once each; pieces without any are left out. Conversations are never split: a later
    piece would answer a question that is not there.
    """
    tokens, limit = len(row.ids), section.window_tokens
    facts = {"tokens": tokens, "window_tokens": limit}
    if tokens > limit and section.overlong == "reject":
        return _dropped("overlong", facts)
    if tokens > limit and section.overlong == "split" and shape == "chat":
        return _dropped("overlong_conversation", {**facts, "cure": "overlong: truncate"})
    if tokens <= limit:
        return Fitted(pieces=((row.ids, row.spans),)) if row.spans else _dropped("no_trained_token", facts)
    pieces = _split(row, limit) if section.overlong == "split" else [_part(row, 0, limit)]
    trained = tuple(piece for piece in pieces if piece[1])
    if not trained:
        return _dropped("no_trained_token", facts)
    if section.overlong == "truncate":
        return Fitted(pieces=trained, note=("changed", Rejected(reason="truncated", evidence=facts)))
    facts |= {"pieces": len(trained), "untrained_pieces_left_out": len(pieces) - len(trained)}
    return Fitted(pieces=trained, note=("changed", Rejected(reason="split", evidence=facts)))


def _batches(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """At most 256 rows or about 1 M letters at a time: while a text is tokenised it takes 230 bytes a token (measured)."""
    batch: list[dict[str, Any]] = []
    letters = 0
    for row in rows:
        batch.append(row)
        letters += len(row["content"])
        if len(batch) == BATCH_ROWS or letters >= BATCH_LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch


def _add(draft: Draft, rows: list[dict[str, Any]], tools: tuple[Template, Encode]) -> None:
    template, section = tools
    rendered = [template.render(row["shape"], json.loads(row["content"])) for row in rows]
    kept = [found for found in rendered if isinstance(found, Rendered)]
    encoded = iter(template.encode(kept) if kept else [])
    draft.counts["rows_in"] += len(rows)
    for row, found in zip(rows, rendered, strict=True):
        if isinstance(found, Rejected):
            draft.note(row, "dropped", (found.reason, found.evidence))
        else:
            _add_row(draft, row, (found, next(encoded), section))


def _add_row(draft: Draft, row: Mapping[str, Any], made: tuple[Rendered, Encoded, Encode]) -> None:
    rendered, encoded, section = made
    result = fitted(encoded, row["shape"], section)
    if result.pieces and rendered.changed:
        draft.note(row, "changed", (rendered.changed.reason, rendered.changed.evidence))
    if result.note:
        action, why = result.note
        draft.note(row, action, (why.reason, why.evidence))
    for number, piece in enumerate(result.pieces):
        draft.add(row["row_id"], number, piece)
    if result.pieces:
        draft.counts["rows"] += 1
        if row["shape"] == "chat":
            uncut = result.note is None
            draft.counts.update(chat=1, whole=uncut, ended=encoded.ends and uncut)


def _split(row: Encoded, limit: int) -> list[Piece]:
    step = max(1, limit - CONTEXT_TOKENS)
    return [_part(row, start, start + limit) for start in range(0, len(row.ids) - CONTEXT_TOKENS, step)]


def _part(row: Encoded, start: int, end: int) -> Piece:
    """Tokens from `start` to `end` as a row of its own, whose first token is not trained."""
    spans = [(max(a, start + 1) - start, min(b, end) - start) for a, b in row.spans]
    return row.ids[start:end], tuple(span for span in spans if span[0] < span[1])


def _dropped(reason: str, evidence: Mapping[str, Any]) -> Fitted:
    return Fitted(pieces=(), note=("dropped", Rejected(reason=reason, evidence=dict(evidence))))
