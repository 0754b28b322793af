"""A chat template as a renderer: the text of a conversation and the character spans that the assistant says.

Three roads to the spans, in order: the template's own `{% generation %}` markers; the training template that TRL keeps for
exactly this template, when it renders the same text; prefixes of the rendered text. A conversation that none of them masks is
rejected with a reason. Never a difference of token prefixes: it failed on 23 of 41 templates (design note curate-encode).
"""

from __future__ import annotations

import datetime
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ft_pipeline.encode.messages import Turn, with_object_arguments
from ft_pipeline.encode.spans import Span

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TODAY = datetime.date(2024, 7, 26)
"""What `strftime_now` says: llama3_2, gptoss and muse_glimmer write the date into the text, and equal rows must give equal tokens.
It is the date that Llama 3.1 and 3.2 write themselves when they are given none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """A conversation as text, the spans that the assistant says, and how many of its turns the template rewrites afterwards."""

    text: str
    spans: tuple[Span, ...]
    turns: tuple[int, ...] | None
    """The turn of each span; None when the road does not tell."""
    rewritten: tuple[int, ...] = ()
    """Turns that read otherwise once more turns follow: context only, because production never generates that text."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A chat template with the tokenizer's constants. `stops`: texts of the special tokens, which end a turn."""

    source: str
    constants: Mapping[str, Any]
    stops: tuple[str, ...]

    @property
    def road(self) -> str:
        """`generation_markers`, `training_template` or `text_prefixes`."""
        if GENERATION.search(self.source):
            return "generation_markers"
        return "training_template" if self.training else "text_prefixes"

    @cached_property
    def training(self) -> str | None:
        """TRL's template with markers for exactly this template, None when it has none."""
        return trl_training_template(self.source)

    @cached_property
    def takes_blocks(self) -> bool:
        """True for templates of vision models, which may want content as a list of parts."""
        return "image" in self.source

    def text(self, turns: Sequence[Turn], tools: Any = None, *, prompt: bool = False) -> str:
        """The conversation as the model sees it; with `prompt` up to where it begins to answer. Raises TemplateError."""
        return self._render(self.source, turns, tools, add_generation_prompt=prompt)[0][0]

    def spoken(self, turns: Sequence[Turn], tools: Any = None) -> Spoken:
        """Text and spans; no span when the template masks nothing. Raises TemplateError, TypeError, ValueError of the template."""
        if self.road == "generation_markers":
            return self._marked(self.source, turns, tools)
        text = self.text(turns, tools)
        if self.training and (found := self._by_training(text, turns, tools)):
            return found
        return self._by_prefixes(text, turns, tools)

    def ends(self, text: str, spans: Sequence[Span]) -> bool:
        """True when every span ends in a special token, white space aside: the model learns to stop."""
        return bool(spans) and all(text[a:b].rstrip().endswith(self.stops) for a, b in spans)

    def says(self, text: str) -> bool:
        """True when the text is more than special tokens and white space."""
        return bool(self._stop.sub("", text).strip())

    @cached_property
    def _stop(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.stops)) or "(?!)")

    def _by_training(self, text: str, turns: Sequence[Turn], tools: Any) -> Spoken | None:
        """By TRL's template; None when it renders another text. It may add the stop token that the last turn lacks (glm4moe)."""
        for spelled in (turns, with_object_arguments(turns)):
            try:
                found = self._marked(self.training or "", spelled, tools)
            except (TypeError, ValueError):
                continue
            added = found.text[len(text) :]
            if found.text.startswith(text) and (not added or added in self.stops):
                return found
        return None

    def _marked(self, template: str, turns: Sequence[Turn], tools: Any) -> Spoken:
        texts, spans = self._render(template, turns, tools, return_assistant_tokens_mask=True)
        joined = _joined(spans[0])
        said = tuple(place for place, turn in enumerate(turns) if turn["role"] == "assistant")
        return Spoken(text=texts[0], spans=joined, turns=said if len(said) == len(joined) else None)

    def _by_prefixes(self, text: str, turns: Sequence[Turn], tools: Any) -> Spoken:
        """Where the text grows by each assistant turn. What qwen3 rewrites later is left to the context."""
        spans: dict[int, Span] = {}
        said = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        for place in said:
            before = self.text(turns[:place], tools, prompt=True)
            after = text if place == len(turns) - 1 else self.text(turns[: place + 1], tools)
            if text.startswith(after) and after.startswith(before):
                spans[place] = (len(before), self._end_of_turn(text, (len(before), len(after))))
        rewritten = tuple(place for place in said if place not in spans)
        return Spoken(text=text, spans=tuple(spans.values()), turns=tuple(spans), rewritten=rewritten)

    def _end_of_turn(self, text: str, span: Span) -> int:
        """Behind the stop token: without white space after it, and with it when it opens the next message (glm4moe)."""
        bare = text[slice(*span)].rstrip()
        if bare.endswith(self.stops):
            return span[0] + len(bare)
        return span[1] + max((len(stop) for stop in self.stops if text.startswith(stop, span[1])), default=0)

    def _render(self, template: str, turns: Sequence[Turn], tools: Any, **options: Any) -> Any:
        render = _renderer()
        return render([list(turns)], tools=tools or None, chat_template=template, **options, **self.constants)


def constants_of(tokenizer: Any) -> dict[str, Any]:
    """What a template may name: bos_token, eos_token, ... and a clock that stands still."""
    return {**tokenizer.special_tokens_map, "strftime_now": TODAY.strftime}


def trl_training_template(text: str) -> str | None:
    """The TRL template with generation markers for a template that TRL knows by exact text; read as files, TRL is not imported."""
    found = importlib.util.find_spec("trl")
    if not text or found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    for path in sorted(folder.glob("*.jinja")):
        training = path.with_name(f"{path.stem}_training.jinja")
        if training.is_file() and path.read_text(encoding="utf-8") == text:
            return training.read_text(encoding="utf-8")
    return None


def _renderer() -> Callable[..., Any]:
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template


def _joined(spans: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    """Spans that touch as one, empty ones left out: diffusion_gemma marks a turn's text and its stop token apart."""
    made: list[Span] = []
    for start, end in spans:
        if made and made[-1][1] == start:
            made[-1] = (made[-1][0], int(end))
        elif end > start:
            made.append((int(start), int(end)))
    return tuple(made)
