"""Encoding in blocks: the same shards for any number of processes, and after a kill -9; progress; an early refusal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ft_pipeline.encode import blocks, main, spill
from ft_pipeline.encode.launch import encode_job
from ft_pipeline.encode.rows import loaded
from ft_pipeline.errors import DataError
from ft_pipeline.settings import child_environment
from ft_pipeline.workers.job import Placement
from ft_pipeline.workers.messages import read_messages
from ft_pipeline_tests import tiny


@pytest.fixture
def base(store, tmp_path):
    return tiny.publish_base(store, tiny.tokenizer_folder(tmp_path / "base"))


def job_of(home, curated, base, **placement):
    return encode_job(tiny.recipe(), curated=curated.ref, base=base, work=home.work, placement=Placement(**placement))


def messages_of(job):
    return [message for message, _ in read_messages(job.folder / "messages.jsonl", 0)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_number_of_processes_gives_the_same_shards(home, store, base, monkeypatch):
    monkeypatch.setattr(blocks, "SMALL_ROWS", 0)
    monkeypatch.setattr(spill, "BLOCK_ROWS", 512)
    curated = tiny.publish_curated(store, tiny.chat_rows(3000), validation=100)
    made = []
    for threads in (1, 2, 4):
        artifact = tiny._run_here(store, job_of(home, curated, base, threads=threads), main.body)
        made.append(artifact.ref)
        shutil.rmtree(artifact.folder)
    assert made[0] == made[1] == made[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_job_keeps_its_blocks_and_ends_in_the_same_shards(home, store, base, tmp_path):
    from ft_pipeline.store.artifacts import Store
    from ft_pipeline.store.files import Bucket

    rows = tiny.chat_rows(24_000)
    curated = tiny.publish_curated(store, rows, validation=200)
    job = job_of(home, curated, base, threads=2)
    command = [sys.executable, "-m", job.module, str(job.write())]
    child = subprocess.Popen(command, env=child_environment(home))
    until(lambda: len(list((job.folder / "blocks").glob("train-*.arrow"))) >= 2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = {path: path.stat().st_mtime_ns for path in (job.folder / "blocks").glob("*.arrow")}
    assert 2 <= len(before) < 7
    assert subprocess.run(command, env=child_environment(home)).returncode == 0
    kept = next(m.text for m in messages_of(job) if "before an interruption" in m.text)
    assert kept.startswith(f"{4096 * len(before):,} of 24,000 rows")
    assert not (job.folder / "blocks").exists()
    other = Store(Bucket(str(tmp_path / "other")), tmp_path / "work")
    again = tiny.publish_shards(
        other,
        tiny.publish_curated(other, rows, validation=200),
        tiny.publish_base(other, tmp_path / "base"),
    )
    found = store.find(job.spec)
    assert found is not None and again.ref.digest == found.ref.digest


def test_a_finished_block_is_not_made_again(home, store, base, monkeypatch):
    monkeypatch.setattr(spill, "BLOCK_ROWS", 256)
    curated = tiny.publish_curated(store, tiny.chat_rows(1000))
    job = job_of(home, curated, base)
    section = tiny.recipe().encode
    template = loaded(base.folder, section)
    tools = blocks.Tools(base=base.folder, section=section, template=lambda: template)
    first = blocks.encoded_blocks(curated, job.folder / "blocks", tools, processes=1, listener=lambda _: None)
    first["train"][1].unlink()
    before = {path: path.stat().st_mtime_ns for path in first["train"] if path.exists()}
    told = []
    assert blocks.encoded_blocks(curated, job.folder / "blocks", tools, processes=1, listener=told.append) == first
    assert before == {path: path.stat().st_mtime_ns for path in before} and first["train"][1].exists()
    assert [m.done for m in told if m.kind == "progress"][-1] == 1000
    assert "744 of 1,000 rows were encoded before" in next(m.text for m in told if m.kind == "log")


def test_progress_tells_how_fast_and_how_long(home, store, base, monkeypatch):
    monkeypatch.setattr(spill, "BLOCK_ROWS", 256)
    job = job_of(home, tiny.publish_curated(store, tiny.chat_rows(600)), base)
    tiny._run_here(store, job, main.body)
    last = [m for m in messages_of(job) if m.task == "encode"][-1]
    assert (last.done, last.total, last.unit) == (600, 600, "row")
    assert int(last.facts["rows/s"].replace(",", "")) > 0 and last.facts["left"] == "0:00"


def test_a_dataset_that_will_be_refused_is_refused_before_all_is_encoded(home, store, tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "BLOCK_ROWS", 256)
    base = tiny.publish_base(store, tiny.tokenizer_folder(tmp_path / "mute", template="{{ raise_exception('no') }}"))
    job = job_of(home, tiny.publish_curated(store, tiny.chat_rows(1500)), base)
    with pytest.raises(DataError, match="no loss mask for 256 rows"):
        tiny._run_here(store, job, main.body)
    assert len(list((job.folder / "blocks").glob("train-??????.arrow"))) == 1


def test_rows_in_are_rows_kept_and_rows_dropped(home, store, base):
    long = {"messages": [{"role": "user", "content": "again? " * 90}, {"role": "assistant", "content": "zipfile"}]}
    curated = tiny.publish_curated(store, [*tiny.chat_rows(40), long, long], validation=1)
    made = tiny.publish_shards(store, curated, base)
    facts = json.loads(made.file("statistics.json").read_text())
    assert (facts["rows_in"], facts["rows_all_splits"], facts["rows_dropped"]) == (42, 40, 2)


def until(claim, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < ends
        time.sleep(0.02)
