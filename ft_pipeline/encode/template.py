"""Rows as token ids with the spans of trained tokens: the base model's own chat template, tokenised once, cut by character offsets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_pipeline.encode.chat import Chat, Spoken, constants_of
from ft_pipeline.encode.messages import Turn, loses_reasoning, lost_part, spellings
from ft_pipeline.encode.spans import Span, token_spans, trained_spans
from ft_pipeline.errors import DataError

if TYPE_CHECKING:
    import numpy as np

UNSET_LIMIT = 10**9
"""Tokenizers without a limit of their own name 1e30."""
LONGEST_HEADER = 200
"""Where fewer characters are left to the context, it is looked at whether they are more than special tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Why a row cannot be trained on, or what of it is not."""

    reason: str
    evidence: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A row as one text, the character spans whose tokens are trained, and whether BOS goes before and EOS behind."""

    text: str
    spans: tuple[Span, ...]
    bos: bool = False
    eos: bool = False
    ends: bool = True
    """Claims that every trained turn ends in a stop token."""
    changed: Rejected | None = None
    """What of the row is left to the context though it could be trained: for the ledger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A row as token ids and the (start, end) spans of trained ones; `ends` claims that every trained turn trains its stop token."""

    ids: list[int]
    spans: tuple[Span, ...]
    ends: bool

    @property
    def mask(self) -> np.ndarray:
        """[tokens] bool: which are trained."""
        import numpy as np

        mask = np.zeros(len(self.ids), bool)
        for start, end in self.spans:
            mask[start:end] = True
        return mask


@dataclass(frozen=True)
class Template:
    """A fast tokenizer and the chat template that it carries."""

    tokenizer: Any
    loss: str
    """`assistant` or `all`."""
    limit_tokens: int | None = None
    """Positions that the base model knows; None when it does not say."""

    @property
    def road(self) -> str:
        """How assistant spans are found: `generation_markers`, `training_template` or `text_prefixes`."""
        return self.chat.road

    @property
    def text(self) -> str:
        """The chat template; empty when the model has none."""
        return self.chat.source

    @cached_property
    def chat(self) -> Chat:
        """The template of conversations without tools."""
        return self._chat_named("default")

    @cached_property
    def _chat_with_tools(self) -> Chat:
        found = self.tokenizer.chat_template
        return self._chat_named("tool_use") if isinstance(found, dict) and "tool_use" in found else self.chat

    def chat_of(self, tools: Any) -> Chat:
        """The template that renders a conversation with these tools."""
        return self._chat_with_tools if tools else self.chat

    def render(self, shape: str, content: Mapping[str, Any]) -> Rendered | Rejected:
        """The row of a curated dataset as text with trained spans."""
        if shape == "chat":
            return self._conversation(content)
        if shape == "text":
            return self._written(content["text"], 0)
        if shape == "completion" and isinstance(content["prompt"], str) and isinstance(content["completion"], str):
            start = 0 if self.loss == "all" else len(content["prompt"])
            return self._written(content["prompt"] + content["completion"], start)
        return Rejected(reason="shape_not_trainable", evidence={"shape": shape, "cure": "method dpo reads preferences"})

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded]:
        """Ids and spans of rendered rows, each tokenised once."""
        return [
            self._masked(row, found) for row, found in zip(rows, self.tokenised([r.text for r in rows]), strict=True)
        ]

    def tokenised(self, texts: Sequence[str]) -> list[Any]:
        """`tokenizers.Encoding` of each text, without special tokens around it: the ids of the transformers wrapper, in 3/4 of its time."""
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def said(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, *, first: int = 0
    ) -> tuple[list[Turn], Spoken] | Rejected:
        """The conversation in the first spelling that the template renders whole, with the assistant's spans; or why there is none.

        first: the turn from which on it must be possible to train; earlier ones are context.
        """
        if not self.text:
            return Rejected(reason="no_chat_template", evidence={"cure": "give the base model a chat_template.jinja"})
        chat = self.chat_of(tools)
        whole: tuple[list[Turn], Spoken] | None = None
        refused: Rejected | None = None
        for turns in spellings(messages, blocks=chat.takes_blocks):
            found = self._spelled(chat, (turns, tools), first)
            if isinstance(found, Rejected):
                refused = refused or found
            elif not loses_reasoning(turns, found.text):
                return turns, found
            else:
                # reasoning that no spelling brings into the text is no reason to lose the row
                whole = whole or (turns, found)
        return whole or refused or Rejected(reason="no_trained_token", evidence={})

    def _spelled(self, chat: Chat, said: tuple[list[Turn], Any], first: int) -> Spoken | Rejected:
        from jinja2.exceptions import TemplateError

        turns, tools = said
        try:
            found = chat.spoken(turns, tools)
        except (TemplateError, TypeError, ValueError) as error:
            return Rejected(reason="template_error", evidence={"error": str(error)})
        if lost := [p for p in found.rewritten if p >= first and (not found.spans or turns[p].get("tool_calls"))]:
            return Rejected(reason="assistant_spans_not_found", evidence={"road": self.road, "turns": lost})
        heard = found.text if self.loss == "all" else "".join(found.text[a:b] for a, b in found.spans)
        if gone := lost_part(turns, (found.text, heard), first):
            return Rejected(reason=gone[0], evidence=gone[1])
        return found

    def _conversation(self, content: Mapping[str, Any]) -> Rendered | Rejected:
        messages, tools = content["messages"], content.get("tools")
        found = self.said(messages, tools)
        if isinstance(found, Rejected):
            return found
        turns, spoken = found
        if self.loss == "all":
            ends = spoken.text.rstrip().endswith(self.chat.stops)
            return Rendered(text=spoken.text, spans=((0, len(spoken.text)),), ends=ends)
        spans = _weighted(spoken, messages)
        if isinstance(spans, Rejected):
            return spans
        if fault := self._share_fault(spoken.text, spans):
            return fault
        ends = self.chat.ends(spoken.text, spans)
        return Rendered(text=spoken.text, spans=spans, ends=ends, changed=_changed(turns, spoken))

    def _share_fault(self, text: str, spans: Sequence[Span]) -> Rejected | None:
        """0 < trained share < 1: something is trained, and something besides special tokens is not."""
        if not spans:
            return Rejected(reason="no_trained_token", evidence={"road": self.road})
        borders = [0, *(place for span in spans for place in span), len(text)]
        left = sum(b - a for a, b in zip(borders[::2], borders[1::2], strict=True))
        if left > LONGEST_HEADER or self.chat.says(
            "".join(text[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True))
        ):
            return None
        return Rejected(reason="every_token_trained", evidence={"road": self.road})

    def _written(self, text: str, start: int) -> Rendered:
        return Rendered(
            text=text, spans=((start, len(text)),), bos=True, eos=not text.endswith(self.tokenizer.eos_token)
        )

    def _chat_named(self, name: str) -> Chat:
        found = self.tokenizer.chat_template
        source = found.get(name, "") if isinstance(found, dict) else found or ""
        stops = tuple(t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special)
        return Chat(source=source, constants=constants_of(self.tokenizer), stops=stops)

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer below the transformers wrapper, set as the wrapper sets it."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return backend

    @cached_property
    def bos(self) -> list[int]:
        """The BOS that the tokenizer itself puts before a text, if it does."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else []

    def _masked(self, row: Rendered, found: Any) -> Encoded:
        ids, spans = found.ids, token_spans(found, row.spans)
        if row.bos and self.bos:
            ids, spans = self.bos + ids, [(a + len(self.bos), b + len(self.bos)) for a, b in spans]
        if row.eos:
            ids, spans = [*ids, self.tokenizer.eos_token_id], [*spans, (len(ids), len(ids) + 1)]
        return Encoded(ids=ids, spans=trained_spans(spans), ends=row.ends)


def load_template(folder: Path, *, loss: str) -> Template:
    """The tokenizer and template of a base model's folder. Raises DataError when it is no fast tokenizer or has no EOS."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise DataError(
            "the base model has no fast tokenizer",
            why="The loss mask is cut by character offsets, which only tokenizer.json gives.",
            cure="convert it once: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the base model's tokenizer names no end-of-text token",
            why="A row that does not end teaches the model never to stop.",
            cure="set eos_token in tokenizer_config.json",
        )
    return Template(tokenizer, loss, _limit(folder, tokenizer))


