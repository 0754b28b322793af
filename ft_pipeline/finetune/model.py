"""The model that is trained: the base by local path, LoRA or every weight, and its trained tensors by name."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.finetune import attention
from ft_pipeline.finetune.adapters import with_lora
from ft_pipeline.finetune.flops import Work
from ft_pipeline.finetune.head import attach
from ft_pipeline.finetune.quantize import quantize_projections
from ft_pipeline.finetune.score import SCORED, add_score, published
from ft_pipeline.finetune.sharding import like, whole
from ft_pipeline.finetune.value_head import PREFIX, add_value_head, load_value_head, value_tensors
from ft_pipeline.finetune.zero import is_split, put
from ft_pipeline.recipe import Finetune


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
        """In bfloat16 the trained weights stay float32 (16 B each with Adam) and the products are computed in bfloat16."""
        if self.section.dtype == "bfloat16":
            return torch.autocast(self.device, torch.bfloat16)
        return contextlib.nullcontext()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensors on the CPU under the names in which PEFT or transformers load them; tied ones once, no value head."""
        live = self.live_tensors()
        return {name: t.to("cpu").contiguous() for name, t in live.items() if not name.startswith(PREFIX)}

    def live_tensors(self) -> dict[str, torch.Tensor]:
        """The same where they are, changing as the run goes on: who saves them copies them first. Of a sharded run, gathered."""
        return {name: whole(tensor).detach() for name, tensor in self._slices().items()}

    def _slices(self) -> dict[str, torch.Tensor]:
        """What this process holds of each."""
        if self.section.lora is not None:
            from peft import get_peft_model_state_dict

            found = get_peft_model_state_dict(self.model, state_dict=self.model.state_dict(keep_vars=True))
        else:
            tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
            drop = tied if getattr(self.model.config, "tie_word_embeddings", False) else set()
            found = {name: t for name, t in self.model.state_dict(keep_vars=True).items() if name not in drop}
        if self.section.method in SCORED:
            found = published(found)
        if self.section.method == "ppo":
            found |= value_tensors(self.model)
        return {name: found[name] for name in sorted(found)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts saved tensors back in place; of each, a process of a sharded run takes its slice."""
        there = self._slices()
        if any(is_split(tensor) for tensor in there.values()):
            put(there, tensors)
            return
        tensors = {name: like(there[name], tensor) for name, tensor in tensors.items()}
        if self.section.method == "ppo":
            load_value_head(
                self.model, {name: tensors.pop(name) for name in sorted(tensors) if name.startswith(PREFIX)}
            )
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
    """The base model of a folder, ready to train."""
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
    return trainee_of(model, section, device=device, flat=flat)


def trainee_of(model: Any, section: Finetune, *, device: str = "cpu", flat: bool = True) -> Trainee:
    """A loaded model, ready to train: on its device, in four bits where asked, with a head that gives losses and an adapter."""
    if section.lora is not None and section.lora.quantize == "nf4":
        quantize_projections(model, device=device, dtype=getattr(torch, section.dtype))
    model.to(device)
    attach(model)
    # before LoRA draws its A matrices
    torch.manual_seed(section.seed)
    task = "CAUSAL_LM"
    if section.method in SCORED:
        add_score(model, section.method)
        task = SCORED[section.method].task
    if section.lora is not None:
        model = with_lora(model, section.lora, task=task)
    if section.method == "ppo":
        add_value_head(model)
    return Trainee(model.to(device), section, device, flat)


def work_of(trainee: Trainee) -> Work:
    """What the model multiplies each token with, counted on its modules, for MFU."""
    config = trainee.model.config
    linear = [(n, m) for n, m in trainee.model.named_modules() if isinstance(m, torch.nn.Linear)]
    adapters = sum(m.in_features * m.out_features for n, m in linear if ".lora_" in n)
    head = trainee.model.get_output_embeddings()
    return Work(
        matmul=sum(m.in_features * m.out_features for _, m in linear) - adapters,
        head=head.in_features * head.out_features if head is not None else 0,
        layers=config.num_hidden_layers,
        width=config.num_attention_heads
        * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
        lora=adapters,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    return value.value if hasattr(value, "value") else value
