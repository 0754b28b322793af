"""Baselines: the base model's answers, kept per question, so that the next adapter on the same base need not ask it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ft_pipeline.gate.samples import Sample, columns_of, write_rows
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Ref, Spec

SAMPLES = "samples.parquet"
ROOM = Path(__file__).parent
CODE = (
    "arms.py",
    "benchmarks.py",
    "generate.py",
    "holdout.py",
    "probes",
    "safety.py",
    "samples.py",
    "scorer.py",
    "scorer_rows.py",
    "written.py",
)
"""The files and folders that decide an answer."""


def baseline_spec(base: Ref, suite: Ref, identity: Mapping[str, Any]) -> Spec:
    """What a baseline is: base, questions, how they are asked and scored, and on what.

    Device and threads are part of it, unlike anywhere else: both arms must be computed alike, or equal models would differ.
    """
    code = code_digest(*(ROOM / name for name in CODE))
    return Spec(kind="baseline", config=dict(identity), parents={"base": base, "suite": suite}, code=code)


def stored(store: Store, spec: Spec) -> list[Sample] | None:
    """The stored answers, None when the base has to be asked."""
    import pyarrow.parquet as pq

    found = store.find(spec)
    return None if found is None else [Sample(**row) for row in pq.read_table(found.file(SAMPLES)).to_pylist()]


def keep(store: Store, spec: Spec, samples: Sequence[Sample]) -> Artifact:
    """Publishes the base's answers."""
    with store.publish(spec) as draft:
        rows = [asdict(s) for s in samples]
        draft.logical[SAMPLES] = write_rows(draft.folder / SAMPLES, rows, columns_of(Sample))
        draft.counts["rows"] = len(samples)
    assert draft.artifact is not None
    return draft.artifact
