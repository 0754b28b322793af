"""A sample: one question, what an arm answered, its score. The unit that everything is paired and stored by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError, FtError
from ft_pipeline.store.fingerprint import sha256_json, sha256_rows

SCORE_DIGITS = 6
EXCERPT_CHARACTERS = 400


class EvalIncomparable(FtError):
    """Two arms were not asked the same questions: their difference means nothing."""

    exit_code = 42


class NotANumber(DataError):
    """A score that is not a finite number: the model is broken, not worse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question to one arm."""

    id: str
    prompt_sha: str
    """Of the token ids that the model saw."""
    prompt: str
    """The end of the prompt, for people."""
    reference: str
    """What was expected; empty when there is no one right answer."""
    output: str
    score: float
    stratum: str = ""
    """A fixed group of questions, such as an MMLU subject."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The same question to both arms."""

    id: str
    prompt_sha: str
    prompt: str
    reference: str
    base_output: str
    base_score: float
    adapter_output: str
    adapter_score: float
    stratum: str = ""


def prompt_sha(token_ids: Sequence[Any]) -> str:
    """Digest of the token ids of a prompt, nested or flat."""
    return sha256_json(list(token_ids))[:16]


def excerpt(text: str) -> str:
    """The end of a long text: that is where the question is."""
    return text if len(text) <= EXCERPT_CHARACTERS else "..." + text[-EXCERPT_CHARACTERS:]


def paired(base: Sequence[Sample], adapter: Sequence[Sample]) -> list[Pair]:
    """Both arms joined by id, in the base's order. Raises EvalIncomparable, NotANumber."""
    others = {s.id: s for s in adapter}
    if len(base) != len(adapter) or {s.id for s in base} != set(others):
        raise EvalIncomparable(
            f"the base answered {len(base)} questions, the adapter {len(adapter)}, and not the same ones",
            why="Only the same questions to both arms can be compared.",
        )
    return [_pair(one, others[one.id]) for one in base]


def _pair(base: Sample, adapter: Sample) -> Pair:
    if base.prompt_sha != adapter.prompt_sha:
        raise EvalIncomparable(
            f"question {base.id} reached the base as {base.prompt_sha} and the adapter as {adapter.prompt_sha}",
            why="The arms saw different tokens: a template or tokenizer differs.",
            cure="delete the stored baseline of this base, or evaluate with the base's own tokenizer",
        )
    for arm, sample in (("base", base), ("adapter", adapter)):
        if not math.isfinite(sample.score):
            raise NotANumber(
                f"the {arm} scored {sample.score} on question {sample.id}",
                why="A model that gives no finite numbers is broken; no verdict can rest on it.",
                cure="look at the training's loss curve; retrain with a lower learning rate",
            )
    return Pair(
        id=base.id,
        prompt_sha=base.prompt_sha,
        prompt=base.prompt,
        reference=base.reference,
        base_output=base.output,
        base_score=base.score,
        adapter_output=adapter.output,
        adapter_score=adapter.score,
        stratum=base.stratum,
    )


def write_rows(path: Path, rows: Sequence[dict[str, Any]], columns: dict[str, Any]) -> str:
    """Writes rows as Parquet and returns their logical digest. `columns`: name -> Arrow type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(list(columns.items()))
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return sha256_rows(rows)


def pair_rows(gate: str, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The rows of `samples.parquet` of one gate."""
    return [{"gate": gate, **asdict(p)} for p in pairs]


def columns_of(row_type: type, **more: str) -> dict[str, Any]:
    """Arrow columns of a sample type: strings, and float64 for scores."""
    import pyarrow as pa

    names = [*more, *row_type.__dataclass_fields__]
    return {n: pa.float64() if n.endswith("score") else pa.string() for n in names}