def refuse_long_windows(template: Template, window_tokens: int) -> None:
    """Raises DataError when a window is longer than the base model's own limit."""
    if template.limit_tokens is not None and window_tokens > template.limit_tokens:
        raise DataError(
            f"encode.window_tokens is {window_tokens}, the base model knows {template.limit_tokens} positions",
            why="Behind its limit a model has never been trained, and a table of positions simply ends.",
            cure=f"set encode.window_tokens to {template.limit_tokens} or less",
        )


def _limit(folder: Path, tokenizer: Any) -> int | None:
    """max_position_embeddings, stretched as rope_scaling says; else the tokenizer's own limit."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config = config.get("text_config") or config
    found = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(found, int):
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        stretched = (scaling.get("original_max_position_embeddings") or 0) * (scaling.get("factor") or 1)
        return max(found, int(stretched))
    return tokenizer.model_max_length if tokenizer.model_max_length < UNSET_LIMIT else None


def _weighted(spoken: Spoken, messages: Sequence[Mapping[str, Any]]) -> tuple[Span, ...] | Rejected:
    """The spans of assistant turns whose weight is not 0."""
    weights = {place: m.get("weight", 1) for place, m in enumerate(messages) if m["role"] == "assistant"}
    if all(weights.values()):
        return spoken.spans
    if spoken.turns is None:
        return Rejected(reason="weight_not_mapped", evidence={"spans": len(spoken.spans)})
    return tuple(span for span, place in zip(spoken.spans, spoken.turns, strict=True) if weights[place])


def _changed(turns: Sequence[Turn], spoken: Spoken) -> Rejected | None:
    if spoken.rewritten:
        return Rejected(reason="rewritten_turns_not_trained", evidence={"turns": list(spoken.rewritten)})
    lost = loses_reasoning(turns, spoken.text)
    return Rejected(reason="reasoning_not_rendered", evidence={"turns": lost}) if lost else None
