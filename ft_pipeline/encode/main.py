"""`python -m ft_pipeline.encode.main job.json`: curated rows become packed windows. A child process, so that no tokenizer loads in Dagster."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline.encode.artifact import LEDGER, LEDGER_COLUMNS, ROWS, SAMPLE, SPLITS, STATISTICS
from ft_pipeline.encode.pack import fill, pack
from ft_pipeline.encode.shards import Row, spans_of, write_split, write_table
from ft_pipeline.encode.template import Encoded, Rejected, Rendered, Template, load_template
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Encode
from ft_pipeline.store.artifacts import Artifact, Draft, Store
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.store.manifest import Ref
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, log, progress
from ft_pipeline.workers.startup import UNUSED_BY_A_TOKENIZER, hide

BATCH_ROWS = 256
EXCERPT_CHARACTERS = 160
MAX_UNMASKED_SHARE = 0.01
"""Above this share of rows without a loss mask the template, not the rows, is at fault: the dataset is refused."""
SAMPLE_WINDOWS = 2


@dataclass
class Tally:
    """What happened to the rows of one job: the ledger, and counts for the statistics."""

    ledger: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    chat: int = 0
    ended: int = 0
    """Chat rows that were not cut and whose every assistant turn trains its end-of-turn token."""
    whole: int = 0
    """Chat rows that were not cut."""


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the `packed_shards` of the job. Raises DataError when the template cannot be masked or no row is left."""
    section = Encode(**job.section)
    curated = store.fetch(job.spec.parents["curated"])
    base = store.fetch(Ref(**job.facts["base"]))
    template = load_template(base.folder, loss=section.loss)
    tally = Tally()
    rows = {split: list(_encoded(curated, split, (template, section, tally, mailbox))) for split in SPLITS}
    _refuse_unmasked(tally, sum(len(r) for r in rows.values()), template)
    if not rows["train"]:
        raise DataError(
            f"no row is left to train on: {dict(tally.reasons)}",
            cure="a larger encode.window_tokens, or overlong: truncate; the ledger names each row",
        )
    with store.publish(job.spec) as draft:
        _write(draft, rows, (template, section, tally))
    log(mailbox, f"{draft.counts['windows']} windows, {tally.reasons.total()} rows rejected or cut", **draft.counts)


def _encoded(curated: Artifact, split: str, tools: tuple[Template, Encode, Tally, Mailbox]) -> Iterator[Row]:
    """The split's rows in order, without the rejected ones."""
    import pyarrow.parquet as pq

    template, section, tally, mailbox = tools
    file = pq.ParquetFile(curated.file(f"{split}.parquet"))
    done, total = 0, file.metadata.num_rows
    for batch in file.iter_batches(batch_size=BATCH_ROWS):
        raw = batch.to_pylist()
        yield from _batch(raw, (template, section, tally))
        done += len(raw)
        progress(mailbox, f"encode {split}", done, total=total, unit="row")


def _batch(raw: list[dict[str, Any]], tools: tuple[Template, Encode, Tally]) -> Iterator[Row]:
    template, section, tally = tools
    kept: list[tuple[dict[str, Any], Rendered]] = []
    for row in raw:
        rendered = template.render(row["shape"], json.loads(row["content"]))
        if isinstance(rendered, Rejected):
            _note(tally, row, ("dropped", rendered))
        else:
            kept.append((row, rendered))
    encoded = template.encode([rendered for _, rendered in kept]) if kept else []
    for (row, _), found in zip(kept, encoded, strict=True):
        if made := _fitted(row, found, (section, tally)):
            yield made


def _fitted(row: dict[str, Any], found: Encoded, tools: tuple[Encode, Tally]) -> Row | None:
    """The row within the window, ids and mask cut together; None when it is rejected."""
    import numpy as np

    section, tally = tools
    tokens, limit = len(found.ids), section.window_tokens
    facts = {"tokens": tokens, "window_tokens": limit}
    if tokens > limit and section.overlong == "reject":
        return _note(tally, row, ("dropped", Rejected(reason="overlong", evidence=facts)))
    mask = np.asarray(found.mask[:limit], bool)
    if not mask.any():
        return _note(tally, row, ("dropped", Rejected(reason="no_trained_token", evidence=facts)))
    if tokens > limit:
        _note(tally, row, ("changed", Rejected(reason="truncated", evidence=facts)))
    if row["shape"] == "chat":
        tally.chat += 1
        tally.whole += tokens <= limit
        tally.ended += found.ends and tokens <= limit
    return Row(row_id=row["row_id"], ids=np.asarray(found.ids[:limit], np.int32), mask=mask)


def _note(tally: Tally, row: dict[str, Any], what: tuple[str, Rejected]) -> None:
    action, rejected = what
    tally.reasons[rejected.reason] += 1
    tally.ledger.append(
        {
            "row_id": row["row_id"],
            "origin": row["origin"],
            "action": action,
            "stage": "encode",
            "reason": rejected.reason,
            "evidence": canonical_json(rejected.evidence).decode(),
            "excerpt": row["content"][:EXCERPT_CHARACTERS],
        }
    )


