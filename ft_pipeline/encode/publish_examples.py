"""A curated dataset of pairs, labelled completions, prompts or judged steps as the files of `packed_shards`: streamed, with index, ledger, statistics, samples.

The tokenizer's own threads use the cores; rows are in memory by the thousand.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.artifact import LEDGER, LEDGER_COLUMNS, ROWS, SAMPLE, SPLITS, STATISTICS
from ft_pipeline.encode.example_files import Written, write_examples
from ft_pipeline.encode.example_rows import Example, Labelled, Pair, Stepwise, longest_of
from ft_pipeline.encode.examples import encode_examples
from ft_pipeline.encode.shards import TableFile
from ft_pipeline.encode.spill import Draft as Notes
from ft_pipeline.encode.spill import cut
from ft_pipeline.encode.template import Rejected, Template, refuse_long_windows
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Encode
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.workers.messages import Listener, progress

if TYPE_CHECKING:
    from ft_pipeline.store.artifacts import Artifact, Draft

BATCH_ROWS = 256
SAMPLES = 3
HISTOGRAM_BINS = 24
MAX_UNMASKED_SHARE = 0.01
"""As for windows: above it the template, not the rows, is at fault."""
UNMASKED = (
    "assistant_spans_not_found", "template_error", "no_chat_template", "prompt_rewritten", "end_of_turn_not_trained",
)  # fmt: skip


@dataclass
class Work:
    """What happens while the rows stream by."""

    template: Template
    section: Encode
    ledger: TableFile
    listener: Listener
    total: int
    done: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    first_unmasked: dict[str, Any] | None = None
    samples: list[Example] = field(default_factory=list)
    lengths: array[int] = field(default_factory=lambda: array("i"))
    """Of training rows: tokens of the longest sequence of each."""


def write_example_files(
    draft: Draft, curated: Artifact, tools: tuple[Template, Encode], *, listener: Listener
) -> Counter[str]:
    """Writes every file of the artifact and its counts; how many rows were rejected comes back by reason.

    Raises DataError when no training row is left, when more than 1% of the rows cannot be masked, or when rows are of two kinds.
    """
    import pyarrow as pa

    template, section = tools
    refuse_long_windows(template, section.window_tokens)
    texts, integers = ("row_id", "split", "shard"), ("window", "piece", "start", "tokens", "trained_tokens")
    places = pa.schema([*((name, pa.string()) for name in texts), *((name, pa.int32()) for name in integers)])
    notes = pa.schema([(name, pa.string()) for name in LEDGER_COLUMNS])
    with TableFile(draft, ROWS, places) as index, TableFile(draft, LEDGER, notes) as ledger:
        work = Work(template, section, ledger, listener, sum(curated.manifest.counts.get(s, 0) for s in SPLITS))
        splits = {
            split: write_examples(draft, split, _examples(curated, split, work), index=index.write) for split in SPLITS
        }
    _refuse(work, splits)
    (draft.folder / SAMPLE).write_bytes(canonical_json([s for e in work.samples for s in _decoded(template, e)]))
    (draft.folder / STATISTICS).write_text(json.dumps(_statistics(work, splits), sort_keys=True, indent=1))
    draft.counts.update(_counts(splits))
    return work.reasons


def _examples(curated: Artifact, split: str, work: Work) -> Iterator[Example]:
    """The split's rows in order; what is rejected goes to the ledger."""
    for block in cut(curated.file(f"{split}.parquet")):
        rows = block.to_pylist()
        for start in range(0, len(rows), BATCH_ROWS):
            yield from _batch(rows[start : start + BATCH_ROWS], split, work)


def _batch(rows: list[dict[str, Any]], split: str, work: Work) -> Iterator[Example]:
    import pyarrow as pa

    notes = Notes()
    content = [(row["row_id"], row["shape"], json.loads(row["content"])) for row in rows]
    found = encode_examples(
        work.template, content, limit_tokens=work.section.window_tokens, separator=work.section.step_separator
    )
    for row, example in zip(rows, found, strict=True):
        if isinstance(example, Rejected):
            notes.note(row, "dropped", (example.reason, example.evidence))
            if example.reason in UNMASKED:
                work.first_unmasked = work.first_unmasked or {"row_id": row["row_id"], **asdict(example)}
            continue
        work.kinds[type(example).__name__.lower()] += 1
        if split == "train":
            work.lengths.append(longest_of(example))
            work.samples += [example] if len(work.samples) < SAMPLES else []
        yield example
    work.reasons.update(notes.reasons)
    work.done += len(rows)
    if notes.ledger:
        work.ledger.write(pa.table({n: pa.array([e[n] for e in notes.ledger], pa.string()) for n in LEDGER_COLUMNS}))
    progress(work.listener, "encode", work.done, total=max(work.total, work.done), unit="row")


