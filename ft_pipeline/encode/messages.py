"""Turns of a conversation in the spellings that chat templates expect, and what a rendered text has lost of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Turn = dict[str, Any]


def spellings(messages: Sequence[Mapping[str, Any]], *, blocks: bool) -> Iterator[list[Turn]]:
    """The conversation as templates expect it, the most usual spelling first.

    Tool arguments are an object (Hugging Face) or the JSON text (deepseekv3 concatenates it); the content beside a tool call is
    text or null (deepseek_r1_distill drops the call otherwise); reasoning is `reasoning_content`, `reasoning` (gemma4) or
    `thinking` (gptoss); content is text or, with `blocks`, a list of text parts (llava_next).
    """
    plain = [_plain(m) for m in messages]
    yield plain
    if any(t.get("reasoning_content") for t in plain):
        yield [_with_reasoning(t) for t in plain]
    if any(t.get("tool_calls") for t in plain):
        yield [_with_null(t) for t in plain]
        as_text = [_with_text_arguments(t) for t in plain]
        yield as_text
        yield [_with_null(t) for t in as_text]
    if blocks:
        yield [{**t, "content": [{"type": "text", "text": t["content"] or ""}]} for t in plain]


def with_object_arguments(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with tool arguments as an object, as TRL's training templates want them."""
    return [_with_calls(t, _object) if t.get("tool_calls") else t for t in turns]


def lost_part(
    turns: Sequence[Mapping[str, Any]], texts: tuple[str, str], first: int = 0
) -> tuple[str, dict[str, Any]] | None:
    """Reason and evidence when the text leaves out a turn, or a tool call from turn `first` on; None when it is whole.

    `texts`: all of it, and the part that the assistant says. llama3 renders a tool call as '' and would teach an empty turn.
    Templates strip white space and cut reasoning off the content, so neither counts as lost. Results of tools may be quoted.
    """
    text, said = texts
    for place, turn in enumerate(turns):
        if turn["role"] == "assistant" and place >= first:
            names = [(c.get("function") or c).get("name") for c in turn.get("tool_calls") or ()]
            if lost := next((n for n in names if isinstance(n, str) and n not in said), None):
                return "tool_call_not_rendered", {"tool": lost, "turn": place}
        if turn["role"] != "tool" and _text_of(turn) not in text:
            return "content_not_rendered", {"role": turn["role"], "turn": place}
    return None


def loses_reasoning(turns: Sequence[Mapping[str, Any]], text: str) -> int:
    """How many turns hold reasoning that the text leaves out."""
    reasons = [t["reasoning_content"].strip() for t in turns if isinstance(t.get("reasoning_content"), str)]
    return sum(1 for reason in reasons if reason not in text)


def _plain(message: Mapping[str, Any]) -> Turn:
    """No weight, no empty keys, tool arguments as an object (OpenAI sends them as a JSON string)."""
    plain = {k: v for k, v in message.items() if k != "weight" and (v is not None or k == "content")}
    return _with_calls(plain, _object) if plain.get("tool_calls") else plain


def _with_null(turn: Turn) -> Turn:
    return {**turn, "content": None} if turn.get("tool_calls") and not turn.get("content") else turn


def _with_text_arguments(turn: Turn) -> Turn:
    return _with_calls(turn, _json) if turn.get("tool_calls") else turn


def _with_reasoning(turn: Turn) -> Turn:
    reason = turn.get("reasoning_content")
    return {**turn, "reasoning": reason, "thinking": reason} if reason else turn


def _with_calls(turn: Turn, spelled: Any) -> Turn:
    calls = [
        {**c, "function": {**c["function"], "arguments": spelled(c["function"].get("arguments"))}}
        if isinstance(c.get("function"), Mapping) else c
        for c in turn["tool_calls"]
    ]  # fmt: skip
    return {**turn, "tool_calls": calls}


def _object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _json(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _text_of(turn: Mapping[str, Any]) -> str:
    """What must be in the text: content without its own reasoning block, stripped."""
    content = turn.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        return ""
    return (content.rpartition("</think>")[2] if turn["role"] == "assistant" else content).strip()
