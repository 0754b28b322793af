"""The two arms of a comparison: the base model and the adapter on it, from one load where the adapter is a LoRA."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.errors import DataError
from ft_pipeline.store.fingerprint import sha256_bytes

LORA = "adapter_config.json"


@dataclass
class Arms:
    """Folders of a base model and of an adapter (or a full checkpoint), loaded when first asked for."""

    base_folder: Path
    adapter_folder: Path
    device: str = "cpu"
    _model: Any = field(default=None, repr=False)

    @property
    def is_lora(self) -> bool:
        """False for a full fine-tune: then the two models are loaded one after the other."""
        return (self.adapter_folder / LORA).is_file()

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, for both arms; the chat template is the base's, or the adapter's where the base has none."""
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self.base_folder)
        template = self.adapter_folder / "chat_template.jinja"
        if not tokenizer.chat_template and template.is_file():
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        return tokenizer

    @property
    def template_sha(self) -> str:
        """Digest of the chat template that both arms are prompted with."""
        return sha256_bytes(str(self.tokenizer.chat_template or "").encode())

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The base model, ready to answer. Equal to the base alone bit for bit: PEFT skips the LoRA branch."""
        if not self.is_lora:
            with self._alone(self.base_folder) as model:
                yield model
            return
        model = self._with_adapter()
        with torch.inference_mode(), model.disable_adapter():
            yield model

    @contextmanager
    def adapter(self) -> Iterator[Any]:
        """The adapter on its base, unmerged: as it is served, and without the rounding of a merge."""
        if not self.is_lora:
            with self._alone(self.adapter_folder) as model:
                yield model
            return
        with torch.inference_mode():
            yield self._with_adapter()

    def release(self) -> None:
        """Gives the memory back: once both arms have answered, a judge or a guard may need it."""
        self._model = None
        gc.collect()

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[Any]:
        model = _load(folder, self.device)
        with torch.inference_mode():
            yield model
        del model
        gc.collect()

    def _with_adapter(self) -> Any:
        if self._model is None:
            from peft import PeftModel

            try:
                self._model = PeftModel.from_pretrained(_load(self.base_folder, self.device), str(self.adapter_folder))
            except (RuntimeError, ValueError, KeyError) as error:
                raise DataError(
                    f"the adapter does not fit this base model: {str(error).splitlines()[0]}",
                    why="Module names and shapes of the two differ, so neither arm could be measured.",
                    cure="train it again on this base; `ft-pipeline trace MODEL` shows the base it was made for",
                ) from error
            self._model.eval()
        return self._model


def device_name(device: str) -> str:
    """What computes: `cpu`, or the GPU's name."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _load(folder: Path, device: str) -> Any:
    """The model in the precision its weights are stored in."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    return model.to(device).eval()
