"""Rows that are no windows: preference pairs (DPO), labelled completions (KTO), prompts with an answer (RLVR), judged steps; as token ids.

A prompt and its completion are tokenised once, as one text, and cut where the completion begins: the ids are those of TRL's
DPOTrainer (tested), but a prompt token that a completion's first letter merges with goes to the completion.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.encode.example_rows import SHAPES, Example, Labelled, Pair, Prompt, Stepwise, longest_of
from ft_pipeline.encode.spans import Span, token_spans, trained_spans
from ft_pipeline.encode.template import Rejected, Template
from ft_pipeline.recipe import STEP_SEPARATOR


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """The texts of a row: one a completion (or the prompt alone), what is trained of each, and where the completions begin."""

    texts: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...] = ()
    border: int = 0
    written: bool = False
    """Plain text: BOS goes before, EOS behind."""


def encode_examples(
    template: Template, rows: Sequence[tuple[str, str, Mapping[str, Any]]], *, limit_tokens: int,
    separator: str = STEP_SEPARATOR,
) -> list[Example | Rejected]:  # fmt: skip
    """What becomes of rows (row_id, shape, content) of a curated dataset, in order. Longer than the limit is rejected.

    A pair is never cut: what is behind the cut may be what was preferred. separator: goes behind each judged step.
    """
    drawn = [_drawn(template, shape, content, separator=separator) for _, shape, content in rows]
    found = iter(template.tokenised([text for d in drawn if isinstance(d, _Drawn) for text in d.texts]))
    made: list[Example | Rejected] = []
    for row, texts in zip(rows, drawn, strict=True):
        if isinstance(texts, Rejected):
            made.append(texts)
            continue
        example = _example(template, row, (texts, [next(found) for _ in texts.texts]))
        made.append(example if isinstance(example, Rejected) else _within(example, limit_tokens))
    return made


def _drawn(template: Template, shape: str, content: Mapping[str, Any], *, separator: str) -> _Drawn | Rejected:
    if shape not in SHAPES:
        return Rejected(reason="shape_not_trainable", evidence={"shape": shape, "cure": "method sft or cpt reads it"})
    if shape == "stepwise":
        return _in_steps(template, content, separator)
    names = {"preference": ("chosen", "rejected"), "kto": ("completion",), "rlvr": ()}[shape]
    prompt, completions = content["prompt"], [content[name] for name in names]
    if isinstance(prompt, str):
        texts = tuple(prompt + c for c in completions) or (prompt,)
        spans = tuple(((len(prompt), len(text)),) for text in texts)
        return _Drawn(texts=texts, spans=spans, border=len(prompt), written=True)
    if not completions:
        return _prompt(template, prompt, content.get("tools"))
    parts = [_completed(template, (prompt, c), content.get("tools")) for c in completions]
    if refused := next((p for p in parts if isinstance(p, Rejected)), None):
        return refused
    whole = [p for p in parts if isinstance(p, _Drawn)]
    return _Drawn(
        texts=tuple(p.texts[0] for p in whole),
        spans=tuple(p.spans[0] for p in whole),
        border=min(p.border for p in whole),
    )


def _prompt(template: Template, prompt: Sequence[Mapping[str, Any]], tools: Any) -> _Drawn | Rejected:
    found = template.said(prompt, tools, first=len(prompt))
    if isinstance(found, Rejected):
        return found
    text = _head(template, found[0], tools)
    return text if isinstance(text, Rejected) else _Drawn(texts=(text,), border=len(text))


def _in_steps(template: Template, content: Mapping[str, Any], separator: str) -> _Drawn | Rejected:
    """The prompt, the separator and each step without one: texts that are tokenised apart, as TRL's PRMTrainer did."""
    head = _prompt(template, content["prompt"], content.get("tools"))
    if isinstance(head, Rejected):
        return head
    steps = tuple(step.removesuffix(separator) for step in content["steps"])
    if (place := next((n for n, step in enumerate(steps) if separator in step), None)) is not None:
        cure = "another encode.step_separator: a reward cuts answers at it, and would find more steps here"
        return Rejected(reason="separator_in_step", evidence={"step": place, "separator": separator, "cure": cure})
    return _Drawn(texts=(*head.texts, separator, *steps), border=head.border)


