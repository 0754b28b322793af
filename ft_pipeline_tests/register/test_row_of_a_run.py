"""A whole run, its evidence, and a row of it taken down to the end: the next run leaves the row out and takes the place."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import polars as pl
import pytest

from ft_pipeline_tests import road


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_row_of_a_run_is_taken_down_to_the_end(finished_run, tmp_path, typed):
    home = finished_run

    def call(*words: str, code: int = 0) -> str:
        ended = typed(*words)
        assert ended.code == code, ended.out + ended.err
        return ended.out + ended.err

    call("export-evidence", "acme/router@1", str(tmp_path / "out.zip"))
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        file.extractall(tmp_path / "bundle")
    bare = [sys.executable, "-I", "-S", "verify.py"]
    assert subprocess.run(bare, cwd=tmp_path / "bundle", capture_output=True, text=True).stdout.endswith("VERIFIED\n")
    (curated,) = road.artifact_folders(home, "curated_dataset")
    row = pl.read_parquet(curated / "train.parquet")["row_id"][0]
    assert "acme/router@1 (production)" in call("forget", row, "--reason", "asked")
    assert "acme/router@1 in local" in call("forget", row, "--complete", code=3)
    assert road.call(home, "run", "router").returncode == 0
    call("forget", row, "--complete")
    stages = {m["model"]: m["stage"] for m in json.loads(call("models", "--json"))}
    assert stages == {"acme/router@1": "archived", "acme/router@2": "production"}
    assert "taken down" in call("rollback", "acme/router", code=3)
    new = next(f for f in road.artifact_folders(home, "curated_dataset") if f != curated)
    assert row not in pl.read_parquet(new / "train.parquet")["row_id"].to_list()
    assert "takedown completed" in call("history", "acme/router")
    call("verify", "acme/router@2")
