"""The index of a benchmark: hashes of the word sequences that betray each item, sorted, in files that are mapped into memory.

A text of 13 words or more is indexed by its 13-grams, one of 8 to 12 words whole, a shorter one as a line of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ft_pipeline.curate.benchmark_files import is_benchmark_file
from ft_pipeline.curate.benchmark_items import Item, read_items
from ft_pipeline.curate.words import Words, unicode_version, words_of
from ft_pipeline.recipe import Benchmark
from ft_pipeline.store.artifacts import Artifact, Draft, Store
from ft_pipeline.store.files import known_sha256
from ft_pipeline.store.fingerprint import canonical_json, code_digest, sha256_json, sha256_rows
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.messages import Listener, ignore, log

INDEX_KIND = "benchmark_index"
VERSION = 1
LONGEST, SHORTEST = 13, 8
"""Words of an n-gram."""
SHORTEST_LINE = 3
"""A line of one or two words says nothing."""
MAX_OWNERS = 32
"""Words that more texts share are boilerplate ("which of the following statements ..."): they do not count as a part of an item."""
PREFIX_BITS = 26
ITEMS, FACTS = "items.parquet", "index.json"
EXCERPT_CHARACTERS = 160
CODE = ("benchmark_files.py", "benchmark_index.py", "benchmark_items.py", "words.py")
Array = np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What an item is called."""

    item_id: str
    item_sha256: str
    """Empty for a holdout row: no suite asks it."""
    text: str
    """The question's first characters."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """The files of an index; each is a .npy."""

    grams: Array
    """uint64 [G], sorted: hashes of the n-grams of all texts."""
    owner_starts: Array
    """int32 [G + 1]: where each one's owners are; boilerplate has none."""
    owners: Array
    """int32: index of a text."""
    prefixes: Array
    """uint32, sorted: the upper bits of the hashes of the n-grams' first 8 words."""
    text_items: Array
    """int32 [T]: the item of each text."""
    text_grams: Array
    """int32 [T]: how many different n-grams own it."""
    lines: Array
    """uint64, sorted: hashes of whole texts of 3 to 7 words."""
    line_items: Array
    """int32: the item of each."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index that can be searched, in memory or mapped."""

    name: str
    arrays: Arrays
    folder: Path | None = None
    made: tuple[Label, ...] = ()

    @cached_property
    def labels(self) -> Sequence[Label]:
        """[items], read when a hit asks for them first."""
        if self.folder is None:
            return self.made
        import pyarrow.parquet as pq

        return [Label(**row) for row in pq.read_table(self.folder / ITEMS).to_pylist()]


def build(name: str, texts: Sequence[Sequence[str]], labels: Sequence[Label]) -> Index:
    """The index of items, each given as its texts. About 1 us a word."""
    flat = [(item, text) for item, forms in enumerate(texts) for text in forms]
    items = np.array([item for item, _ in flat], np.int32)
    found, shorts = _sequences([text for _, text in flat])
    hashes, owners = _unique(found["hash"], found["text"])
    grams, _, counts = _runs(hashes)
    kept = _telling(owners, counts)
    lines, line_items = _lines(shorts["hash"], items[shorts["text"]])
    arrays = Arrays(
        grams=grams,
        owner_starts=np.append(0, np.cumsum(kept))[np.append(0, np.cumsum(counts))].astype(np.int32),
        owners=owners[kept].astype(np.int32, copy=False),
        prefixes=_runs(np.sort(found["prefix"]))[0],
        text_items=items,
        text_grams=np.bincount(owners[kept], minlength=len(flat)).astype(np.int32),
        lines=lines,
        line_items=line_items,
    )
    return Index(name=name, arrays=arrays, made=tuple(labels))


def index_of_items(name: str, items: Sequence[Item]) -> Index:
    """The index of a benchmark's items."""
    labels = [Label(item_id=i.item_id, item_sha256=i.sha256, text=i.text[:EXCERPT_CHARACTERS]) for i in items]
    return build(name, [i.texts for i in items], labels)


def holdout_index(texts: Sequence[str], ids: Sequence[str], *, name: str = "holdout") -> Index:
    """The index of the recipe's own holdout rows, in memory only."""
    labels = [Label(item_id=i, item_sha256="", text=t[:EXCERPT_CHARACTERS]) for t, i in zip(texts, ids, strict=True)]
    return build(name, [(t,) for t in texts], labels)


def index_spec(name: str, files: Mapping[str, Path]) -> Spec:
    """What an index is: the benchmark's name, names and bytes of its files, the Unicode tables, the code."""
    content = sha256_json([[n, known_sha256(files[n])] for n in sorted(files) if is_benchmark_file(n)])
    room = Path(__file__).parent
    return Spec(
        kind=INDEX_KIND,
        config={"name": name, "content": content, "version": VERSION, "unicode": unicode_version()},
        parents={},
        code=code_digest(*(room / n for n in CODE)),
    )


