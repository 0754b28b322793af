"""`teacher_logprobs`: what a teacher expects at each trained token of the windows, as arrays that are mapped, not loaded.

By split: `<split>.tokens.npy` int32 [N, k] and `<split>.logprobs.npy` float32 [N, k], likeliest first, `<split>.offsets.npy` int64
[windows + 1]: window w has the places offsets[w] to offsets[w + 1], in the order of its trained tokens. 8 k bytes a trained token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ft_pipeline.store.artifacts import Artifact

if TYPE_CHECKING:
    from ft_pipeline.store.artifacts import Draft

Expected = tuple[np.ndarray, np.ndarray]
"""Tokens int32 [n, k] and their log-probabilities float32 [n, k] at n places."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taught:
    """The teacher's tokens of a split, by window."""

    tokens: np.ndarray
    logprobs: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, window: int) -> Expected:
        """Of one window, in the order of its trained tokens."""
        places = slice(int(self.offsets[window]), int(self.offsets[window + 1]))
        return self.tokens[places], self.logprobs[places]


def read_taught(artifact: Artifact, split: str) -> Taught | None:
    """What a teacher expects in a split; None when the split has no windows."""
    if f"{split}.offsets.npy" not in artifact.manifest.files:
        return None
    names = ("tokens", "logprobs", "offsets")
    return Taught(**{name: np.load(artifact.file(f"{split}.{name}.npy"), mmap_mode="r") for name in names})


def write_taught(draft: Draft, split: str, blocks: Sequence[Path]) -> int:
    """Writes the arrays of a split from blocks (`save_block`); how many places they hold. Memory for one block."""
    counts = np.concatenate([load_block(path)[2] for path in blocks])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    width, total = load_block(blocks[0])[0].shape[1], int(offsets[-1])
    np.save(draft.folder / f"{split}.offsets.npy", offsets)
    for place, (name, dtype) in enumerate((("tokens", np.int32), ("logprobs", np.float32))):
        made = np.lib.format.open_memmap(
            draft.folder / f"{split}.{name}.npy", mode="w+", dtype=dtype, shape=(total, width)
        )
        filled = 0
        for path in blocks:
            part = load_block(path)[place]
            made[filled : filled + len(part)] = part
            filled += len(part)
        made.flush()
    return total


def save_block(path: Path, expected: Iterable[Expected]) -> None:
    """The windows of a block, atomically."""
    import io

    from ft_pipeline.store.files import write_atomic

    parts = list(expected)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        tokens=np.concatenate([tokens for tokens, _ in parts]),
        logprobs=np.concatenate([logprobs for _, logprobs in parts]),
        counts=np.array([len(tokens) for tokens, _ in parts], np.int64),
    )
    write_atomic(path, buffer.getvalue())


def load_block(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens, logprobs and places by window. Raises ValueError, OSError, KeyError or zipfile.BadZipFile for a block that is not whole."""
    # opened here: NumPy leaves the file of a broken archive open
    with path.open("rb") as file, np.load(file) as content:
        return content["tokens"], content["logprobs"], content["counts"]


def is_whole(path: Path, windows: int) -> bool:
    """False for a block that is not there or was cut by a dying disk: it is computed again."""
    import zipfile

    try:
        found: tuple[Any, ...] = load_block(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False
    return len(found[2]) == windows and int(found[2].sum()) == len(found[0])
