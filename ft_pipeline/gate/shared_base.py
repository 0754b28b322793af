"""Several LoRA adapters on one load of their base: for a base change, where every adapter of a base is measured in turn.

What is saved is loads and memory, not passes: an adapter changes keys and values, so the base's cannot serve it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DataError


@dataclass
class SharedBase:
    """A base model and the adapters on it, by name; loaded when the first arm is asked for."""

    base_folder: Path
    adapters: Mapping[str, Path]
    device: str = "cpu"
    _model: Any = field(default=None, repr=False)

    @contextmanager
    def arm(self, name: str | None) -> Iterator[Any]:
        """The model with this adapter alone; None: the base, bit for bit. Raises DataError when an adapter does not fit."""
        import torch

        model = self._loaded()
        with torch.inference_mode():
            if name is None:
                with model.disable_adapter():
                    yield model
            else:
                model.set_adapter(name, inference_mode=True)
                yield model

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = _on_base(self.base_folder, self.adapters, self.device)
        return self._model


def _on_base(base_folder: Path, adapters: Mapping[str, Path], device: str) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base_folder, dtype="auto", attn_implementation="sdpa").to(device)
    for name, folder in adapters.items():
        try:
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name=name, torch_device=device)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(
                f"adapter {name} does not fit this base model: {str(error).splitlines()[0]}",
                why="Module names and shapes of the two differ, so it could not be measured.",
                cure="train it again on this base, or measure the others without it",
            ) from error
    return model.eval()
