"""One base model and many LoRA adapters on this machine: rows of different adapters and of the base share one running batch (PEFT `adapter_names`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from ft_pipeline.errors import UserError
from ft_pipeline.serve.batching import Batcher, Row, shared_fate
from ft_pipeline.serve.decoding import Lane
from ft_pipeline.serve.engine import BadRequest, Generation, Piece
from ft_pipeline.serve.limits import Limits
from ft_pipeline.serve.prompts import prompt_tokens
from ft_pipeline.serve.shelf import Shelf, require_base
from ft_pipeline.serve.text import TextStream
from ft_pipeline.store.artifacts import Artifact

DEFAULT_MAX_TOKENS = 512


class PeftServer:
    """Answers for one base model and the adapters that were added. The decoding thread of `batcher` does all torch work."""

    def __init__(self, base: Artifact, *, threads: int = 2, limits: Limits | None = None) -> None:
        """Loads a verified `base_model` artifact, or a fully fine-tuned model that has the same files."""
        torch.set_num_threads(threads)
        disable_progress_bar()
        limits = limits or Limits()
        self.base = base
        model: Any = AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto").eval()
        require_attention_only(model.config)
        self._tokenizers: dict[str | None, Any] = {None: AutoTokenizer.from_pretrained(base.folder)}
        self._context_tokens: int = model.config.get_text_config().max_position_embeddings
        named = model.generation_config.eos_token_id
        self._ends = {int(i) for i in (named if isinstance(named, list) else [named]) if i is not None}
        self.shelf = Shelf(model, max_adapters=limits.max_adapters)
        self._lanes = Lanes(self.shelf)
        self.batcher = Batcher(self._lanes, limits)

    def add(self, adapter: Artifact, *, recertified: bool = False) -> None:
        """Loads a verified adapter; its key is the artifact's digest. `recertified`: it may stand on this base (serve/deploy.py).

        Raises IntegrityError when it was trained on another base, UserError when it changes nothing.
        """
        key = adapter.ref.digest
        if not recertified:
            require_base(adapter, self.base.ref.digest)
        if key not in self._tokenizers:
            self._tokenizers[key] = AutoTokenizer.from_pretrained(adapter.folder)
        self.batcher.between_steps(lambda: self.shelf.add(adapter, used=self._in_use()))

    def pin(self, keys: frozenset[str]) -> None:
        """These adapters stay in memory; the others stay until their place is needed, so that a rollback is quick."""
        self.shelf.pin(keys)

    @property
    def loaded(self) -> list[str]:
        """Keys of the adapters in memory, least recently used first."""
        return self.shelf.loaded

    def answer(self, request: Generation, adapter: str | None) -> Iterator[Piece]:
        """The pieces of an answer by an adapter's key, None for the base. Raises BadRequest, Busy, Closed at the call."""
        tokenizer = self._tokenizers[adapter]
        prompt = prompt_tokens(tokenizer, request)
        row = Row(
            request=request,
            adapter=adapter,
            prompt_tokens=prompt,
            max_tokens=self._room(len(prompt), request.max_tokens),
            end_tokens=frozenset(self._ends | {tokenizer.eos_token_id} - {None}),
            stream=TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), request.stop),
        )
        self.batcher.submit(row)
        return row.read()

    def close(self, *, wait: bool = True) -> None:
        """Takes no more requests; those that run are answered."""
        self.batcher.close(wait=wait)

    def _in_use(self) -> set[str]:
        return {row.adapter for row in self._lanes.running if row.adapter}

    def _room(self, prompt: int, wanted: int | None) -> int:
        """How many tokens may be generated."""
        left = self._context_tokens - prompt
        if left < (wanted or 1):
            raise BadRequest(
                f"the prompt has {prompt} tokens and max_tokens is {wanted or 1}; the context holds {self._context_tokens}",
                param="messages",
                code="context_length_exceeded",
                cure="shorten the messages or lower max_tokens",
            )
        return wanted or min(left, DEFAULT_MAX_TOKENS)


class Lanes:
    """The Decoder of a shelf: one lane for the base and all LoRA adapters together, one more for each DoRA adapter in use."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._lanes: dict[str | None, Lane] = {}

    @property
    def running(self) -> list[Row]:
        """The rows in all lanes."""
        return [row for lane in self._lanes.values() for row in lane.rows]

    def join(self, rows: Sequence[Row]) -> None:
        """Loads what they need, then reads their prompts, lane by lane. An adapter that does not load fails its own rows only."""
        wanted: dict[str | None, list[Row]] = {}
        used = {row.adapter for row in [*self.running, *rows] if row.adapter}
        for row in rows:
            with shared_fate([row]):
                if row.adapter:
                    self._shelf.need(row.adapter, used=used)
                wanted.setdefault(row.adapter if self._shelf.stands_alone(row.adapter) else None, []).append(row)
        for key, together in wanted.items():
            self._lanes.setdefault(key, Lane(self._shelf.logits)).join(together)

    def step(self) -> None:
        """One more token in every lane; an empty lane is forgotten."""
        for lane in self._lanes.values():
            lane.step()
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.rows}


def require_attention_only(config: Any) -> None:
    """Raises UserError for a model with recurrent layers: their state cannot be merged into a running batch."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if recurrent := sorted(k for k in kinds if "attention" not in k or "linear" in k):
        raise UserError(
            f"the model {config.model_type} has layers of the kind {', '.join(recurrent)}",
            why="The embedded server merges key-value caches of running answers; a recurrent state has no tokens to merge.",
            cure="serve it with vLLM",
        )
