"""How busy a GPU is gets asked once a second where NVML answers, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ft_pipeline.finetune import meter
from ft_pipeline.finetune.meter import Meter, busy_of

GPU = SimpleNamespace(device="cuda:0")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a name without a known peak; its NVML says 87%."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    monkeypatch.setattr(torch.cuda, "utilization", lambda _device: 87)
    return monkeypatch


def test_it_is_told_once_a_second(gpu):
    now = [100.0]
    gpu.setattr(meter.time, "monotonic", lambda: now[0])
    measured = Meter(GPU)
    told = []
    for now[0] in (100.0, 100.4, 101.1):
        told.append(measured.facts(0.4).get("gpu_busy"))
    assert told == [0.87, None, 0.87]


def test_a_cpu_and_a_gpu_without_nvml_are_silent(gpu):
    assert busy_of("cpu") is None

    def silent(_device):
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    gpu.setattr(torch.cuda, "utilization", silent)
    assert "gpu_busy" not in Meter(GPU).facts(0.1)
