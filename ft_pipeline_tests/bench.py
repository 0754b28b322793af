"""`make bench`: what we made against what one would use otherwise, on the same input in the same run; figures go to BENCHMARKS.md.

The first contender of a race is ours. A ratio divides another's best round by our best: on a machine that others use, the best
round is the one that was disturbed least. Not named test_*: never part of `make test`.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ft_pipeline_tests.bench_board import sentences

ROWS = 20_000
WINDOW_TOKENS = 4096
FILES, FILE_BYTES = 8, 8 << 20


def grams(text: str) -> set[bytes]:
    return {text[i : i + 5].encode() for i in range(len(text) - 4)}


def sign_ours(texts: list[str]) -> Any:
    from ft_pipeline.curate.signatures import signatures

    return signatures(texts)


def sign_datasketch_bulk(texts: list[str]) -> Any:
    from datasketch import MinHash

    return MinHash.bulk((grams(text) for text in texts), num_perm=128)


def sign_one_by_one(texts: list[str]) -> Any:
    from datasketch import MinHash

    made = []
    for text in texts:
        sketch = MinHash(num_perm=128)
        for gram in grams(text):
            sketch.update(gram)
        made.append(sketch)
    return made


SIGNERS = {
    "ft_pipeline.curate.signatures": (sign_ours, 20),
    "datasketch MinHash.bulk": (sign_datasketch_bulk, 4),
    "datasketch, a loop over 5-grams": (sign_one_by_one, 1),
}


@pytest.mark.parametrize("who", SIGNERS)
def test_signatures(lap, who: str) -> None:
    texts = sentences(1000, 300, seed=1)
    sign, rounds = SIGNERS[who]
    race = "MinHash signatures: 1,000 texts of 300 characters, 128 permutations, 5-grams"
    lap(race, who, lambda: sign(texts), rounds=rounds, warmup=int(rounds > 1), amount=1000, unit="texts")


def pairs_ours(rows: list[tuple[str, str]]) -> int:
    from ft_pipeline.curate.comparison import comparable
    from ft_pipeline.curate.deduplicate import find_duplicates

    made = [comparable(f"r{n}", "completion", {"prompt": p, "completion": c}) for n, (p, c) in enumerate(rows)]
    return len(find_duplicates(made, "prompt_and_response", 0.9).near)


def pairs_datasketch(rows: list[tuple[str, str]]) -> int:
    from datasketch import MinHash, MinHashLSH

    index, found = MinHashLSH(threshold=0.9, num_perm=128), 0
    for n, sketch in enumerate(MinHash.generator((grams(f"{p}\n{c}") for p, c in rows), num_perm=128)):
        found += bool(index.query(sketch))
        index.insert(n, sketch)
    return found


DEDUPLICATORS = {
    "curate.deduplicate, prompt and response, verified": (pairs_ours, 5),
    "datasketch MinHashLSH, whole text, not verified": (pairs_datasketch, 3),
}


@pytest.mark.parametrize("who", DEDUPLICATORS)
def test_near_duplicates(lap, who: str) -> None:
    prompts, answers = sentences(3000, 300, seed=2), sentences(3000, 120, seed=3)
    rows = list(zip(prompts, answers, strict=True))
    rows += [(f"{p} indeed", a) for p, a in rows[:300]]
    find, rounds = DEDUPLICATORS[who]
    race = "Near duplicates: 3,300 rows of 420 characters, 300 of them one word longer than another"
    told = {"amount": len(rows), "unit": "rows", "fact": lambda found: f"{found} of 300 found"}
    lap(race, who, lambda: find(rows), rounds=rounds, warmup=0, **told)


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """20,000 chat rows as JSONL, 10 MB; one in 50 broken, one in ten a repetition."""
    path = tmp_path_factory.mktemp("export") / "rows.jsonl"
    pairs = list(zip(sentences(ROWS, 300, seed=4), sentences(ROWS, 120, seed=5), strict=True))
    with path.open("w", encoding="utf-8") as file:
        for n in range(ROWS):
            prompt, answer = pairs[n - 7 if n % 10 == 9 else n]
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns[::-1] if n % 50 == 3 else turns}) + "\n")
    return path


def read_ours(path: Path) -> int:
    from ft_pipeline.curate.read import raw_rows

    return sum(row.value is not None for row in raw_rows({path.name: path}, lambda _bytes: None))


def read_json_loads(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(isinstance(json.loads(line), dict) for line in file)


READERS = {"curate.read (row ids, origins, duplicate keys)": read_ours, "a loop of json.loads": read_json_loads}


@pytest.mark.parametrize("who", READERS)
def test_reading_rows(lap, export: Path, who: str) -> None:
    assert (
        lap("Reading 20,000 JSONL rows", who, lambda: READERS[who](export), amount=ROWS, unit="rows", rounds=10) == ROWS
    )


def test_curating_rows(lap, store, export: Path, monkeypatch) -> None:
    """The whole of curate: read, normalise, validate, exact and near duplicates, splits, ledger, Parquet, publish."""
    from ft_pipeline.curate import consolidate
    from ft_pipeline.recipe import Curate

    fresh = count()
    raw = _publish(store, "raw_dataset", {"files/rows.jsonl": export.read_bytes()}).ref

    def work() -> Any:
        version = f"bench {next(fresh)}"  # another code version: nothing is found, all is computed
        monkeypatch.setattr(consolidate, "code_version", lambda: version)
        return consolidate.curate(Curate(), store=store, raw=raw, base=None)

    def told(made: Any) -> str:
        return f"{made.manifest.counts['rows_kept']:,} kept"

    lap(
        "Curating 20,000 JSONL rows", "curate, all of it", work, amount=ROWS, unit="rows", rounds=3, warmup=0, fact=told
    )


def pack_ours(lengths: list[int]) -> int:
    from ft_pipeline.encode.pack import pack

    return len(pack(lengths, window_tokens=WINDOW_TOKENS, seed=0))


def pack_next_fit(lengths: list[int]) -> int:
    windows, free = 0, 0
    for length in lengths:
        if length > free:
            windows, free = windows + 1, WINDOW_TOKENS
        free -= length
    return windows


PACKERS = {"encode.pack, best fit decreasing": pack_ours, "next fit": pack_next_fit}


def some_lengths(number: int) -> list[int]:
    """Lognormal with a mean of 403 tokens, as in the design note."""
    drawn = np.random.default_rng(0).lognormal(5.5, 1.0, number)
    return np.clip(drawn, 8, WINDOW_TOKENS).astype(int).tolist()


@pytest.mark.parametrize("who", PACKERS)
def test_packing(lap, who: str) -> None:
    lengths = some_lengths(100_000)
    alone = _fill(lengths, len(lengths))
    race = f"Packing 100,000 rows into windows of {WINDOW_TOKENS}: which row goes where (one row a window: {alone})"
    told = {"amount": len(lengths), "unit": "rows", "rounds": 10, "fact": lambda windows: _fill(lengths, windows)}
    lap(race, who, lambda: PACKERS[who](lengths), **told)


@pytest.mark.parametrize("who", ["encode.pack and numpy", "trl pack_dataset bfd"])
def test_packing_tokens(lap, who: str) -> None:
    lengths = some_lengths(10_000)
    tokens = [np.full(length, n % 30_000, np.int32) for n, length in enumerate(lengths)]
    work = _trl_work(tokens) if who.startswith("trl") else lambda: _packed(tokens, lengths)
    race = f"Packing 10,000 rows with their tokens into windows of {WINDOW_TOKENS}"
    lap(race, who, work, amount=len(lengths), unit="rows", rounds=10, fact=lambda windows: _fill(lengths, windows))


def _packed(tokens: list[Any], lengths: list[int]) -> int:
    from ft_pipeline.encode.pack import pack

    return len([np.concatenate([tokens[r] for r in w]) for w in pack(lengths, window_tokens=WINDOW_TOKENS, seed=0)])


def _trl_work(tokens: list[Any]) -> Callable[[], int]:
    import datasets
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"input_ids": tokens})
    return lambda: len(pack_dataset(rows, WINDOW_TOKENS, map_kwargs={"load_from_cache_file": False}))


def _fill(lengths: list[int], windows: int) -> str:
    return f"{sum(lengths) / (windows * WINDOW_TOKENS):.2%} full"


def _publish(store, kind: str, files: dict[str, bytes], **config: Any) -> Any:
    from ft_pipeline.store.manifest import Spec

    with store.publish(Spec(kind=kind, config=config, parents={}, code="bench")) as draft:
        for name, content in files.items():
            (draft.folder / name).parent.mkdir(exist_ok=True)
            (draft.folder / name).write_bytes(content)
    assert draft.artifact
    return draft.artifact


@pytest.mark.parametrize("who", ["store.publish (fsync, rename, manifest, read back)", "write and sha256"])
def test_publishing(lap, store, tmp_path: Path, who: str) -> None:
    files, fresh = _some_files(), count()

    def plain() -> None:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            hashlib.sha256(content).hexdigest()

    work = plain if who.startswith("write") else lambda: _publish(store, "checkpoints", files, round=next(fresh))
    lap("Publishing 64 MiB in 8 files", who, work, amount=FILES * FILE_BYTES / 1e6, unit="MB", rounds=8)


@pytest.mark.parametrize(
    "who", ["lineage.verify (every byte)", "sha256 of the same files", "store.fetch (digests known)"]
)
def test_verifying(lap, store, who: str) -> None:
    from ft_pipeline import lineage

    made = _publish(store, "checkpoints", _some_files())
    time.sleep(2.1)  # a digest is remembered only of a file that has been left alone for two seconds
    work = {
        "lineage": lambda: lineage.verify(store, made.ref),
        "sha256": lambda: [_digest(path) for path in made.folder.iterdir()],
        "store": lambda: store.fetch(made.ref),
    }[who.partition(".")[0].partition(" ")[0]]
    lap("Verifying 64 MiB in 8 files", who, work, amount=FILES * FILE_BYTES / 1e6, unit="MB", rounds=10)


def _some_files() -> dict[str, bytes]:
    return {f"part-{n}.bin": random.Random(n).randbytes(FILE_BYTES) for n in range(FILES)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
