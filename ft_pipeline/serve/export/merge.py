"""Writes a LoRA adapter into the weights of its base: one model that any engine loads, without the cost of an adapter per token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from ft_pipeline.errors import DataError
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.workers.job import Job

SHARD = "4GB"
"""Of safetensors, so that a download that breaks begins again at most there."""


def merge(job: Job, parents: Mapping[str, Artifact], folder: Path) -> dict[str, int]:
    """Writes the merged model below `folder`; returns what was counted. Raises DataError for weights that are not numbers."""
    disable_progress_bar()
    torch.set_num_threads(job.placement.threads)
    model = unmerged(parents["base"].folder, parents["adapter"].folder, job.placement.device)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise DataError(
            f"{job.name}: the adapter does not merge: {error}",
            why="Weights that are not numbers would answer nothing.",
            cure="look at the training's loss curve; retrain with a lower learning rate",
        ) from error
    merged.to("cpu").save_pretrained(folder, max_shard_size=SHARD)
    return {"parameters": sum(p.numel() for p in merged.parameters())}


def unmerged(base: Path, adapter: Path, device: str) -> PeftModel:
    """The adapter on its base, as it is served before any export."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", attn_implementation="sdpa").to(device)
    return PeftModel.from_pretrained(model, str(adapter)).eval()
