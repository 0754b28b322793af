"""The short version of bench_serve's first race: many adapters in one batch answer as PEFT does one by one, and sooner."""

from __future__ import annotations

import pytest

from ft_pipeline_tests import bench_serve

pytestmark = pytest.mark.slow


def test_many_adapters_in_one_batch_answer_as_one_by_one_and_sooner(tmp_path, capsys):
    mixed, sequential = bench_serve.adapters(tmp_path, 12)
    assert mixed.answers == sequential.answers
    assert len(set(mixed.answers)) == 12
    # 19x measured with 100 adapters
    assert mixed.seconds < sequential.seconds / 2
    assert "12 of 12" in capsys.readouterr().out
