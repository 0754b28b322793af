"""Whole runs of curate: any number of processes, a team of members, a kill in the middle, rows appended; filters, mixing, limits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.curate import blocks, examine, references
from ft_pipeline.curate.artifact import SPLITS, rows_of, statistics_of
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.curate.main import curate_job
from ft_pipeline.errors import DataError, RecipeError
from ft_pipeline.recipe import (
    Benchmark,
    Contamination,
    Curate,
    Dataset,
    NearDuplicates,
    Pii,
    Quality,
    Source,
    Splits,
    Toxicity,
)
from ft_pipeline.settings import child_environment
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.pool import Pool
from ft_pipeline_tests import tiny

pytestmark = pytest.mark.slow

WORDS = ["".join(random.Random(n).choices("abcdefghijklmnop", k=random.Random(n).randrange(3, 9))) for n in range(700)]


def sentence(rng: random.Random, words: int = 25) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def some_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompt and completion, every tenth a near duplicate of an earlier one and every fifteenth a repetition."""
    rng, made = random.Random(seed), []
    for n in range(count):
        if n % 15 == 14:
            made.append(rng.choice(made))
        elif n % 10 == 9:
            one = rng.choice(made)
            made.append({"prompt": one["prompt"], "completion": one["completion"] + " x"})
        else:
            made.append({"prompt": sentence(rng), "completion": sentence(rng)})
    return made


