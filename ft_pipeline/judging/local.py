"""A judge in this process: a model of the store through transformers, greedy, one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.errors import DataError
from ft_pipeline.judging.forms import Form
from ft_pipeline.judging.judge import NoReply, Reply


class LocalModel:
    """The model in a Hugging Face folder, in the precision its weights are stored in; loaded when first asked."""

    def __init__(self, folder: Path, *, device: str = "cpu", max_new_tokens: int = 512) -> None:
        self._folder, self._device, self._max_new_tokens = folder, device, max_new_tokens
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """As Speaker. Raises NoReply where the question does not fit into the model."""
        with self._lock, torch.inference_mode():
            model, tokenizer = self._models()
            text = tokenizer.apply_chat_template(
                list(form.messages(fields)), add_generation_prompt=True, tokenize=False
            )
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=self._device)
            length = ids.shape[1]
            limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
            if length + self._max_new_tokens > limit:
                raise NoReply(
                    "refused", f"{length} tokens and {self._max_new_tokens} new ones exceed the model's {limit}"
                )
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self._max_new_tokens, do_sample=False,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )  # fmt: skip
        new = made[0, length:].tolist()
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        return Reply(text=text, usage={"prompt_tokens": length, "completion_tokens": len(new)})

    def _models(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load(self._folder, self._device)
        return self._loaded


def load(folder: Path, device: str) -> tuple[Any, Any]:
    """Model and tokenizer of a judge or guard. Raises DataError without a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise DataError(
            "the judge's model has no chat template",
            why="Without it nobody knows how a question reaches the model.",
            cure="take an instruction-tuned model as a judge, or a guard with its template",
        )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    return model.to(device).eval(), tokenizer
