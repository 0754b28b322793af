"""The model that is trained: the base by local path, LoRA or every weight, and its trained tensors by name."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.finetune import attention
from ft_pipeline.recipe import Finetune, Lora


@dataclass(frozen=True)
class Trainee:
    """A model with its trained parameters. `flat`: it takes packed rows without a mask (attention.py)."""

    model: Any
    section: Finetune
    device: str
    flat: bool

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that the optimizer changes, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Training every weight in bfloat16 keeps them in float32 (16 B per parameter) and computes in bfloat16."""
        if self.section.lora is None and self.section.dtype == "bfloat16":
            return torch.autocast(self.device, torch.bfloat16)
        return contextlib.nullcontext()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensors on the CPU under the names in which PEFT or transformers load them; tied ones once."""
        if self.section.lora is not None:
            from peft import get_peft_model_state_dict

            found = get_peft_model_state_dict(self.model)
        else:
            tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
            drop = tied if getattr(self.model.config, "tie_word_embeddings", False) else set()
            found = {name: t for name, t in self.model.state_dict().items() if name not in drop}
        return {name: found[name].detach().to("cpu").contiguous() for name in sorted(found)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts saved tensors back in place."""
        if self.section.lora is not None:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.model, tensors)
        else:
            self.model.load_state_dict(tensors, strict=False)

    def adapter_config(self) -> dict[str, Any]:
        """The LoRA config as JSON values without a location or a version: the same for the same recipe."""
        config = self.model.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": "", "revision": None, "inference_mode": True}
        config.pop("peft_version", None)
        return {name: _plain(value) for name, value in sorted(config.items())}


def load_trainee(folder: Path, section: Finetune, *, device: str = "cpu") -> Trainee:
    """The base model of a folder, ready to train. The seed is set before LoRA draws its A matrices."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    attention.register()
    flat = attention.fits(AutoConfig.from_pretrained(folder, local_files_only=True))
    whole = section.lora is None or section.dtype == "float32"
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32 if whole else torch.bfloat16,
        attn_implementation=attention.NAME if flat else "sdpa",
    )  # fmt: skip
    torch.manual_seed(section.seed)
    if section.lora is not None:
        model = _with_lora(model, section.lora)
    return Trainee(model.to(device), section, device, flat)


def _with_lora(model: Any, lora: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = _linear_names(model) if lora.targets == "all-linear" else sorted(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def _linear_names(model: Any) -> list[str]:
    """Last names of the linear layers without the head: `q_proj`, not every layer's path as PEFT's all-linear writes it."""
    head = model.get_output_embeddings()
    return sorted(
        {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    )


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    return value.value if hasattr(value, "value") else value
