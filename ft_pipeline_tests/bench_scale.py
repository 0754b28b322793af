"""`make bench-scale`: the data rooms on a million rows, each figure with its baseline in the same run. Minutes, not part of `make bench`.

python -m ft_pipeline_tests.bench_scale dedupe --rows 1000000 --theirs 100000
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ft_pipeline_tests import scale_rows

BLOCK_ROWS = 8192


def sign(task: tuple[str, int, list[tuple[str, str]]]) -> Path:
    """One block of rows: normalised, exact keys, signatures, band keys, written."""
    from ft_pipeline.curate.comparison import comparable
    from ft_pipeline_tests.compared import write

    folder, start, rows = task
    made = [(start + n, comparable("completion", {"prompt": p, "completion": r})) for n, (p, r) in enumerate(rows)]
    place = Path(folder) / f"{start:09}"
    write(place, made, scores=[1.0] * len(made))
    return place


def ours(rows: list[tuple[str, str]], folder: Path, processes: int) -> tuple[int, int]:
    """Exact and near duplicates dropped."""
    from ft_pipeline.curate.deduplicate import find_duplicates
    from ft_pipeline.curate.examined import Examined
    from ft_pipeline.workers.pool import Pool, mapped

    tasks = ((str(folder), start, rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS))
    started = time.perf_counter()
    folders = list(mapped(sign, tasks, processes=processes))
    told("signed", started)
    table = Examined(folders)
    found = find_duplicates(table, "prompt_and_response", 0.9, workforce=Pool(processes), listener=_listener(started))
    return int((found.exact >= 0).sum()), int((found.near >= 0).sum())


def theirs(rows: list[tuple[str, str]]) -> int:
    """datasketch alone: a sketch of each row, then rows that an index at the same threshold already has."""
    from datasketch import MinHash, MinHashLSH

    texts = (" ".join(f"{p} {r}".lower().split()) for p, r in rows)
    grams = ({text[i : i + 5].encode() for i in range(len(text) - 4)} for text in texts)
    index, found = MinHashLSH(threshold=0.9, num_perm=128), 0
    for start in range(0, len(rows), 10_000):
        part = [next(grams) for _ in range(min(10_000, len(rows) - start))]
        for n, sketch in enumerate(MinHash.bulk(part, num_perm=128)):
            found += bool(index.query(sketch))
            index.insert(start + n, sketch, check_duplication=False)
    return found


def dedupe(arguments: argparse.Namespace) -> None:
    """Exact and near duplicates of `--rows`, and datasketch on the first `--theirs` of them."""
    rows = list(scale_rows.rows(arguments.rows))
    characters = sum(len(p) + len(r) for p, r in rows) / len(rows)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        seconds, found = timed(lambda: ours(rows, Path(folder), arguments.processes))
    print(f"{len(rows):,} rows of {characters:.0f} characters, {arguments.processes} processes: {seconds:.1f} s wall")
    print(f"  {found[0]:,} exact and {found[1]:,} near duplicates dropped; {_peaks()}")
    if arguments.theirs:
        other, hits = timed(lambda: theirs(rows[: arguments.theirs]))
        per_row, ours_per_row = other / arguments.theirs, seconds / len(rows)
        print(
            f"datasketch MinHash.bulk + MinHashLSH(threshold=0.9) on {arguments.theirs:,} rows: {other:.1f} s, {hits:,} found"
        )
        print(f"ratio per row: {per_row / ours_per_row:.1f} (wall, {arguments.processes} processes against its one)")


def half(arguments: argparse.Namespace) -> None:
    """The whole data half: read, validate, filter, deduplicate, contamination, template, tokens, packing, shards."""
    from ft_pipeline import recipe, settings
    from ft_pipeline.acquire import base_model, dataset
    from ft_pipeline.curate import references
    from ft_pipeline.curate.consolidate import curate, curation_of
    from ft_pipeline.encode.artifact import statistics
    from ft_pipeline.encode.launch import encode_job
    from ft_pipeline.store.artifacts import open_store
    from ft_pipeline.workers.job import Placement
    from ft_pipeline.workers.local import LocalWorker
    from ft_pipeline.workers.pool import Pool
    from ft_pipeline_tests import tiny

    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        os.environ["FT_HOME"] = place
        scale_rows.write_alpaca(folder / "rows.jsonl", arguments.rows)
        scale_rows.write_benchmark(folder / "questions.jsonl")
        scale_rows.write_base(folder / "base")
        made = tiny.recipe(
            base_model=recipe.BaseModel(uri=str(folder / "base")),
            dataset=recipe.Dataset(uri=str(folder / "rows.jsonl")),
            curate=recipe.Curate(
                contamination=recipe.Contamination(
                    benchmarks=(recipe.Benchmark(name="made-up", uri=str(folder / "questions.jsonl")),)
                )
            ),
            encode=recipe.Encode(window_tokens=4096, overlong="truncate"),
        )
        where = settings.load()
        store = open_store(where)
        base = base_model.acquire(
            made.base_model,
            settings=where,
            store=store,
            revision=base_model.resolve_revision(made.base_model, settings=where),
        )
        started = time.perf_counter()
        listener = _listener(started)
        raw = dataset.acquire_all(made, settings=where, store=store)
        told("rows acquired", started)
        opened = references.opened(made.curate, settings=where, store=store)
        curation = curation_of(made, raw=raw.ref, base=base.ref, store=store, **opened)
        curated = curate(curation, store=store, workforce=Pool(arguments.processes), listener=listener)
        told(f"curated, {curated.manifest.counts['rows_kept']:,} kept", started)
        placement = Placement(threads=arguments.processes)
        job = encode_job(made, curated=curated.ref, base=base, work=where.work, placement=placement)
        shards = LocalWorker(where, store).run(job, listener)
        seconds = time.perf_counter() - started
        facts = statistics(shards)
        print(
            f"{arguments.rows:,} Alpaca rows, {arguments.processes} processes: {seconds:.1f} s, {arguments.rows / seconds:,.0f} rows/s"
        )
        print(f"  {facts['tokens']:,} tokens in {facts['windows']:,} windows, {facts['fill']:.2%} full; {_peaks()}")


def pack(arguments: argparse.Namespace) -> None:
    """Which row goes into which window, for `--rows` lengths; TRL's bfd as it comes on the first `--theirs` of them."""
    import datasets
    import numpy as np
    from trl.data_utils import pack_dataset

    from ft_pipeline.encode.pack import fill
    from ft_pipeline.encode.pack import pack as ours

    datasets.disable_progress_bars()
    for name, mean in (("mean 400 tokens", 5.5), ("mean 120 tokens, as Alpaca", 4.3)):
        drawn = np.random.default_rng(0).lognormal(mean, 1.0, arguments.rows)
        lengths = np.clip(drawn, 8, 4096).astype(int)
        seconds, packing = timed(lambda lengths=lengths: ours(lengths, window_tokens=4096, seed=0))
        print(
            f"{arguments.rows:,} lengths, {name}: {seconds:.2f} s, {fill(lengths, packing, window_tokens=4096):.3%} full"
        )
        few = lengths[: arguments.theirs]
        rows = datasets.Dataset.from_dict({"input_ids": [np.zeros(n, np.int32) for n in few.tolist()]})
        other, packed = timed(lambda rows=rows: pack_dataset(rows, 4096, map_kwargs={"load_from_cache_file": False}))
        same = fill(few, ours(few, window_tokens=4096, seed=0), window_tokens=4096)
        theirs_full = few.sum() / (len(packed) * 4096)
        print(
            f"  TRL pack_dataset bfd on the first {len(few):,}: {other:.2f} s, {theirs_full:.3%} full; ours of these {same:.3%}"
        )


