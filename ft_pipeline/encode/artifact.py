"""The noun of the room: `packed_shards`, windows of tokens with row boundaries, loss spans and row ids."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.example_rows import (
    Labelled,
    Pair,
    Prompt,
    Reference,
    Stepwise,
    example_kind,
    labelled_at,
    mismatched,
    read_labelled,
    read_pairs,
    read_prompts,
    read_reference,
    read_stepwise,
)
from ft_pipeline.encode.reference import KIND as REFERENCE_KIND
from ft_pipeline.encode.reference import Measure, measure_of, reference_job, reference_spec
from ft_pipeline.encode.reference_model import (
    needs_reference,
    newest,
    pinned,
    reference_model,
    refuse_other_tokenizer,
    refuse_tensors,
    resolved,
    starting_adapter,
)
from ft_pipeline.recipe import Encode, identity
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.files import beside, sync_file
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Ref, Spec

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "REFERENCE_KIND", "Labelled", "Measure", "Pair", "Prompt", "Reference", "Stepwise", "example_kind", "labelled_at", "measure_of", "mismatched", "needs_reference",
    "newest", "pinned", "read_labelled", "read_pairs", "read_prompts", "read_reference", "read_stepwise", "reference_job", "reference_model", "reference_spec",
    "refuse_other_tokenizer", "refuse_tensors", "resolved", "starting_adapter",
]  # fmt: skip
"""Of example_rows.py, reference.py and reference_model.py, for the rooms below: they may import this file only."""

KIND = "packed_shards"
SPLITS = ("train", "validation")
STATISTICS = "statistics.json"
SAMPLE = "sample.json"
"""Three rows of training, decoded: a short, a middling and a long one, {row_id, tokens, pieces: [[text, trained], ...]}."""
ROWS = "rows.parquet"
LEDGER = "ledger.parquet"
CACHE_WINDOWS = 256
"""In one record batch of the training cache."""
CODE = (
    "template", "chat", "messages", "spans", "rows", "spill", "columns", "gather", "pack", "shards", "blocks", "publish", "main",
    "examples", "example_rows", "example_files", "publish_examples",
)  # fmt: skip
"""The files of this room that decide the bytes of the shards."""
LEDGER_COLUMNS = ("row_id", "origin", "action", "stage", "reason", "evidence", "excerpt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One window: `ids` int32 of at most window_tokens; `spans` pairs (start, end) of trained tokens; rows back to back."""

    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    row_ids: tuple[str, ...]

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss counts. The first token of a row is never one: nothing predicts it."""
        return sum(end - start for start, end in self.spans)


def shards_spec(encode: Encode, *, curated: Ref, base_digests: dict[str, str]) -> Spec:
    """What the shards are made of: the rows, the section, and the tokenizer and template by content.

    The base model is no parent: new weights with the same tokenizer leave the windows as they are (gate.md, base SHA change).
    """
    here = Path(__file__).parent
    return Spec(
        kind=KIND,
        config={
            **identity(encode),
            "tokenizer": base_digests["tokenizer"],
            "chat_template": base_digests["chat_template"],
        },
        parents={"curated": curated},
        code=code_digest(*(here / f"{name}.py" for name in CODE)),
    )


def base_digests(base: Artifact) -> dict[str, str]:
    """File class (weights, tokenizer, chat_template, config, docs) -> digest of a base model."""
    return json.loads(base.file("digests.json").read_text(encoding="utf-8"))


def statistics(shards: Artifact) -> dict[str, Any]:
    """What `statistics.json` says."""
    return json.loads(shards.file(STATISTICS).read_text(encoding="utf-8"))


def shard_names(shards: Artifact, split: str) -> list[str]:
    """The split's files in order; empty when the split has no rows."""
    return sorted(n for n in shards.manifest.files if n.startswith(f"{split}-") and n.endswith(".parquet"))


