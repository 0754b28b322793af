"""Several adapters on one load answer as each of them does alone."""

from __future__ import annotations

import pytest
import torch

from ft_pipeline.gate.arms import Arms
from ft_pipeline.gate.shared_base import SharedBase


@pytest.mark.slow
def test_every_arm_of_a_shared_load_is_the_arm_alone(base_folder, adapter_folders, tmp_path) -> None:
    folders = {"broken": adapter_folders["broken"], "zero": adapter_folders["zero"]}
    shared, ids = SharedBase(base_folder, folders), torch.tensor([[5, 6, 7, 8]])

    def logits(arm) -> torch.Tensor:
        with arm as model:
            return model(input_ids=ids).logits.clone()

    alone = {name: logits(Arms(base_folder, folder).adapter()) for name, folder in folders.items()}
    base = logits(Arms(base_folder, folders["zero"]).base())
    for name in ("zero", None, "broken", "zero", None):
        assert torch.equal(logits(shared.arm(name)), base if name is None else alone[name]), name
    assert not torch.equal(alone["broken"], base)