def contamination(arguments: argparse.Namespace) -> None:
    """Rows a second and core of the search for 10,000 questions, every question planted once in a longer row, and the other rows benign."""
    import json

    from ft_pipeline.curate.benchmark_index import index_of_items
    from ft_pipeline.curate.benchmark_items import read_items
    from ft_pipeline.curate.contamination import Scanner

    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        path = Path(place) / "questions.jsonl"
        scale_rows.write_benchmark(path)
        items = read_items("made-up", {path.name: path})
        questions = [json.loads(line)["question"] for line in path.read_text().splitlines()]
    scanner = Scanner([index_of_items("made-up", items)], threshold=0.5)
    benign = [f"{p}\n{r}" for p, r in scale_rows.rows(min(arguments.rows, 200_000))]
    started = time.process_time()
    hits = scanner.scan(benign)
    seconds = time.process_time() - started
    long = [question for question in questions if len(re.findall(r"\w+", question)) >= 8]
    planted = [f"{row[:200]} {question} {row[200:]}" for row, question in zip(benign, long, strict=False)]
    found = {hit.row for hit in scanner.scan(planted)}
    print(
        f"{len(benign) / seconds:,.0f} rows a second and core; {len(benign):,} rows, {len({h.row for h in hits})} hold one: docstrings quote each other"
    )
    print(f"  {len(found):,} of {len(planted):,} planted questions of 8 words and more found")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds and the outcome."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def told(what: str, started: float) -> None:
    """How long it took so far."""
    print(f"  {what} at {time.perf_counter() - started:.1f} s", flush=True)


def _listener(started: float) -> Callable[[Any], None]:
    def listen(message: Any) -> None:
        if message.kind == "progress" and message.done == message.total:
            told(message.task, started)

    return listen


def _peaks() -> str:
    own, children = (
        resource.getrusage(w).ru_maxrss / 1024 / 1024 for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return f"largest process {max(own, children):.2f} GiB (this one holds the rows)"


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("race", choices=sorted(RACES))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--theirs", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", default=None)
    return parser.parse_args(words)


RACES = {"dedupe": dedupe, "half": half, "pack": pack, "contamination": contamination}

if __name__ == "__main__":
    chosen = _arguments(sys.argv[1:])
    RACES[chosen.race](chosen)
