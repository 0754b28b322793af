"""Rollouts as Parquet: a shard for each micro-batch in the run folder, the newest kept, published beside the checkpoints.

They decide nothing: neither the weights nor the digest of the checkpoints.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import code_digest, sha256_rows
from ft_pipeline.store.manifest import Ref, Spec

KIND = "rollouts"
FOLDER = "rollouts"
SHARD = re.compile(r"step-(\d{8})-micro-(\d{10})\.parquet")


@dataclass
class Rollouts:
    """The rollouts of one run. A shard is written again with the same rows when a step is replayed after a crash."""

    folder: Path
    micros_per_step: int
    keep_steps: int
    """The newest so many steps; 0 keeps none."""
    updates: int = 1
    """Optimizer steps on each rollout: a shard is of the first of them."""
    recording: bool = False
    """False until the first step: a method is also asked by the checks before it."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of every shard that this process wrote, also of those that were let go since. Replicas write the others of a step."""

    def write(self, micro: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the completions of one global micro-batch and lets old steps go."""
        if self.keep_steps == 0 or not rows:
            return
        step = micro // self.micros_per_step + 1
        name = f"step-{step:08d}-micro-{micro:010d}.parquet"
        content = parquet_of([{"step": step, **row} for row in rows])
        write_atomic(self.folder / name, content)
        self.sizes[name] = len(content)
        for path in shards(self.folder):
            if step_of(path.name) <= step - self.keep_steps:
                path.unlink(missing_ok=True)  # replicas do the same

    @property
    def bytes_per_step(self) -> float:
        """Of all processes, by the mean shard of this one; 0 without one."""
        if not self.sizes:
            return 0.0
        return sum(self.sizes.values()) / len(self.sizes) * self.micros_per_step / self.updates


def shards(folder: Path) -> list[Path]:
    """The whole shards of a folder in order."""
    return sorted(path for path in folder.glob("*.parquet") if SHARD.fullmatch(path.name))


def step_of(name: str) -> int:
    """The optimizer step that a shard's rows were used in, from 1."""
    found = SHARD.fullmatch(name)
    return int(found[1]) if found else 0


def parquet_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of equal keys as the bytes of a Parquet file (zstd: completions of one prompt are alike)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, compression="zstd")
    return buffer.getvalue()


def rows_of(shard: Path) -> list[dict[str, Any]]:
    """The completions of one shard."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(shard).read().to_pylist()


def read_rollouts(folder: Path) -> list[dict[str, Any]]:
    """Every completion of a folder's shards, in order of steps."""
    return [row for path in shards(folder) for row in rows_of(path)]


def rollouts_spec(checkpoints: Ref, keep_steps: int) -> Spec:
    """What a rollouts artifact is made of: the run that sampled them."""
    return Spec(
        kind=KIND,
        config={"keep_steps": keep_steps},
        parents={"checkpoints": checkpoints},
        code=code_digest(Path(__file__)),
    )


def publish_rollouts(store: Store, rollouts: Rollouts, *, checkpoints: Artifact) -> Artifact | None:
    """The kept shards as an artifact, None when none are kept. A reused one comes back as it is."""
    spec = rollouts_spec(checkpoints.ref, rollouts.keep_steps)
    kept = shards(rollouts.folder)
    if not kept or (found := store.find(spec)):
        return found if kept else None
    with store.publish(spec) as draft:
        total = 0
        for path in kept:
            (draft.folder / path.name).write_bytes(path.read_bytes())
            rows = rows_of(path)
            draft.logical[path.name] = sha256_rows(rows)
            total += len(rows)
        draft.counts.update(rows=total, shards=len(kept), steps=len({step_of(p.name) for p in kept}))
        draft.execution.update(storage_tax(rollouts, checkpoints))
    return draft.artifact


def storage_tax(rollouts: Rollouts, checkpoints: Artifact) -> dict[str, float]:
    """What rollouts cost on disk: bytes a step, and all that is written a step against what an SFT run of it would write.

    An SFT run writes the checkpoints artifact (weights, trajectory, proof) and nothing a step besides.
    """
    steps = max(1, checkpoints.manifest.counts["steps"])
    supervised = checkpoints.manifest.size_bytes / steps
    return {
        "rollout_bytes_per_step": round(rollouts.bytes_per_step, 1),
        "checkpoint_bytes_per_step": round(supervised, 1),
        "storage_ratio_to_sft": round((supervised + rollouts.bytes_per_step) / supervised, 4),
        "rollout_bytes_kept": sum(path.stat().st_size for path in shards(rollouts.folder)),
    }


def read_tax(artifact: Artifact) -> dict[str, Any]:
    """The storage tax of a rollouts artifact."""
    return {name: value for name, value in artifact.manifest.execution.items() if isinstance(value, int | float)}


def prompt_digest(ids: Sequence[int]) -> str:
    """Digest of a prompt's token ids, 16 hex digits: enough to join rollouts to each other."""
    from ft_pipeline.store.fingerprint import sha256_bytes

    return sha256_bytes(json.dumps(list(map(int, ids))).encode())[:16]