def index_of(store: Store, benchmark: Benchmark, files: Mapping[str, Path], *, listener: Listener = ignore) -> Artifact:
    """The `benchmark_index` artifact of a benchmark, made when the store has none. `files`: name below the folder -> local path.

    Raises DataError when the files hold no item.
    """
    spec = index_spec(benchmark.name, files)
    if found := store.find(spec):
        log(listener, f"index of {benchmark.name} reused: {found.manifest.counts['items']:,} items")
        return found
    index = index_of_items(benchmark.name, read_items(benchmark.name, files))
    with store.publish(spec) as draft:
        write_index(draft, index)
    assert draft.artifact is not None
    log(listener, f"{benchmark.name} indexed: {len(index.labels):,} items, {len(index.arrays.grams):,} word sequences")
    return draft.artifact


def write_index(draft: Draft, index: Index) -> None:
    """Writes the files of an index into a draft."""
    for name, array in _files(index.arrays).items():
        np.save(draft.folder / name, array)
    draft.logical[ITEMS] = _write_labels(draft.folder / ITEMS, index.labels)
    (draft.folder / FACTS).write_bytes(canonical_json({"name": index.name}))
    draft.counts.update(
        items=len(index.labels), sequences=len(index.arrays.grams), lines=len(index.arrays.lines), texts=len(index.arrays.text_items)
    )  # fmt: skip


def open_index(place: Artifact | Path) -> Index:
    """The index in an artifact or folder, mapped into memory: many processes share one copy."""
    folder = place.folder if isinstance(place, Artifact) else place
    arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in Arrays.__dataclass_fields__}
    return Index(
        name=json.loads((folder / FACTS).read_bytes())["name"],
        arrays=Arrays(**{n: np.asarray(a) for n, a in arrays.items()}),
        folder=folder,
    )


def _write_labels(path: Path, labels: Sequence[Label]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [asdict(label) for label in labels]
    schema = pa.schema([(name, pa.string()) for name in Label.__dataclass_fields__])
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")
    return sha256_rows(rows)


def _files(arrays: Arrays) -> dict[str, Array]:
    return {f"{name}.npy": getattr(arrays, name) for name in Arrays.__dataclass_fields__}


def _sequences(texts: Sequence[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Hash, upper bits of the first 8 words' hash and text of every n-gram; hash and text of every short text."""
    grams: list[tuple[Array, ...]] = [(np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.int32))]
    shorts: list[tuple[Array, ...]] = [(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
    for words in words_of(texts):
        grams.append(_grams(words))
        shorts.append(_shorts(words))
    whole, prefixes, owners = (np.concatenate(parts) for parts in zip(*grams, strict=True))
    lines, line_owners = (np.concatenate(parts) for parts in zip(*shorts, strict=True))
    return {"hash": whole, "prefix": prefixes, "text": owners}, {"hash": lines, "text": line_owners}


def _grams(words: Words) -> tuple[Array, ...]:
    sizes = np.minimum(np.diff(words.first), LONGEST)
    at = np.arange(words.num_words)
    text = np.repeat(np.arange(len(sizes)), np.diff(words.first))
    valid = (sizes[text] >= SHORTEST) & (at + sizes[text] <= words.first[text + 1])
    at, text = at[valid], text[valid]
    prefixes = (words.grams(at, SHORTEST) >> np.uint64(64 - PREFIX_BITS)).astype(np.uint32)
    return words.grams(at, sizes[text]), prefixes, words.positions[text].astype(np.int32)


def _shorts(words: Words) -> tuple[Array, ...]:
    sizes = np.diff(words.first)
    text = np.flatnonzero((sizes >= SHORTEST_LINE) & (sizes < SHORTEST))
    return words.grams(words.first[text], sizes[text]), words.positions[text]


def _unique(hashes: Array, owners: Array) -> tuple[Array, Array]:
    """Each pair once, by hash, then owner. Only hashes that repeat are sorted by both: five times faster."""
    order = np.argsort(hashes)
    hashes, owners = hashes[order], owners[order]
    same = hashes[1:] == hashes[:-1]
    repeated = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(hashes) else order
    owners[repeated] = owners[repeated][np.lexsort((owners[repeated], hashes[repeated]))]
    new = np.append(True, ~same | (owners[1:] != owners[:-1])) if len(hashes) else np.zeros(0, bool)
    return hashes[new], owners[new]


def _runs(values: Array) -> tuple[Array, Array, Array]:
    """Sorted values once, where each one's run starts, and how long it is."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.zeros(0, np.int64)
    return values[starts], starts, np.diff(np.append(starts, len(values)))


def _telling(owners: Array, counts: Array) -> Array:
    """bool per pair: False for boilerplate, unless the text would have nothing left."""
    rare = np.repeat(counts <= MAX_OWNERS, counts)
    left = np.bincount(owners[rare], minlength=int(owners.max(initial=0)) + 1)
    return rare | (left[owners] == 0)


def _lines(hashes: Array, items: Array) -> tuple[Array, Array]:
    """Lines that are one item's: a text that several items share names none."""
    hashes, items = _unique(hashes, items)
    found, first, counts = _runs(hashes)
    return found[counts == 1], items[first[counts == 1]].astype(np.int32)
