"""Pairs, labelled completions, prompts and judged steps, as they lie in `packed_shards`: the types, the columns, the readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.spans import Span
from ft_pipeline.errors import DataError

if TYPE_CHECKING:
    from ft_pipeline.store.artifacts import Artifact

READ_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A preference: two completions of one prompt. Spans are (start, end) of trained tokens within the completion's ids."""

    row_id: str
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    chosen_spans: Sequence[Span]
    rejected_spans: Sequence[Span]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """A completion that is wanted (`label`) or not."""

    row_id: str
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    completion_spans: Sequence[Span]
    label: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt up to where the model begins to answer, and the answer that a verifier expects."""

    row_id: str
    prompt_ids: Sequence[int]
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepwise:
    """A solution in steps, each right or wrong (`labels`). `ends`: place of the last token of each step in the completion."""

    row_id: str
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    ends: Sequence[int]
    labels: Sequence[bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One row: by side (reference.SIDES) the summed log-probability of its trained tokens in nats, and of each of them in order."""

    row_id: str
    sums: dict[str, float]
    tokens: dict[str, Sequence[float]]


Example = Pair | Labelled | Prompt | Stepwise
SHAPES: dict[str, type[Pair] | type[Labelled] | type[Prompt] | type[Stepwise]] = {
    "preference": Pair,
    "kto": Labelled,
    "rlvr": Prompt,
    "stepwise": Stepwise,
}
"""Shape of a curated row -> what it becomes."""
PAIR_COLUMNS = ("row_id", "prompt_ids", "chosen_ids", "rejected_ids", "chosen_spans", "rejected_spans")
"""Of a preference row: text, list<int32>...; spans are (start, end, start, end, ...) of trained tokens within the completion."""
LABELLED_COLUMNS = ("row_id", "prompt_ids", "completion_ids", "completion_spans", "label")
"""Of a KTO row: text, list<int32>..., bool."""
PROMPT_COLUMNS = ("row_id", "prompt_ids", "answer")
"""Of an RLVR row: text, list<int32>, text."""
STEPWISE_COLUMNS = ("row_id", "prompt_ids", "completion_ids", "ends", "labels")
"""Of a row with judged steps: text, list<int32>, list<int32>, list<int32>, list<bool>."""
COLUMNS: dict[type, tuple[str, ...]] = {
    Pair: PAIR_COLUMNS,
    Labelled: LABELLED_COLUMNS,
    Prompt: PROMPT_COLUMNS,
    Stepwise: STEPWISE_COLUMNS,
}


def example_kind(shards: Artifact, split: str = "train") -> type | None:
    """Pair, Labelled, Prompt or Stepwise; None when the split holds packed windows or nothing."""
    import pyarrow.parquet as pq

    names = _names(shards, split)
    found = tuple(pq.read_schema(shards.file(names[0])).names) if names else ()
    return next((kind for kind, columns in COLUMNS.items() if columns == found), None)


def read_pairs(shards: Artifact, split: str) -> Iterator[Pair]:
    """The preference rows of a split in order. Raises DataError when it holds others."""
    for row in _rows(shards, split, Pair):
        yield Pair(
            row_id=row["row_id"], prompt_ids=row["prompt_ids"],
            chosen_ids=row["chosen_ids"], rejected_ids=row["rejected_ids"],
            chosen_spans=_pairs(row["chosen_spans"]), rejected_spans=_pairs(row["rejected_spans"]),
        )  # fmt: skip


def read_labelled(shards: Artifact, split: str) -> Iterator[Labelled]:
    """The KTO rows of a split in order. Raises DataError when it holds others."""
    for row in _rows(shards, split, Labelled):
        yield _labelled(row)


def read_prompts(shards: Artifact, split: str) -> Iterator[Prompt]:
    """The RLVR rows of a split in order. Raises DataError when it holds others."""
    for row in _rows(shards, split, Prompt):
        yield Prompt(**row)


def read_stepwise(shards: Artifact, split: str) -> Iterator[Stepwise]:
    """The rows with judged steps of a split in order. Raises DataError when it holds others."""
    for row in _rows(shards, split, Stepwise):
        yield Stepwise(**row)


