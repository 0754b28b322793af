"""`reference_logprobs`: what a reference model thinks of the completions that are trained, computed once, so that one model trains.

Keyed by the rows, the reference model, tokenizer, template and number type: none of them can change and leave it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ft_pipeline.encode.example_rows import Labelled, Pair
from ft_pipeline.encode.reference_model import ADAPTER_KIND
from ft_pipeline.recipe import STRICT, Finetune
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Spec
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.job import Job, Placement

if TYPE_CHECKING:
    from ft_pipeline.store.artifacts import Artifact

KIND = "reference_logprobs"
SIDES: dict[type, tuple[str, str]] = {Pair: ("chosen", "rejected"), Labelled: ("completion", "mismatched")}
"""What is measured of a row. mismatched: the completion of another row behind this row's prompt, for KTO's KL (example_rows.mismatched)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """How the log-probabilities are computed: hashed, because the last bits follow from it."""

    __pydantic_config__ = STRICT
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model; the softmax is float32 always, the sums float64."""
    batch_tokens: int = 8192
    """Padded tokens of a forward pass. Another number rounds differently: measured below 1e-5 nats a token in float32."""


def measure_of(section: Finetune) -> Measure:
    """In the number type of the training."""
    return Measure(dtype=section.dtype)


def reference_spec(measure: Measure, *, shards: Artifact, reference: Artifact, base: Artifact | None = None) -> Spec:
    """What decides the numbers: rows, reference model, its tokenizer and template, number type and batches.

    base: what a reference that is an adapter is on; of no meaning for a base_model.
    """
    # artifact.py hands this function on to the rooms below
    from ft_pipeline.encode.artifact import base_digests

    on = base if base is not None and reference.manifest.kind == ADAPTER_KIND else None
    here, digests = Path(__file__).parent, base_digests(on or reference)
    return Spec(
        kind=KIND,
        config={**asdict(measure), "tokenizer": digests["tokenizer"], "chat_template": digests["chat_template"]},
        parents={"shards": shards.ref, "reference": reference.ref, **({"base": on.ref} if on else {})},
        code=code_digest(
            *(here / f"{name}.py" for name in ("example_rows", "reference", "reference_main", "logprobs"))
        ),
    )


def reference_job(
    measure: Measure,
    *,
    shards: Artifact,
    reference: Artifact,
    base: Artifact | None = None,
    work: Path,
    placement: Placement,
    name: str = "reference",
) -> Job:
    """The job that makes `reference_logprobs`; it goes on at the block where a killed run stopped."""
    spec = reference_spec(measure, shards=shards, reference=reference, base=base)
    return Job(
        name=name,
        module="ft_pipeline.encode.reference_main",
        spec=spec,
        section=asdict(measure),
        folder=run_folder(work, spec.fingerprint),
        placement=placement,
        facts={},
    )


def columns_of(kind: type) -> tuple[str, ...]:
    """row_id, and by side: `_logprob` float64 sum, `_tokens` int32 count, `_token_logprobs` list<float32>."""
    return ("row_id", *(f"{side}_{what}" for side in SIDES[kind] for what in ("logprob", "tokens", "token_logprobs")))


def table_of(kind: type, rows: Sequence[Any], found: Sequence[Any]) -> Any:
    """Arrow table of rows and, two a row in the order of `SIDES`, their float32 log-probabilities."""
    import numpy as np
    import pyarrow as pa

    columns: dict[str, Any] = {"row_id": pa.array([row.row_id for row in rows], pa.string())}
    for place, side in enumerate(SIDES[kind]):
        values = found[place::2]
        columns[f"{side}_logprob"] = pa.array([float(v.sum(dtype=np.float64)) for v in values], pa.float64())
        columns[f"{side}_tokens"] = pa.array([len(v) for v in values], pa.int32())
        columns[f"{side}_token_logprobs"] = pa.array([v.tolist() for v in values], pa.list_(pa.float32()))
    return pa.table(columns)
