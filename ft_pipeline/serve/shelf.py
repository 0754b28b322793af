"""The adapters of one base in memory: loaded on demand, production ones pinned, the others leave least recently used first."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import DynamicCache

from ft_pipeline.errors import FtError, IntegrityError, UserError
from ft_pipeline.store.artifacts import Artifact

BASE_ROW = "__base__"
"""PEFT's name for rows that no adapter touches."""


class Shelf:
    """A model and its adapters. Not thread-safe: the decoding thread owns it."""

    def __init__(self, model: Any, *, max_adapters: int) -> None:
        self._model, self._max_adapters = model, max_adapters
        self._known: dict[str, Artifact] = {}
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._pinned: frozenset[str] = frozenset()
        self._names: list[str] | None = None
        self._hooks: list[Any] = []
        self.loads, self.evictions = 0, 0

    @property
    def loaded(self) -> list[str]:
        """Keys of the adapters in memory, least recently used first."""
        return list(self._loaded)

    def add(self, adapter: Artifact, *, used: Collection[str] = ()) -> None:
        """Loads an adapter under its digest. Raises IntegrityError when it does not fit its base, UserError when it changes nothing."""
        key = adapter.ref.digest
        new = key not in self._known
        self._known[key] = adapter
        try:
            self.need(key, used=used)
            if new:
                self._require_effect(key)
        except (RuntimeError, ValueError, KeyError, FtError) as error:
            self.unload(key)
            del self._known[key]
            if isinstance(error, FtError):
                raise
            raise IntegrityError(f"the adapter {key[:12]} does not load on its base: {error}") from error

    def pin(self, keys: frozenset[str]) -> None:
        """These adapters stay in memory from now on; the others stay until their place is needed."""
        self._pinned = keys

    def need(self, key: str, *, used: Collection[str] = ()) -> None:
        """Makes an adapter the most recently used one in memory. Those in `used` decode now and are not evicted."""
        if key not in self._loaded:
            folder = str(self._known[key].folder)
            if self._loaded:
                self._model.load_adapter(folder, adapter_name=peft_name(key))
            else:
                self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=peft_name(key))
            self._model.eval()
            self._hook()
            self._loaded[key] = None
            self.loads += 1
        self._loaded.move_to_end(key)
        idle = [k for k in self._loaded if k not in {key, *used, *self._pinned}]
        for other in idle[: max(0, len(self._loaded) - self._max_adapters)]:
            self.unload(other)
            self.evictions += 1

    def unload(self, key: str) -> None:
        """Frees an adapter's memory; it is loaded again when it is needed."""
        if key not in self._loaded:
            return
        if len(self._loaded) == 1:
            self._model = self._model.unload()
        else:
            other = next(k for k in self._loaded if k != key)
            self._model.set_adapter(peft_name(other), inference_mode=True)
            self._model.delete_adapter(peft_name(key))
        del self._loaded[key]

    def stands_alone(self, key: str | None) -> bool:
        """True for an adapter whose rows cannot share a pass with others: PEFT mixes no DoRA adapters."""
        return key in self._loaded and self._model.peft_config[peft_name(key)].use_dora

    def logits(
        self, ids: torch.Tensor, mask: torch.Tensor, *, cache: DynamicCache, adapters: Sequence[str | None]
    ) -> torch.Tensor:
        """Logits of the last position, float32 [rows, vocabulary]. `ids` are the positions that the cache lacks."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        self._choose(adapters)
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return output.logits[:, -1].float()

    def _choose(self, adapters: Sequence[str | None]) -> None:
        """Names the adapter of each row for the layers; an adapter that stands alone is activated instead."""
        self._names = None
        if self.stands_alone(adapters[0]):
            self._model.set_adapter(peft_name(str(adapters[0])), inference_mode=True)
        elif self._loaded:
            self._names = [peft_name(key) if key else BASE_ROW for key in adapters]

    def _hook(self) -> None:
        """Hands the names to every adapted layer, once for all passes.

        `adapter_names` as an argument of the model does the same, but walks all modules of all adapters twice a token.
        """
        for hook in self._hooks:
            hook.remove()
        layers: Any = [m for m in self._model.modules() if isinstance(m, LoraLayer | AuxiliaryTrainingWrapper)]
        self._hooks = [layer.register_forward_pre_hook(self._named, with_kwargs=True) for layer in layers]

    def _named(
        self, _layer: Any, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (args, named if self._names is None else {**named, "adapter_names": self._names})

    @torch.inference_mode()
    def _require_effect(self, key: str) -> None:
        """Guards against files that load without an error and change nothing, for example renamed weights."""
        probe = torch.arange(min(8, self._model.config.vocab_size))[None]
        base, adapted = (
            self.logits(probe, torch.ones_like(probe), cache=DynamicCache(), adapters=[row]) for row in (None, key)
        )
        finite = bool(torch.isfinite(adapted).all())
        if torch.equal(base, adapted) or not finite:
            raise UserError(
                f"the adapter {key[:12]} {'changes no logit of its base' if finite else 'gives logits that are not numbers'}",
                why="It would answer as the base does, or not at all, under the name of a fine-tune.",
                cure="train it again: look at the losses of its checkpoints",
            )


def peft_name(key: str) -> str:
    """The name of an adapter inside PEFT: module names hold no dot and no slash."""
    return f"a{key}"


def require_base(adapter: Artifact, base_digest: str) -> None:
    """Raises IntegrityError unless the adapter's manifest and its own config both name the base."""
    trained_on = adapter.manifest.parents["base"].digest
    revision = json.loads(adapter.file("adapter_config.json").read_bytes()).get("revision")
    if {trained_on, revision} != {base_digest}:
        raise IntegrityError(
            f"the adapter {adapter.ref.digest[:12]} belongs to base {trained_on[:12]} (its config says {str(revision)[:12]}), "
            f"this server holds {base_digest[:12]}",
            why="An adapter on another base gives fluent, wrong answers.",
            cure="serve it on its own base, or train it again on this one",
        )