def labelled_at(shards: Artifact, split: str, place: int) -> Labelled:
    """The KTO row with this number in the split: one row group is read."""
    import pyarrow.parquet as pq

    for name in _names(shards, split):
        file = pq.ParquetFile(shards.file(name))
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if place < rows:
                return _labelled(file.read_row_group(group).slice(place, 1).to_pylist()[0])
            place -= rows
    raise IndexError(f"{split} ends before that row")


def _rows(shards: Artifact, split: str, kind: type) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for name in _names(shards, split):
        file = pq.ParquetFile(shards.file(name))
        if tuple(file.schema_arrow.names) != COLUMNS[kind]:
            raise DataError(
                f"{name} holds the columns {', '.join(file.schema_arrow.names)}, not those of a {kind.__name__.lower()}",
                why="Each method reads rows of one kind: sft and cpt windows, dpo pairs, kto labelled ones, grpo prompts, "
                "process_reward judged steps.",
                cure="finetune.method that fits the dataset, or a dataset of the other layout",
            )
        for batch in file.iter_batches(batch_size=READ_ROWS):
            yield from batch.to_pylist()


def _labelled(row: dict[str, Any]) -> Labelled:
    return Labelled(
        row_id=row["row_id"], prompt_ids=row["prompt_ids"], completion_ids=row["completion_ids"],
        completion_spans=_pairs(row["completion_spans"]), label=row["label"],
    )  # fmt: skip


def read_reference(artifact: Artifact, split: str) -> Iterator[Reference]:
    """The rows of a split in the order of the shards."""
    import pyarrow.parquet as pq

    name = f"{split}.parquet"
    if name not in artifact.manifest.files:
        return
    for batch in pq.ParquetFile(artifact.file(name)).iter_batches():
        sides = [c.removesuffix("_logprob") for c in batch.schema.names if c.endswith("_logprob")]
        for row in batch.to_pylist():
            yield Reference(
                row_id=row["row_id"],
                sums={side: row[f"{side}_logprob"] for side in sides},
                tokens={side: row[f"{side}_token_logprobs"] for side in sides},
            )


def mismatched(prompts: Sequence[Any]) -> list[int]:
    """For each row the next one, around the end, that has another prompt: KTO's estimate of the KL needs wrong completions.

    prompts: anything that is equal for equal prompts, in the order of the rows. A row whose prompt all share is its own partner.
    """
    partner = list(range(len(prompts)))
    # twice, because the partners of the last rows lie behind the first
    for place in [*reversed(range(len(prompts)))] * 2:
        after = (place + 1) % len(prompts)
        if prompts[after] != prompts[place]:
            partner[place] = after
        else:
            partner[place] = partner[after] if partner[after] != after else place
    return partner


def tokens_of(example: Example) -> int:
    """Tokens that a training step reads."""
    if isinstance(example, Pair):
        return 2 * len(example.prompt_ids) + len(example.chosen_ids) + len(example.rejected_ids)
    return len(example.prompt_ids) + (0 if isinstance(example, Prompt) else len(example.completion_ids))


def longest_of(example: Example) -> int:
    """Tokens of its longest sequence: the prompt with a completion."""
    completions = (
        (example.chosen_ids, example.rejected_ids) if isinstance(example, Pair)
        else () if isinstance(example, Prompt) else (example.completion_ids,)
    )  # fmt: skip
    return len(example.prompt_ids) + max((len(c) for c in completions), default=0)


def trained_of(example: Example) -> int:
    """Tokens whose log-probability counts; of judged steps, the tokens where one is judged."""
    if isinstance(example, Stepwise):
        return len(example.ends)
    spans = (
        [*example.chosen_spans, *example.rejected_spans] if isinstance(example, Pair)
        else example.completion_spans if isinstance(example, Labelled) else []
    )  # fmt: skip
    return sum(end - start for start, end in spans)


def _names(shards: Artifact, split: str) -> list[str]:
    return sorted(n for n in shards.manifest.files if n.startswith(f"{split}-") and n.endswith(".parquet"))


def _pairs(edges: Sequence[int]) -> list[Span]:
    return list(zip(edges[::2], edges[1::2], strict=True))