def read_windows(shards: Artifact, split: str) -> Iterator[Window]:
    """Every window of a split in order; memory for one row group at a time."""
    import pyarrow.parquet as pq

    for name in shard_names(shards, split):
        with pq.ParquetFile(shards.file(name)) as file:
            for batch in file.iter_batches(batch_size=64):
                columns = _Columns(batch)
                yield from (columns.window(place) for place in range(batch.num_rows))


def cached_windows(shards: Artifact, split: str, folder: Path) -> CachedWindows:
    """The windows of a split for random access: decoded once into an uncompressed file below `folder`, then memory-mapped.

    The file is named by the digest of the shards, so it is never stale; it may be deleted while nothing trains. Costs 4 bytes
    a token on disk and next to nothing in memory.
    """
    path = folder / f"{shards.ref.digest[:32]}-{split}.arrow"
    if not path.is_file():
        _write_cache(path, shards, split)
    return CachedWindows(path)


class CachedWindows(Sequence[Window]):
    """Windows in a memory-mapped file, opened by `cached_windows`."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        starts = [0]
        for number in range(self._file.num_record_batches):
            starts.append(starts[-1] + self._file.get_batch(number).num_rows)
        self._starts = starts
        self._columns = lru_cache(maxsize=4096)(lambda number: _Columns(self._file.get_batch(number)))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"window {place} of {len(self)}")
        batch = bisect_right(self._starts, number) - 1
        return self._columns(batch).window(number - self._starts[batch])


class _Columns:
    """The columns of a record batch of windows as flat arrays."""

    def __init__(self, batch: Any) -> None:
        names = ("input_ids", "loss_spans", "seq_lengths")
        self._values = [batch.column(name).values.to_numpy() for name in names]
        self._offsets = [batch.column(name).offsets.to_numpy() for name in names]
        self._row_ids = batch.column("row_ids")

    def window(self, place: int) -> Window:
        """One window. Its ids are a view of the batch."""
        parts = zip(self._values, self._offsets, strict=True)
        ids, spans, lengths = (values[at[place] : at[place + 1]] for values, at in parts)
        edges = spans.tolist()
        return Window(
            ids=ids,
            spans=tuple(zip(edges[::2], edges[1::2], strict=True)),
            lengths=tuple(lengths.tolist()),
            row_ids=tuple(self._row_ids[place].as_py()),
        )


def _write_cache(path: Path, shards: Artifact, split: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    integers = pa.list_(pa.int32())
    schema = pa.schema(
        [
            ("input_ids", integers),
            ("loss_spans", integers),
            ("seq_lengths", integers),
            ("row_ids", pa.list_(pa.string())),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = beside(path)
    try:
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, schema) as made:
            for name in shard_names(shards, split):
                with pq.ParquetFile(shards.file(name)) as file:
                    for batch in file.iter_batches(batch_size=CACHE_WINDOWS):
                        made.write_batch(batch.cast(schema))
        sync_file(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def prompt_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation up to where the model begins to answer, spelled and dated as training rendered it; for the server.

    Raises what the template raises when no spelling suits it: TemplateError, TypeError, ValueError.
    """
    from jinja2.exceptions import TemplateError

    from ft_pipeline.encode.messages import loses_reasoning, lost_part, spellings
    from ft_pipeline.encode.template import Template

    chat = Template(tokenizer, "assistant").chat
    rendered: list[str] = []
    refused: Exception | None = None
    for turns in spellings(messages, blocks=chat.takes_blocks):
        try:
            text = chat.text(turns, prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            refused = refused or error
            continue
        if not lost_part(turns, (text, text)) and not loses_reasoning(turns, text):
            return text
        rendered.append(text)
    if not rendered and refused:
        raise refused
    return rendered[0]


def end_of_turn(tokenizer: Any) -> int | None:
    """The first special token that the template writes after an assistant's words."""
    if not tokenizer.chat_template:
        return None
    mark = "endofturnmark"
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    after = tokenizer(text.rsplit(mark, 1)[-1], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((i for i in after if i in special), None)
