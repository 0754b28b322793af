"""The script for a GPU machine runs: dry, on a CPU, with every method."""

from __future__ import annotations

import json

import pytest

from ft_pipeline_tests import bench_gpu


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_dry_run_trains_resumes_exactly_and_says_what_it_is(tmp_path):
    assert bench_gpu.main(["--dry-run", "--out", str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["method"], line["checkpointing"]) for line in lines] == [
        (m, c) for m in bench_gpu.METHODS for c in (False, True)
    ]
    for line in lines:
        assert "error" not in line, line
        assert line["resume"] == "bit-exact" and line["tokens_per_second"] > 0 and line["planned_gib"] > 0
        assert "mfu" not in line and "dry run" in line["device_name"]


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        bench_gpu.main([])