def _refuse(work: Work, splits: Mapping[str, Written]) -> None:
    unmasked = sum(work.reasons[reason] for reason in UNMASKED)
    if unmasked > MAX_UNMASKED_SHARE * work.done and work.first_unmasked is not None:
        first = work.first_unmasked
        raise DataError(
            f"the chat template gives no loss mask for {unmasked} rows (road {work.template.road}); first {first['row_id']}: "
            f"{first['reason']} {first['evidence']}",
            why="Training on the wrong tokens would not be seen in the loss.",
            cure="put {% generation %} ... {% endgeneration %} around the assistant's text in the base model's chat_template.jinja",
        )
    if not splits["train"].rows:
        raise DataError(
            f"no row is left to train on: {dict(work.reasons)}",
            cure="a larger encode.window_tokens; the ledger names each row",
        )


def _statistics(work: Work, splits: Mapping[str, Written]) -> dict[str, Any]:
    """As of packed windows, so that the same page shows them: a window is a row here, `fill` what a row takes of one."""
    numbers = {split: _numbers(written, work.section) for split, written in splits.items()}
    train, completed = numbers["train"], work.kinds["pair"] + work.kinds["labelled"]
    return {
        **train,
        "examples": max(work.kinds, key=lambda kind: work.kinds[kind]),
        "trained_share": round(train["trained_tokens"] / train["tokens"], 6),
        "rejected": dict(sorted(work.reasons.items())),
        "chat_rows": 0,
        "rows_in": work.done,
        "rows_dropped": work.reasons.total(),
        "rows_all_splits": sum(written.rows for written in splits.values()),
        # an end of turn that is not trained is a reason to reject the row
        "end_of_turn": {"rows": completed, "supervised": completed},
        "longest_row_tokens": max(work.lengths),
        "length_histogram": _histogram(work.lengths),
        "road": work.template.road,
        "window_tokens": work.section.window_tokens,
        "splits": numbers,
    }


def _numbers(written: Written, section: Encode) -> dict[str, Any]:
    room = written.rows * section.window_tokens
    return {
        "rows": written.rows,
        "pieces": written.rows,
        "windows": written.rows,
        "tokens": written.tokens,
        "trained_tokens": written.trained_tokens,
        "fill": round(written.tokens / room, 6) if room else 0.0,
    }


def _counts(splits: Mapping[str, Written]) -> dict[str, int]:
    return {
        "windows": sum(w.rows for w in splits.values()),
        "tokens": sum(w.tokens for w in splits.values()),
        "trained_tokens": sum(w.trained_tokens for w in splits.values()),
        "rows": sum(w.rows for w in splits.values()),
        **{f"{split}_windows": w.rows for split, w in splits.items()},
    }


def _histogram(lengths: array[int]) -> dict[str, list[int]]:
    import numpy as np

    bins = np.unique(np.linspace(0, max(lengths) + 1, HISTOGRAM_BINS + 1).astype(int))
    return {"edges": bins.tolist(), "rows": np.histogram(lengths, bins)[0].tolist()}


def _decoded(template: Template, example: Example) -> list[dict[str, Any]]:
    """The sequences of a row as pieces of text, each trained or not."""
    if isinstance(example, Pair):
        sides = {
            "chosen": (example.chosen_ids, example.chosen_spans),
            "rejected": (example.rejected_ids, example.rejected_spans),
        }
    elif isinstance(example, Labelled):
        sides = {"wanted" if example.label else "unwanted": (example.completion_ids, example.completion_spans)}
    elif isinstance(example, Stepwise):
        judged = "".join("+" if label else "-" for label in example.labels)
        sides = {f"steps {judged}": (example.completion_ids, [(end, end + 1) for end in example.ends])}
    else:
        sides = {"prompt": ([], [])}
    made = []
    for side, (ids, spans) in sides.items():
        borders = [0, *(place for span in spans for place in span), len(ids)]
        parts = [(example.prompt_ids, False), *((ids[a:b], n % 2 == 1) for n, (a, b) in enumerate(pairwise(borders)))]
        pieces = [(template.tokenizer.decode(list(part)), trained) for part, trained in parts if len(part)]
        made.append(
            {"row_id": f"{example.row_id} {side}", "tokens": len(example.prompt_ids) + len(ids), "pieces": pieces}
        )
    return made
