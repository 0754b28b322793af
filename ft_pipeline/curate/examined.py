"""The outcome of examined blocks on disk, and all of them as one table that stays there: text and signatures are mapped, not loaded.

In memory are 149 bytes a row (keys, lengths, scores), 598 at the peak of comparing: measured at 300,000 rows.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ft_pipeline.store.files import clear_errors

TEXTS = "rows.arrow"
NUMBERS = "numbers.npz"
ENTRIES = "entries.json"
FLAGS = "flags.json"
COUNTS = "counts.json"
KEPT_SECONDS = 7 * 24 * 3600
MAPPED = ("whole_signatures", "whole_bands", "prompt_signatures", "prompt_bands")
"""Arrays in files of their own: they are read in parts."""


def write_block(
    folder: Path,
    columns: Mapping[str, Sequence[str]],
    numbers: Mapping[str, np.ndarray],
    *,
    entries: Sequence[Mapping[str, Any]],
    flags: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Any],
) -> None:
    """Writes a block's outcome; the folder appears as a whole. Raises StorageError when the disk is full."""
    import pyarrow as pa

    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    with clear_errors(f"writing {folder}"):
        partial.mkdir(parents=True)
        try:
            table = pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})
            with pa.OSFile(str(partial / TEXTS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            for name in MAPPED:
                np.save(partial / f"{name}.npy", numbers[name])
            small: dict[str, Any] = {name: array for name, array in numbers.items() if name not in MAPPED}
            np.savez(partial / NUMBERS, **small)
            for name, told in ((ENTRIES, entries), (FLAGS, flags), (COUNTS, counts)):
                (partial / name).write_text(json.dumps(told), encoding="utf-8")
            _put(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        # another process was faster: what it made is the same
        if not BlockFiles(folder).are_whole:
            raise


@dataclass(frozen=True, slots=True)
class BlockFiles:
    """One block's outcome."""

    folder: Path

    @property
    def are_whole(self) -> bool:
        """True when the outcome was written to its end."""
        return (self.folder / COUNTS).is_file()

    def texts(self) -> Any:
        """Arrow table of the fit rows: shape, content, excerpt, prompt, response. Mapped."""
        import pyarrow as pa

        with pa.memory_map(str(self.folder / TEXTS)) as source:
            return pa.ipc.open_file(source).read_all()

    def numbers(self) -> Mapping[str, np.ndarray]:
        """Arrays of all rows (`all_keys`, `all_numbers`) and of the fit ones."""
        with np.load(self.folder / NUMBERS) as found:
            return dict(found)

    def mapped(self, name: str) -> np.ndarray:
        """One of the large arrays, mapped."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def told(self, name: str) -> Any:
        """`entries.json`, `flags.json` or `counts.json`."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def tidy(folder: Path) -> None:
    """Removes outcomes that no run used for a week: after that, to examine a block again is cheaper than to keep it."""
    until = time.time() - KEPT_SECONDS
    for place in folder.glob("*/*"):
        if place.stat().st_mtime < until:
            shutil.rmtree(place, ignore_errors=True)


class Examined:
    """All blocks in order as one table of fit rows."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Loads the numbers; texts and signatures stay on disk."""
        self.folders = tuple(folders)
        self.blocks = [BlockFiles(folder) for folder in folders]
        parts = [block.numbers() for block in self.blocks]
        self.num_fit = np.array([len(p["ordinal"]) for p in parts], np.int64)
        self.starts = np.r_[0, np.cumsum(self.num_fit)]
        self.all_starts = np.r_[0, np.cumsum([len(p["all_keys"]) for p in parts])].astype(np.int64)
        self._parts = parts

    def column(self, name: str) -> np.ndarray:
        """One array over all blocks: [fit rows] or, for `all_*`, [rows]."""
        return self._kept(name, lambda: self._whole(name))

    def _whole(self, name: str) -> np.ndarray:
        empty = np.empty((0, 2) if name in ("exact", "asked") else 0, _TYPES.get(name, np.float64))
        return np.concatenate([empty, *(part[name] for part in self._parts)])

    def column_of(self, block: int, name: str) -> np.ndarray:
        """One array of one block."""
        return self._parts[block][name]

    def texts_of(self, block: int) -> Any:
        """Arrow table of one block's fit rows."""
        return self._kept(("texts", block), self.blocks[block].texts)

    @cached_property
    def global_ordinal(self) -> np.ndarray:
        """Place of each fit row among all rows."""
        parts = [p["ordinal"].astype(np.int64) + s for p, s in zip(self._parts, self.all_starts, strict=False)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    @cached_property
    def repeats(self) -> np.ndarray:
        """Of all rows: the how-manieth of its key it is, from 1."""
        keys = self.column("all_keys")
        order = np.argsort(keys, kind="stable")
        placed = keys[order]
        first = np.r_[True, placed[1:] != placed[:-1]][: len(placed)]
        starts = np.maximum.accumulate(np.where(first, np.arange(len(placed)), 0))
        out = np.empty(len(keys), np.int64)
        out[order] = np.arange(len(placed)) - starts + 1
        return out

    def row_ids(self, ordinals: np.ndarray) -> list[str]:
        """Names of rows by their place among all rows: "r", 16 digits of the key, "-2" for the second row of the same bytes."""
        keys, repeats = self.column("all_keys")[ordinals].tolist(), self.repeats[ordinals].tolist()
        return [f"r{key:016x}" if n == 1 else f"r{key:016x}-{n}" for key, n in zip(keys, repeats, strict=True)]

    def take_texts(self, name: str, rows: np.ndarray) -> list[str]:
        """A text column of fit rows, in the order asked for."""
        return self._gathered(rows, lambda block, local: self.texts_of(block).column(name).take(local).to_pylist(), [])

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Lines of a mapped array [fit rows, width], in the order asked for."""
        width = self.blocks[0].mapped(name).shape[1:] if self.blocks else (0,)
        return self._gathered(rows, lambda block, local: self._mapped(block, name)[local], np.empty((0, *width)))

    def band(self, name: str, number: int) -> np.ndarray:
        """Keys of one band, [fit rows] uint64."""
        parts = [self._mapped(block, name)[number] for block in range(len(self.blocks))]
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def _gathered(self, rows: np.ndarray, read: Callable[[int, np.ndarray], Any], empty: Any) -> Any:
        order = np.argsort(rows, kind="stable")
        placed = rows[order]
        bounds = np.searchsorted(placed, self.starts)
        parts = [
            read(block, placed[bounds[block] : bounds[block + 1]] - self.starts[block])
            for block in range(len(self.blocks))
            if bounds[block] < bounds[block + 1]
        ]
        if not parts:
            return empty
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        if isinstance(parts[0], list):
            flat = [text for part in parts for text in part]
            return [flat[i] for i in back.tolist()]
        return np.concatenate(parts)[back]

    def _mapped(self, block: int, name: str) -> np.ndarray:
        return self._kept((name, block), lambda: self.blocks[block].mapped(name))

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        kept = self.__dict__.setdefault("_open", {})
        if key not in kept:
            kept[key] = make()
        return kept[key]


_TYPES: Mapping[str, Any] = {
    "all_keys": np.uint64, "all_numbers": np.int32, "ordinal": np.int32, "score": np.float32, "dropped": bool,
    "exact": np.uint64, "frame": np.uint64, "asked": np.uint64, "length": np.int32, "has_prompt": bool,
}  # fmt: skip