def _refuse_unmasked(tally: Tally, num_kept: int, template: Template) -> None:
    unmasked = sum(tally.reasons[r] for r in ("assistant_spans_not_found", "template_error", "no_chat_template"))
    if unmasked <= MAX_UNMASKED_SHARE * (num_kept + unmasked):
        return
    first = next(
        e for e in tally.ledger if e["reason"] in ("assistant_spans_not_found", "template_error", "no_chat_template")
    )
    raise DataError(
        f"the chat template gives no loss mask for {unmasked} rows (road {template.road}); first {first['row_id']}: "
        f"{first['reason']} {first['evidence']}",
        why="Training on the wrong tokens, or dropping every conversation of several turns, would not be seen in the loss.",
        cure="put {% generation %} ... {% endgeneration %} around the assistant's text in the base model's chat_template.jinja",
    )


def _write(draft: Draft, rows: dict[str, list[Row]], tools: tuple[Template, Encode, Tally]) -> None:
    template, section, tally = tools
    index: list[dict[str, Any]] = []
    statistics: dict[str, Any] = {}
    for split, kept in rows.items():
        lengths = [len(row.ids) for row in kept]
        windows = pack(lengths, window_tokens=section.window_tokens, seed=section.seed)
        index += write_split(draft, split, (kept, windows))
        statistics[split] = _split_statistics(kept, windows, section.window_tokens)
        if split == "train":
            sample = [[_decoded(template, kept[r]) for r in window] for window in windows[:SAMPLE_WINDOWS]]
            (draft.folder / SAMPLE).write_bytes(canonical_json(sample))
    _write_tables(draft, index, tally)
    draft.counts.update(_counts(statistics, rows))
    whole = {
        **_whole_statistics(statistics, rows, tally),
        "road": template.road,
        "window_tokens": section.window_tokens,
    }
    (draft.folder / STATISTICS).write_text(json.dumps({**whole, "splits": statistics}, sort_keys=True, indent=1))


def _write_tables(draft: Draft, index: list[dict[str, Any]], tally: Tally) -> None:
    import pyarrow as pa

    texts, numbers = ("row_id", "split", "shard"), ("window", "start", "tokens", "trained_tokens")
    columns = {n: pa.array([e[n] for e in index], pa.string()) for n in texts}
    columns |= {n: pa.array([e[n] for e in index], pa.int32()) for n in numbers}
    write_table(draft, ROWS, pa.table(columns))
    ledger = {n: pa.array([e[n] for e in tally.ledger], pa.string()) for n in LEDGER_COLUMNS}
    write_table(draft, LEDGER, pa.table(ledger))


def _split_statistics(rows: Sequence[Row], windows: list[list[int]], window_tokens: int) -> dict[str, Any]:
    lengths = [len(row.ids) for row in rows]
    return {
        "rows": len(rows),
        "windows": len(windows),
        "tokens": sum(lengths),
        "trained_tokens": sum(int(row.mask.sum()) for row in rows),
        "fill": round(fill(lengths, windows, window_tokens=window_tokens), 6),
    }


def _counts(splits: dict[str, Any], rows: dict[str, list[Row]]) -> dict[str, int]:
    totals = {name: sum(s[name] for s in splits.values()) for name in ("windows", "tokens", "trained_tokens", "rows")}
    return {**totals, **{f"{split}_windows": splits[split]["windows"] for split in rows}}


def _whole_statistics(splits: dict[str, Any], rows: dict[str, list[Row]], tally: Tally) -> dict[str, Any]:
    train = splits["train"]
    return {
        **train,
        "trained_share": round(train["trained_tokens"] / train["tokens"], 6),
        "rejected": dict(sorted(tally.reasons.items())),
        "chat_rows": tally.chat,
        "rows_all_splits": sum(s["rows"] for s in splits.values()),
        "end_of_turn": {"rows": tally.whole, "supervised": tally.ended},
        "longest_row_tokens": max(len(row.ids) for row in rows["train"]),
        "length_histogram": _histogram([len(row.ids) for row in rows["train"]]),
    }


def _histogram(lengths: list[int]) -> dict[str, list[int]]:
    """Rows by length in 24 equal bins: `edges` has one entry more than `rows`."""
    import numpy as np

    edges = np.unique(np.linspace(0, max(lengths) + 1, 25).astype(int))
    counts, _ = np.histogram(lengths, edges)
    return {"edges": edges.tolist(), "rows": counts.tolist()}


def _decoded(template: Template, row: Row) -> dict[str, Any]:
    """A row as pieces of text, each trained or not."""
    edges, pieces, at = spans_of(row.mask), [], 0
    for start, end in [*zip(edges[::2], edges[1::2], strict=True), (len(row.ids), len(row.ids))]:
        for part, trained in ((row.ids[at:start], False), (row.ids[start:end], True)):
            if len(part):
                pieces.append([template.tokenizer.decode(part.tolist()), trained])
        at = end
    return {"row_id": row.row_id, "pieces": pieces}


if __name__ == "__main__":
    hide(UNUSED_BY_A_TOKENIZER)
    sys.exit(run_child(body, sys.argv))