@pytest.fixture
def acquired(home, store, tmp_path):
    """Writes rows to a file of their own and acquires them."""

    def make(rows, name="rows"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return dataset.acquire(Dataset(uri=str(path), licence="CC0-1.0"), settings=home, store=store).ref

    return make


@pytest.fixture
def curated(home, store, acquired):
    """Curates rows with a config."""

    def make(rows, config=None, *, workforce=None, listener=None):
        config = config or Curate()
        opened = references.opened(config, settings=home, store=store)
        curation = Curation(config=config, raw=acquired(rows), **opened)
        options = {"listener": listener} if listener else {}
        return curate(curation, store=store, workforce=workforce or Pool(1), **options)

    return make


def ledger(made):
    return pl.read_parquet(made.file("ledger.parquet")).to_dicts()


def flags(made):
    return pl.read_parquet(made.file("flags.parquet")).to_dicts()


def texts(made):
    return [json.dumps(row["content"], ensure_ascii=False) for split in SPLITS for row in rows_of(made, split)]


def forget(made, store):
    """Takes an artifact and everything that was examined for it away."""
    for folder in (made.folder, store.work / "curate", *store.work.glob("runs/*/team-of-*")):
        shutil.rmtree(folder)


@pytest.mark.slow
def test_one_two_and_four_processes_publish_the_same(curated, store, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 30_000)
    monkeypatch.setattr("ft_pipeline.curate.consolidate.SMALL_BYTES", 0)
    monkeypatch.setattr("ft_pipeline.curate.deduplicate.FEW_PAIRS", 0)
    monkeypatch.setattr("ft_pipeline.curate.deduplicate.TASK_PAIRS", 64)
    monkeypatch.setattr("ft_pipeline.curate.own_holdout.FEW_ROWS", 0)
    rows = some_rows(1500)
    digests = set()
    for processes in (1, 2, 4):
        made = curated(rows, workforce=Pool(processes))
        digests.add(made.ref.digest)
        assert len(list((store.work / "curate").glob("*/*"))) > 5
        forget(made, store)
    assert len(digests) == 1


def test_blocks_of_any_size_give_the_same_rows(curated, store, monkeypatch):
    rows, digests = some_rows(300), set()
    for size in (1_000, 40_000, 4 << 20):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        made = curated(rows)
        digests.add(made.ref.digest)
        forget(made, store)
    assert len(digests) == 1


def test_appended_rows_cost_only_the_blocks_they_are_in(curated, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 5_000)
    examined: list[int] = []
    write = examine.write_block
    monkeypatch.setattr(examine, "write_block", lambda *a, **k: (examined.append(1), write(*a, **k))[1])
    rows = some_rows(400)
    curated(rows[:360])
    before = len(examined)
    made = curated(rows)
    appended = len(examined) - before
    assert before > 20 and appended < before / 4
    assert made.manifest.counts["rows_in"] == 400


def test_appending_gives_what_a_run_from_nothing_gives(curated, store, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 5_000)
    rows = some_rows(300)
    curated(rows[:200])
    appended = curated(rows)
    forget(appended, store)
    assert curated(rows).ref == appended.ref


@pytest.fixture
def job(home, store, acquired):
    """A job file of a curation big enough for several blocks, and its spec."""
    rows = some_rows(24_000)
    raw = acquired(rows)
    recipe = tiny.recipe(dataset=Dataset(uri="unused"), curate=Curate())
    curation = Curation(config=recipe.curate, raw=raw, dataset=recipe.dataset)
    made = curate_job(recipe, curation, base=None, work=home.work, placement=Placement())
    made.folder.mkdir(parents=True)
    made.write()
    return made


def start(home, job, member=0, size=1):
    names = {"FT_TEAM_MEMBER": str(member), "FT_TEAM_SIZE": str(size)}
    command = [sys.executable, "-m", job.module, str(job.folder / "job.json")]
    with (job.folder / f"log-{member}.txt").open("wb") as log:
        return subprocess.Popen(command, env=child_environment(home) | names, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_team_of_four_publishes_what_one_process_does(home, store, job):
    members = [start(home, job, member, 4) for member in range(4)]
    assert [m.wait(200) for m in members] == [0, 0, 0, 0], (job.folder / "log-0.txt").read_text()
    together = store.find(job.spec)
    assert together and len(list((job.folder / "team-of-4" / "examine").iterdir())) >= 2
    forget(together, store)
    assert start(home, job).wait(200) == 0
    assert store.find(job.spec).ref == together.ref


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_in_the_middle_it_goes_on_and_ends_the_same(home, store, job):
    child = start(home, job)
    examined = store.work / "curate"
    until = time.monotonic() + 100
    while time.monotonic() < until and len(list(examined.glob("*/*/counts.json"))) < 1:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert store.find(job.spec) is None
    kept = {p: p.stat().st_mtime_ns for p in examined.glob("*/*/counts.json")}
    assert kept
    assert start(home, job).wait(200) == 0
    resumed = store.find(job.spec)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    forget(resumed, store)
    assert start(home, job).wait(200) == 0
    assert store.find(job.spec).ref == resumed.ref


def test_every_row_is_somewhere_whatever_drops_it(curated, tmp_path):
    rng = random.Random(5)
    bench = tmp_path / "bench"
    bench.mkdir()
    questions = [sentence(rng, 20) for _ in range(30)]
    (bench / "test.jsonl").write_text("".join(json.dumps({"question": q, "answer": "a"}) + "\n" for q in questions))
    (tmp_path / "bad.txt").write_text("# list\nslurry\n")
    rows = some_rows(200)
    rows += [{"prompt": f"{sentence(rng)} {q} {sentence(rng)}", "completion": sentence(rng)} for q in questions[:5]]
    rows += [{"prompt": "write to jane.roe@corp.io", "completion": sentence(rng)}, {"completion": "no prompt"}]
    rows += [{"prompt": sentence(rng), "completion": "what a Slurry " + sentence(rng)}]
    rows += [{"prompt": sentence(rng), "completion": "spam spam " * 100}]
    config = Curate(
        quality=Quality(policy="reject"),
        pii=Pii(policy="redact"),
        toxicity=Toxicity(words=str(tmp_path / "bad.txt"), policy="reject"),
        contamination=Contamination(benchmarks=(Benchmark(name="made-up", uri=str(bench)),)),
    )
    made = curated(rows, config)
    counts, found = made.manifest.counts, ledger(made)
    dropped = Counter(e["reason"] for e in found if e["action"] == "dropped")
    assert counts["rows_in"] == len(rows) == counts["rows_kept"] + dropped.total()
    assert dropped["contaminated"] == 5 and dropped["toxic"] == 1 and dropped["low_quality"] == 1
    assert dropped["unknown_layout"] == 1 and dropped["near_duplicate"] > 5 and dropped["exact_duplicate"] > 5
    changed = [e for e in found if e["action"] == "changed"]
    assert [(e["reason"], e["stage"]) for e in changed] == [("personal_data", "pii")]
    assert any("[EMAIL]" in text for text in texts(made)) and not any("jane.roe" in text for text in texts(made))
    items = pl.read_parquet(made.file("contamination.parquet"))
    assert len(items) == 5 and items["bench_cov"].min() == 1.0 and items["rows_trained"].sum() == 0
    assert {f["filter"] for f in flags(made)} >= {"quality", "pii", "toxicity", "contamination"}
    assert statistics_of(made)["flags"]["toxicity: toxic (drop)"] == 1


def test_the_ledger_never_shows_what_the_filters_hide(curated):
    secret = "jane.roe@corp.io"
    rows = some_rows(60)
    rows += [{"prompt": f"mail {secret}", "completion": "sure, I will"}, {"prompt": f"mail {secret}"}, {"text": ""}]
    rows += [{"messages": [{"role": secret, "content": "x"}]}]
    made = curated(rows, Curate(pii=Pii(policy="reject")))
    stored = json.dumps([ledger(made), flags(made), texts(made)])
    assert secret not in stored and "personal_data" in stored


@pytest.mark.parametrize("policy", ["off", "flag", "remove", "fail"])
def test_train_rows_that_hold_a_holdout_row(curated, policy):
    rng = random.Random(3)
    rows = some_rows(120, seed=3)
    plain = curated(rows, Curate(contamination=Contamination(holdout="off")))
    held = [json.loads(t) for t in (json.dumps(r["content"]) for r in rows_of(plain, "holdout"))][:4]
    longer = [
        {"prompt": f"{sentence(rng, 60)} {h['prompt']} {h['completion']}", "completion": sentence(rng, 60)}
        for h in held
    ]
    config = Curate(contamination=Contamination(holdout=policy), splits=Splits(validation=0.0, holdout=0.1))
    if policy == "fail":
        with pytest.raises(DataError, match="train rows hold a row of the holdout"):
            curated(rows + longer, config)
        return
    made = curated(rows + longer, config)
    dropped = [e for e in ledger(made) if e["reason"] == "contaminated"]
    noted = [f for f in flags(made) if f["filter"] == "holdout"]
    assert len(dropped) == (len(noted) if policy == "remove" else 0)
    assert (len(noted) >= 2) == (policy != "off")


def test_a_mix_is_drawn_by_share_and_cap_and_always_the_same(home, store, tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("main", "chat", "safe")}
    for seed, path in enumerate(files.values()):
        path.write_text("".join(json.dumps(r) + "\n" for r in some_rows(400, seed=10 + seed)))
    mix = (
        Source(name="chat", uri=str(files["chat"]), cap=50),
        Source(name="safe", uri=str(files["safe"]), share=0.1, safety=True),
    )
    config = Curate(splits=Splits(validation=0.0, holdout=0.1))
    recipe = replace(tiny.recipe(dataset=Dataset(uri=str(files["main"])), curate=config), mix=mix)
    raw = dataset.acquire_all(recipe, settings=home, store=store).ref
    curation = Curation(config=recipe.curate, raw=raw, dataset=recipe.dataset, mix=recipe.mix)
    made = curate(curation, store=store)
    numbers = statistics_of(made)
    sources = {name: found["train"] for name, found in numbers["sources"].items()}
    assert numbers["sources"]["chat"]["kept"] == 50
    assert abs(sources["safe"] / sum(sources.values()) - 0.1) < 0.005 and numbers["safety_share"] > 0.09
    reasons = Counter(e["reason"] for e in ledger(made))
    assert reasons["not_drawn"] == sum(found["not_drawn"] for found in numbers["sources"].values()) > 400
    assert {row["source"] for row in rows_of(made, "train")} == {"dataset", "chat", "safe"}
    forget(made, store)
    assert curate(curation, store=store).ref == made.ref


def test_a_reason_above_its_own_limit_stops_the_run_with_three_examples(curated):
    rows = some_rows(92) + [{"messages": [{"role": "assistant", "content": f"I first {n}"}]} for n in range(8)]
    with pytest.raises(DataError) as caught:
        curated(rows, Curate(max_rejected={"role_order": 0.01}))
    text = str(caught.value)
    assert "8.0% of 100 rows (8) for role_order, limit 1%" in text and text.count("rows.jsonl:") == 3
    assert "max_rejected.role_order" in text
    assert curated(rows, Curate(max_rejected={"role_order": 0.08}))
    with pytest.raises(RecipeError, match="did you mean role_order"):
        curated(rows, Curate(max_rejected={"role_ordr": 0.01}))


def test_a_toxic_dataset_is_refused(curated, tmp_path):
    (tmp_path / "bad.txt").write_text("slurry\n")
    rows = some_rows(90) + [
        {"prompt": sentence(random.Random(n)), "completion": f"slurry {n} " + sentence(random.Random(-n - 1))}
        for n in range(10)
    ]
    config = Curate(toxicity=Toxicity(words=str(tmp_path / "bad.txt"), max_share=0.05))
    with pytest.raises(DataError, match=r"10\.0% of 100 rows \(10\) for toxic, limit 5%"):
        curated(rows, config)


def test_contamination_can_stop_the_run(curated, tmp_path):
    rng = random.Random(9)
    question = sentence(rng, 20)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "q.jsonl").write_text(json.dumps({"question": question}) + "\n")
    rows = [*some_rows(60), {"prompt": f"{sentence(rng)} {question}", "completion": "yes"}]
    bench = (Benchmark(name="made-up", uri=str(tmp_path / "b")),)
    with pytest.raises(DataError, match="contaminated"):
        curated(rows, Curate(contamination=Contamination(benchmarks=bench, policy="fail")))
    noted = curated(rows, Curate(contamination=Contamination(benchmarks=bench, policy="flag")))
    assert noted.manifest.counts["rows_kept"] == noted.manifest.counts["rows_in"] - sum(
        e["reason"] in ("exact_duplicate", "near_duplicate") for e in ledger(noted)
    )
    assert pl.read_parquet(noted.file("contamination.parquet"))["rows"].to_list() == [1]


def test_croissant_names_files_fields_and_hashes(curated):
    from ft_pipeline.store.fingerprint import sha256_file

    made = curated(some_rows(60))
    document = json.loads(made.file("croissant.json").read_text())
    assert document["@type"] == "sc:Dataset" and document["license"] == "CC0-1.0"
    for file in document["distribution"]:
        assert file["sha256"] == sha256_file(made.file(file["contentUrl"]))
    assert {f["name"] for f in document["recordSet"][0]["field"]} == set(
        pl.read_parquet_schema(made.file("train.parquet"))
    )


def test_other_limits_make_another_dataset_and_the_same_blocks(curated, store, monkeypatch):
    """What is decided behind the blocks (splits) does not examine them again."""
    rows = some_rows(100)
    curated(rows)
    before = {p.name for p in (store.work / "curate").glob("*/*")}
    curated(rows, Curate(splits=Splits(validation=0.2, holdout=0.2)))
    assert {p.name for p in (store.work / "curate").glob("*/*")} == before
    curated(rows, Curate(near_duplicates=NearDuplicates(threshold=0.8)))
    assert {p.name for p in (store.work / "curate").glob("*/*")} > before


def test_blocks_that_no_run_used_for_a_week_are_removed(curated, store):
    curated(some_rows(50, seed=1))
    old = next((store.work / "curate").glob("*/*"))
    curated(some_rows(50, seed=2))
    assert old.is_dir()
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    curated(some_rows(50, seed=3))
    assert not old.exists() and len(list((store.work / "curate").glob("*/*"))) == 2


def test_more_rows_than_the_memory_holds_are_refused_with_the_setting_to_change():
    from ft_pipeline.curate import limits
    from ft_pipeline.errors import UserError

    limits.refuse_memory(3_500_000, 2)
    with pytest.raises(UserError, match=r"100,000,000 rows takes about 55.9 GiB, FT_MEMORY_GIB allows 2"):
        limits.refuse_memory(100_000_000, 2)
    assert [limits.processes_within(8, gib) for gib in (1, 2, 64)] == [2, 5, 8]
