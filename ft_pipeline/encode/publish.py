"""Encoded rows as the files of `packed_shards`: packed, written shard by shard, with index, ledger, statistics and samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.artifact import LEDGER, LEDGER_COLUMNS, ROWS, SAMPLE, STATISTICS
from ft_pipeline.encode.columns import edges
from ft_pipeline.encode.gather import Spilled, gather
from ft_pipeline.encode.pack import Packing, fill, pack
from ft_pipeline.encode.shards import TableFile, index_table, shards_of, write_shard
from ft_pipeline.encode.spill import read_ledger
from ft_pipeline.encode.template import Template
from ft_pipeline.recipe import Encode
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.workers.messages import Listener, progress

if TYPE_CHECKING:
    import numpy as np

    from ft_pipeline.store.artifacts import Draft

SAMPLE_QUANTILES = (0.25, 0.5, 0.9)
HISTOGRAM_BINS = 24


def write_files(
    draft: Draft, splits: Mapping[str, Spilled], tools: tuple[Template, Encode], *, listener: Listener
) -> None:
    """Writes every file of the artifact and its counts."""
    template, section = tools
    packed = {
        split: (rows, pack(rows.lengths, window_tokens=section.window_tokens, seed=section.seed))
        for split, rows in splits.items()
    }
    _write_windows(draft, packed, listener)
    _write_ledger(draft, [path for rows in splits.values() for path in rows.blocks])
    (draft.folder / SAMPLE).write_bytes(canonical_json(_samples(template, splits["train"])))
    numbers = {split: _numbers(rows, packing, section) for split, (rows, packing) in packed.items()}
    whole = _whole(numbers, splits) | {"road": template.road, "window_tokens": section.window_tokens}
    (draft.folder / STATISTICS).write_text(json.dumps({**whole, "splits": numbers}, sort_keys=True, indent=1))
    draft.counts.update(_counts(numbers))


def _write_windows(draft: Draft, packed: Mapping[str, tuple[Spilled, Packing]], listener: Listener) -> None:
    import pyarrow as pa

    texts, integers = ("row_id", "split", "shard"), ("window", "piece", "start", "tokens", "trained_tokens")
    schema = pa.schema([*((name, pa.string()) for name in texts), *((name, pa.int32()) for name in integers)])
    done, total = 0, sum(len(packing) for _, packing in packed.values())
    with TableFile(draft, ROWS, schema) as index:
        for split, content in packed.items():
            for shard in shards_of(split, content):
                write_shard(draft, shard)
                index.write(index_table(split, shard))
                done += len(shard.offsets) - 1
                progress(listener, "write windows", done, total=total, unit="window")


def _write_ledger(draft: Draft, blocks: list[Path]) -> None:
    import pyarrow as pa

    with TableFile(draft, LEDGER, pa.schema([(name, pa.string()) for name in LEDGER_COLUMNS])) as file:
        for path in blocks:
            if (entries := read_ledger(path)) is not None:
                file.write(entries)


def _numbers(rows: Spilled, packing: Packing, section: Encode) -> dict[str, Any]:
    """Of one split."""
    return {
        "rows": rows.counts["rows"],
        "pieces": len(rows.lengths),
        "windows": len(packing),
        "tokens": int(rows.lengths.sum(dtype="int64")),
        "trained_tokens": int(rows.trained.sum(dtype="int64")),
        "fill": round(fill(rows.lengths, packing, window_tokens=section.window_tokens), 6),
    }


def _counts(numbers: Mapping[str, Any]) -> dict[str, int]:
    totals = {name: sum(s[name] for s in numbers.values()) for name in ("windows", "tokens", "trained_tokens", "rows")}
    return {**totals, **{f"{split}_windows": s["windows"] for split, s in numbers.items()}}


def _whole(numbers: Mapping[str, Any], splits: Mapping[str, Spilled]) -> dict[str, Any]:
    """Of the artifact: the figures of training, and what became of the rows of all splits."""
    train, lengths = numbers["train"], splits["train"].lengths
    counts, reasons = Counter[str](), Counter[str]()
    for rows in splits.values():
        counts.update(rows.counts)
        reasons.update(rows.reasons)
    return {
        **train,
        "trained_share": round(train["trained_tokens"] / train["tokens"], 6),
        "rejected": dict(sorted(reasons.items())),
        "chat_rows": counts["chat"],
        "rows_in": counts["rows_in"],
        "rows_dropped": counts["dropped"],
        "rows_all_splits": counts["rows"],
        "end_of_turn": {"rows": counts["whole"], "supervised": counts["ended"]},
        "longest_row_tokens": int(lengths.max()),
        "length_histogram": _histogram(lengths),
    }


def _histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """Rows by length in 24 equal bins: `edges` has one entry more than `rows`."""
    import numpy as np

    bins = np.unique(np.linspace(0, int(lengths.max()) + 1, HISTOGRAM_BINS + 1).astype(int))
    return {"edges": bins.tolist(), "rows": np.histogram(lengths, bins)[0].tolist()}


def _samples(template: Template, rows: Spilled) -> list[dict[str, Any]]:
    """A short, a middling and a long row, decoded."""
    import numpy as np

    by_length = np.argsort(rows.lengths, kind="stable")
    chosen = np.unique([by_length[int(q * (len(by_length) - 1))] for q in SAMPLE_QUANTILES])
    found = gather(rows, chosen[np.argsort(rows.lengths[chosen], kind="stable")])
    starts, spans = edges(found.lengths), edges(found.num_edges)
    return [
        {
            "row_id": row_id,
            "tokens": int(found.lengths[n]),
            "pieces": _decoded(
                template, found.ids[starts[n] : starts[n + 1]], found.edges[spans[n] : spans[n + 1]].tolist()
            ),
        }
        for n, row_id in enumerate(found.row_ids.to_pylist())
    ]


def _decoded(template: Template, ids: np.ndarray, spans: list[int]) -> list[tuple[str, bool]]:
    """A row as pieces of text, each trained or not."""
    borders = [0, *spans, len(ids)]
    parts = [(ids[a:b], n % 2 == 1) for n, (a, b) in enumerate(pairwise(borders))]
    return [(template.tokenizer.decode(part.tolist()), trained) for part, trained in parts if len(part)]
