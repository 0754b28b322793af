"""One base model and many LoRA adapters on this machine: rows of different adapters and of the base share one batch (PEFT `adapter_names`)."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

from ft_pipeline.errors import FtError, IntegrityError, UserError
from ft_pipeline.serve.batching import Batcher, Row
from ft_pipeline.serve.engine import BadRequest, Generation, Piece
from ft_pipeline.serve.text import TextStream
from ft_pipeline.store.artifacts import Artifact

DEFAULT_MAX_TOKENS = 512
BASE_ROW = "__base__"
"""PEFT's name for rows that no adapter touches."""


class PeftServer:
    """Answers for one base model and the adapters that were added. All torch work holds one lock."""

    def __init__(self, base: Artifact, *, threads: int = 2, max_adapters: int = 8, max_rows: int = 16) -> None:
        """Loads a verified `base_model` artifact, or a fully fine-tuned model that has the same files."""
        torch.set_num_threads(threads)
        disable_progress_bar()
        self.base = base
        self._model: Any = AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto").eval()
        self._tokenizers: dict[str | None, Any] = {None: AutoTokenizer.from_pretrained(base.folder)}
        self._context_tokens: int = self._model.config.max_position_embeddings
        self._adapters: dict[str, Artifact] = {}
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._max_adapters = max(max_adapters, max_rows)
        self._lock = threading.Lock()
        self.batcher = Batcher(self._decode, max_rows=max_rows)

    def add(self, adapter: Artifact, *, recertified: bool = False) -> None:
        """Loads a verified adapter; its key is the artifact's digest. `recertified`: it may stand on this base (serve/deploy.py).

        Raises IntegrityError when it was trained on another base, UserError when it changes nothing.
        """
        key = adapter.ref.digest
        if key in self._adapters:
            return
        if not recertified:
            require_base(adapter, self.base.ref.digest)
        with self._lock:
            self._adapters[key] = adapter
            self._tokenizers[key] = AutoTokenizer.from_pretrained(adapter.folder)
            try:
                self._load(key)
                self._require_effect(key)
            except (RuntimeError, ValueError, KeyError, FtError) as error:
                self._unload(key)
                del self._adapters[key], self._tokenizers[key]
                if isinstance(error, FtError):
                    raise
                raise IntegrityError(f"the adapter {key[:12]} does not load on its base: {error}") from error

    def release(self, key: str) -> None:
        """Frees an adapter's memory. Rows that still name it load it again."""
        with self._lock:
            self._unload(key)

    @property
    def loaded(self) -> list[str]:
        """Keys of the adapters in memory, least recently used first."""
        return list(self._loaded)

    def answer(self, request: Generation, adapter: str | None) -> Iterator[Piece]:
        """The pieces of an answer by an adapter's key, None for the base. Raises BadRequest when it cannot fit."""
        tokenizer = self._tokenizers[adapter]
        prompt = prompt_tokens(tokenizer, request)
        row = Row(
            request=request,
            adapter=adapter,
            prompt_tokens=prompt,
            max_tokens=self._room(len(prompt), request.max_tokens),
            end_tokens=self._end_tokens(tokenizer),
            stream=TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), request.stop),
        )
        self.batcher.submit(row)
        return row.read()

    def close(self) -> None:
        """Ends the decoding thread."""
        self.batcher.close()

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

    def _end_tokens(self, tokenizer: Any) -> frozenset[int]:
        named = self._model.generation_config.eos_token_id
        ids = named if isinstance(named, list) else [named]
        return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)

    def _decode(self, rows: list[Row]) -> None:
        """Decodes rows to their ends under the lock."""
        if not rows:
            return
        with self._lock:
            for key in dict.fromkeys(row.adapter for row in rows if row.adapter):
                self._load(key)
            self._generate(rows)

    @torch.inference_mode()
    def _generate(self, rows: list[Row]) -> None:
        """One forward pass a token for all rows, left-padded."""
        ids, mask = _left_padded([row.prompt_tokens for row in rows])
        cache, samplers = DynamicCache(), [Sampler(row.request) for row in rows]
        while True:
            logits = self._logits(ids, mask, cache=cache, adapters=[row.adapter for row in rows])
            tokens = [sampler.choose(row) for sampler, row in zip(samplers, logits, strict=True)]
            for row, token in zip(rows, tokens, strict=True):
                row.push(token)
            if all(row.finish for row in rows):
                return
            ids = torch.tensor(tokens)[:, None]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)

    def _logits(
        self, ids: torch.Tensor, mask: torch.Tensor, *, cache: DynamicCache, adapters: Sequence[str | None]
    ) -> torch.Tensor:
        """Logits of the last position, float32 [rows, vocabulary]. `ids` are the positions that the cache lacks."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        names = {"adapter_names": [peft_name(a) if a else BASE_ROW for a in adapters]} if self._loaded else {}
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1, **names,
        )  # fmt: skip
        return output.logits[:, -1].float()

    def _load(self, key: str) -> None:
        """Makes an adapter the most recently used one in memory and evicts the least recently used beyond the limit."""
        if key not in self._loaded:
            folder = str(self._adapters[key].folder)
            if self._loaded:
                self._model.load_adapter(folder, adapter_name=peft_name(key))
            else:
                self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=peft_name(key))
            self._model.eval()
            self._loaded[key] = None
        self._loaded.move_to_end(key)
        while len(self._loaded) > self._max_adapters:
            self._unload(next(iter(self._loaded)))

    def _unload(self, key: str) -> None:
        if key not in self._loaded:
            return
        if len(self._loaded) == 1:
            self._model = self._model.unload()
        else:
            other = next(k for k in self._loaded if k != key)
            self._model.set_adapter(peft_name(other), inference_mode=True)
            self._model.delete_adapter(peft_name(key))
        del self._loaded[key]

    @torch.inference_mode()
    def _require_effect(self, key: str) -> None:
        """Guards against files that load without an error and change nothing, for example renamed weights."""
        probe = torch.arange(min(8, self._model.config.vocab_size))[None].repeat(2, 1)
        base, adapted = self._logits(probe, torch.ones_like(probe), cache=DynamicCache(), adapters=[None, key])
        if torch.equal(base, adapted) or not torch.isfinite(adapted).all():
            raise UserError(
                f"the adapter {key[:12]} {'gives logits that are not numbers' if not torch.isfinite(adapted).all() else 'changes no logit of its base'}",
                why="It would answer as the base does, or not at all, under the name of a fine-tune.",
                cure="train it again: look at the losses of its checkpoints",
            )


class Sampler:
    """Chooses the next token of one row."""

    def __init__(self, request: Generation) -> None:
        self._temperature, self._top_p = request.temperature, request.top_p
        self._random = torch.Generator()
        if request.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(request.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """A token id. Temperature 0: the likeliest. Else from the smallest set of tokens that holds `top_p` of the probability."""
        if self._temperature == 0:
            return int(logits.argmax())
        probabilities, order = torch.softmax(logits / self._temperature, dim=-1).sort(descending=True)
        outside = probabilities.cumsum(0) - probabilities >= self._top_p
        return int(order[torch.multinomial(probabilities.masked_fill(outside, 0), 1, generator=self._random)])


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


def prompt_tokens(tokenizer: Any, request: Generation) -> list[int]:
    """The tokens of the prompt: chat messages through the model's own template. Raises BadRequest."""
    if isinstance(request.prompt, str):
        tokens = tokenizer(request.prompt)["input_ids"]
        if not tokens:
            raise BadRequest("the prompt is empty", param="prompt")
        return tokens
    _refuse_control_tokens(tokenizer, request.prompt)
    try:
        text = tokenizer.apply_chat_template(list(request.prompt), add_generation_prompt=True, tokenize=False)
    except Exception as error:
        raise BadRequest(f"the chat template refused the messages: {error}", param="messages") from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _refuse_control_tokens(tokenizer: Any, messages: Sequence[Any]) -> None:
    """A user who writes the template's own markers would speak as another role."""
    for message in messages:
        for token in tokenizer.all_special_tokens:
            if token in str(message.get("content") or ""):
                raise BadRequest(
                    f"a message holds the control token {token!r}",
                    param="messages",
                    why="It would end the turn and let the text speak as another role.",
                    cure="remove it from the text",
                )


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [rows, longest]; padding is masked, so its id does not matter."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