def _completed(template: Template, parts: tuple[Any, Any], tools: Any) -> _Drawn | Rejected:
    """A prompt and one completion, both as messages."""
    prompt, completion = parts
    found = template.said([*prompt, *completion], tools, first=len(prompt))
    if isinstance(found, Rejected):
        return found
    turns, spoken = found
    head = _head(template, turns[: len(prompt)], tools)
    if isinstance(head, Rejected):
        return head
    border = _common(head, spoken.text)
    # a generation prompt that the whole text lacks (deepseek's <think>) may differ, the turns of the prompt may not
    if border < len(head) and not spoken.text.startswith(
        template.chat_of(tools).text(turns[: len(prompt)], tools).rstrip()
    ):
        return Rejected(reason="prompt_rewritten", evidence={"characters": border})
    spans = tuple((max(a, border), b) for a, b in spoken.spans if b > border)
    if not spans or any(place >= len(prompt) for place in spoken.rewritten):
        return Rejected(reason="assistant_spans_not_found", evidence={"road": template.road})
    if not template.chat.ends(spoken.text, spans):
        return Rejected(reason="end_of_turn_not_trained", evidence={"road": template.road})
    return _Drawn(texts=(spoken.text,), spans=(spans,), border=border)


def _head(template: Template, turns: Sequence[dict[str, Any]], tools: Any) -> str | Rejected:
    """The prompt up to where the model begins to answer."""
    from jinja2.exceptions import TemplateError

    try:
        return template.chat_of(tools).text(turns, tools, prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        return Rejected(reason="template_error", evidence={"error": str(error)})


def _example(
    template: Template, row: tuple[str, str, Mapping[str, Any]], texts: tuple[_Drawn, list[Any]]
) -> Example | Rejected:
    row_id, shape, content = row
    drawn, found = texts
    bos, eos = (template.bos, [template.tokenizer.eos_token_id]) if drawn.written else ([], [])
    if shape == "rlvr":
        return Prompt(row_id=row_id, prompt_ids=[*bos, *found[0].ids], answer=content["answer"])
    if shape == "stepwise":
        return _stepwise(row_id, found, content["labels"])
    cut = _cut(found, drawn.border)
    if not (bos or cut):
        return Rejected(reason="empty_prompt", evidence={})
    prompt = [*bos, *found[0].ids[:cut]]
    sides = [_side(f, (cut, spans), eos) for f, spans in zip(found, drawn.spans, strict=True)]
    if shape == "kto":
        ((ids, spans),) = sides
        return Labelled(
            row_id=row_id, prompt_ids=prompt, completion_ids=ids, completion_spans=spans, label=content["label"]
        )
    (chosen, chosen_spans), (rejected, rejected_spans) = sides
    if chosen == rejected:
        return Rejected(reason="same_answers", evidence={"tokens": len(chosen)})
    return Pair(
        row_id=row_id, prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected,
        chosen_spans=chosen_spans, rejected_spans=rejected_spans,
    )  # fmt: skip


def _stepwise(row_id: str, found: Sequence[Any], labels: Sequence[bool]) -> Stepwise:
    prompt, separator, *steps = (f.ids for f in found)
    ids: list[int] = []
    ends: list[int] = []
    for step in steps:
        ids += [*step, *separator]
        ends.append(len(ids) - 1)
    return Stepwise(row_id=row_id, prompt_ids=prompt, completion_ids=ids, ends=ends, labels=list(labels))


def _cut(found: Sequence[Any], border: int) -> int:
    """How many tokens belong to the prompt alone: those before the border that all texts share."""
    places = [bisect_right(range(len(f.ids)), border, key=lambda place, f=f: f.token_to_chars(place)[1]) for f in found]
    heads = [f.ids[: min(places)] for f in found]
    return next((n for n, tokens in enumerate(zip(*heads, strict=True)) if len(set(tokens)) > 1), min(places))


def _side(found: Any, cut: tuple[int, tuple[Span, ...]], eos: list[int]) -> tuple[list[int], list[Span]]:
    """Ids of a completion, with EOS when it is plain text, and its trained spans."""
    start, spans = cut
    if eos and found.ids[-1:] == eos:
        eos = []
    placed = [(max(a - start, 0), b - start) for a, b in token_spans(found, spans)]
    ids = [*found.ids[start:], *eos]
    ended = [*placed, (len(ids) - 1, len(ids))] if eos else placed
    return ids, [(a - 1, b - 1) for a, b in trained_spans([(a + 1, b + 1) for a, b in ended])]


def _within(example: Example, limit_tokens: int) -> Example | Rejected:
    tokens = longest_of(example)
    if tokens > limit_tokens:
        return Rejected(reason="overlong", evidence={"tokens": tokens, "window_tokens": limit_tokens})
    return example


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    if other.startswith(one):
        return len(one)
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
