"""LoRA on a model by PEFT: which layers, and with what of rsLoRA and DoRA."""

from __future__ import annotations

from typing import Any

import torch

from ft_pipeline.finetune.score import SCORE
from ft_pipeline.recipe import Lora


def with_lora(model: Any, lora: Lora, *, task: str = "CAUSAL_LM") -> Any:
    """A PEFT model. The caller sets the seed first: A is drawn here. `task`: PEFT's task_type."""
    from peft import LoraConfig, get_peft_model

    targets = linear_names(model) if lora.targets == "all-linear" else sorted(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type=task,
        use_dora=lora.dora, use_rslora=lora.rslora,
    )  # fmt: skip
    return get_peft_model(model, config)


def linear_names(model: Any) -> list[str]:
    """Last names of the linear layers without the head: `q_proj`, not every layer's path as PEFT's all-linear writes it."""
    heads = (model.get_output_embeddings(), getattr(model, SCORE, None))
    return sorted(
        {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m not in heads}
    )


def lora_parameters(model: Any) -> int:
    """Trained weights of a model: with LoRA, those of its adapter."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
