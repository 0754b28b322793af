"""`make bench-scale`: the data rooms on a million rows, each figure with its baseline in the same run. Minutes, not part of `make bench`.

python -m ft_pipeline_tests.bench_scale dedupe --rows 1000000 --theirs 100000
"""

from __future__ import annotations

import argparse
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


RACES = {"dedupe": dedupe}

if __name__ == "__main__":
    chosen = _arguments(sys.argv[1:])
    RACES[chosen.race](chosen)
