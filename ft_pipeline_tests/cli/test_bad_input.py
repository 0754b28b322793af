"""Bad rows, lost places, wrong keys, a full disk: exit code, the value, the cure; and the store is whole afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ft_pipeline import settings
from ft_pipeline.cli import launch
from ft_pipeline.errors import NotFoundError
from ft_pipeline.resources import find_recipe, open_house
from ft_pipeline_tests import road

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def refused(finished_run, typed):
    """Runs the recipe with changes; it must end with this code and these words, and leave a store that verifies."""

    def run(code: int, *words: str, **changes):
        road.write_recipe(finished_run, **changes)
        answer = typed("run", "router")
        assert answer.code == code, answer.err
        said = " ".join(answer.err.split())
        assert [w for w in (*words, "Cure:") if w not in said] == [], answer.err
        assert "Traceback" not in answer.err
        assert typed("verify", road.KEY).code == 0
        assert not list((finished_run / "store" / ".drafts").glob("*-*")), "a draft was left behind"
        return answer

    return run


def rows_file(home: Path, content: str | bytes, name: str = "odd.jsonl") -> str:
    path = home / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"home://{name}"


def test_an_empty_file(refused, finished_run):
    refused(2, "odd.jsonl is empty (0 bytes)", dataset__uri=rows_file(finished_run, ""))


def test_a_file_of_blank_lines(refused, finished_run):
    refused(2, "the dataset holds no rows", dataset__uri=rows_file(finished_run, "\n\n \n"))


def test_a_file_in_which_every_row_is_bad(refused, finished_run):
    content = "nonsense\n" + json.dumps({"a": 1}) + "\n"
    refused(
        2, "2 of 2 rows (100%) were rejected: not_json 1, unknown_layout 1", "odd.jsonl:1", "curate.max_rejected_share",
        dataset__uri=rows_file(finished_run, content),
    )  # fmt: skip


def test_a_single_row_leaves_nothing_to_measure(refused, finished_run):
    refused(2, "of 1 valid rows", dataset__uri=rows_file(finished_run, json.dumps(road.question(1)) + "\n"))


def test_a_dataset_that_is_another_than_it_is_called(refused, finished_run):
    refused(
        2, "odd.parquet is not a whole Parquet file", dataset__uri=rows_file(finished_run, "no parquet", "odd.parquet")
    )


def test_a_pinned_dataset_that_changed(refused, finished_run):
    refused(2, "the recipe pins revision", dataset__revision="0" * 64)


def test_a_base_model_without_weights(refused, finished_run):
    shutil.copytree(finished_run / "bases" / "tiny", finished_run / "bases" / "bare")
    (finished_run / "bases" / "bare" / "model.safetensors").unlink()
    refused(2, "home://bases/bare", base_model__uri="home://bases/bare", name="bare")


def test_a_base_model_that_moved_under_its_pin_is_never_trained_on(finished_run, typed, house):
    """The same place with other bytes: the pinned base goes on, the same adapter is judged on the new one and becomes a version on it."""
    trained = [m.ref for m in house.store.all("checkpoints")]
    config = finished_run / "bases" / "tiny" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 500'))
    answer = typed("run", "router")
    assert answer.code == 0 and "RECERTIFIED" in answer.out
    assert trained and [m.ref for m in house.store.all("checkpoints")] == trained
    old, new = sorted(json.loads(typed("models", "--json").out), key=lambda version: version["model"])
    assert (old["stage"], new["stage"]) == ("archived", "production")
    assert old["adapter"] == new["adapter"] and old["base"] != new["base"]


def test_a_loss_that_is_not_finite_stops_for_good(refused):
    refused(42, "failed for good", "learning rate", finetune__learning_rate=1e30)


def test_a_stranger_cannot_verify_and_a_garbled_key_is_named(finished_run, typed, monkeypatch, tmp_path):
    monkeypatch.setenv("FT_SIGNING_KEY", str(tmp_path / "other.pem"))
    stranger = typed("verify", road.KEY)
    assert stranger.code == 4 and "no public key to verify with" in stranger.err and "Cure:" in stranger.err
    monkeypatch.delenv("FT_SIGNING_KEY")
    (finished_run / "keys" / "signing.pem").write_text("garbage")
    road.write_recipe(finished_run, name="second")
    answer = typed("run", "router")
    assert answer.code in (2, 5) and "signing.pem" in answer.err and "Traceback" not in answer.err


def test_a_bucket_that_does_not_answer_is_told_within_a_minute(finished_run, typed, monkeypatch):
    for name, value in {
        "FT_STORE": "s3://bucket/x", "FT_S3_ENDPOINT": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    answer = typed("plan", "router")
    assert answer.code == 5 and "no answer from S3" in answer.err and "FT_S3_ENDPOINT" in answer.err
    assert time.monotonic() - begun < 60 and "Traceback" not in answer.err


def test_launch_raises_what_the_room_raised(finished_run, typed):
    path = road.write_recipe(finished_run, gate__safety={"uri": "home://none.jsonl"})
    with pytest.raises(NotFoundError, match=r"none\.jsonl"):
        launch.launch(open_house(), find_recipe(settings.load(), str(path)))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    if (
        not mounted
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that takes all of the disk but so many bytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * (shutil.disk_usage(disk).free - left))
    return ballast


@pytest.mark.parametrize("left_kib", [0, 24, 150, 400, 700])
def test_a_disk_that_fills_anywhere_on_the_road(finished_home, small_disk, typed, monkeypatch, left_kib):
    """Catalog, Dagster's history, store and work are all on it: wherever it ends, the words are the same and nothing is lost."""
    home = small_disk / "home"
    shutil.copytree(finished_home, home)
    for name, value in {"FT_HOME": str(home), "FT_RECIPES": str(home / "recipes")}.items():
        monkeypatch.setenv(name, value)
    before = {path: path.read_bytes() for path in (home / "store").rglob("*") if path.is_file()}
    road.write_rows(home / "more.jsonl", road.clean_rows(3000))
    road.write_recipe(home, "more", name="more", dataset__uri="home://more.jsonl")
    ballast = fill(small_disk, left_kib * 1024)
    answer = typed("run", "more")
    assert answer.code == 5, answer.err
    assert "Cure: free space" in answer.err and "Traceback" not in answer.err
    ballast.unlink()
    assert typed("verify", road.KEY).code == 0 and typed("plan", "more").code == 0
    assert {path: path.read_bytes() for path in before} == before
