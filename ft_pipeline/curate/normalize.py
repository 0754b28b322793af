"""Every layout that datasets come in becomes one of four shapes: chat, completion, preference, text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, Shape, rejected
from ft_pipeline.curate.turns import Refused, Turn, refuse, text_of, tools_of, turns

HUMAN_ASSISTANT = re.compile(r"\n\n(Human|Assistant): ?")
"""How Anthropic/hh-rlhf writes a conversation into one string."""


PROMPT_COMPLETION = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))
"""The names that a prompt and its completion go by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normal:
    """A row in the one schema."""

    layout: str
    shape: Shape
    content: dict[str, Any]
    changes: tuple[Rejection, ...] = ()
    """What was altered beyond spelling, for the ledger."""


def normalize(row: Mapping[str, Any], layout: str) -> Normal | Rejection:
    """The row in the one schema. `auto` goes by the row's keys; any other layout refuses rows that are not of it.

    Text is never stripped or re-encoded. Alpaca becomes chat: instruction, blank line, input are the user's turn. Messages as
    prompt/completion become chat with weight 0 on assistant turns of the prompt.
    """
    found = layout_of(row)
    if found is None or layout not in ("auto", found):
        keys = ", ".join(sorted(map(str, row)))
        return rejected(
            Reason.UNKNOWN_LAYOUT, "", f"keys {keys}" if found is None else f"{found}, not {layout}: keys {keys}"
        )
    try:
        shape, content = CONVERSIONS[found](row)
    except Refused as refused:
        return refused.rejection
    content, changes = _without_empty_system(content)
    return Normal(layout=found, shape=shape, content=content, changes=changes)


def layout_of(row: Mapping[str, Any]) -> str | None:
    """The layout that a row's keys speak of, the most telling first: a `text` column beside `instruction` is a rendering."""
    has = {key for key, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= has:
        return "preference"
    if "messages" in has:
        return "chat"
    if has & {"conversations", "conversation"}:
        return "sharegpt"
    if {"instruction", "output"} <= has:
        return "alpaca"
    if _asked_and_answered(row):
        return "prompt_completion"
    return "text" if "text" in has else None


def _chat(row: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
    return "chat", _with_tools(_with_system(row, turns(row["messages"], "messages")), row)


def _sharegpt(row: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
    key = "conversations" if row.get("conversations") is not None else "conversation"
    return "chat", _with_tools(_with_system(row, turns(row[key], key)), row)


def _alpaca(row: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
    made: list[Turn] = []
    for index, pair in enumerate(row.get("history") or []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise refuse(Reason.WRONG_TYPE, f"history[{index}]", pair)
        made += [_user(text_of(pair[0], f"history[{index}][0]")), _assistant(text_of(pair[1], f"history[{index}][1]"))]
    asked = [text_of(row["instruction"], "instruction")]
    if row.get("input"):
        asked.append(text_of(row["input"], "input"))
    made += [_user("\n\n".join(asked)), _assistant(text_of(row["output"], "output"))]
    return "chat", _with_tools(_with_system(row, made), row)


def _prompt_completion(row: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
    prompt, answer = _asked_and_answered(row) or PROMPT_COMPLETION[0]
    if isinstance(row[prompt], list) and isinstance(row[answer], list):
        before = [t | {"weight": 0} if t["role"] == "assistant" else t for t in turns(row[prompt], prompt)]
        return "chat", _with_tools(before + turns(row[answer], answer), row)
    return "completion", {"prompt": text_of(row[prompt], prompt), "completion": text_of(row[answer], answer)}


def _preference(row: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
    chosen, rejected_ = (_answers(row[side], side) for side in ("chosen", "rejected"))
    prompt = _prompt(row)
    if prompt and chosen[: len(prompt)] == prompt == rejected_[: len(prompt)]:
        chosen, rejected_ = chosen[len(prompt) :], rejected_[len(prompt) :]
    elif chosen[0]["role"] != "assistant":
        shared = _num_shared(chosen, rejected_)
        prompt, chosen, rejected_ = chosen[:shared], chosen[shared:], rejected_[shared:]
    if not prompt:
        raise refuse(Reason.MISSING_PROMPT, "prompt", sorted(map(str, row)))
    content = {"prompt": _with_system(row, prompt), "chosen": chosen, "rejected": rejected_}
    if tools := tools_of(row):
        content["tools"] = tools
    return "preference", content


def _text(row: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
    return "text", {"text": text_of(row["text"], "text")}


CONVERSIONS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Shape, dict[str, Any]]]] = {
    "chat": _chat,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "text": _text,
}


def _asked_and_answered(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((p for p in PROMPT_COMPLETION if row.get(p[0]) is not None and row.get(p[1]) is not None), None)


def _prompt(row: Mapping[str, Any]) -> list[Turn]:
    """The explicit prompt of a preference row: text or messages, under any of the names in use; [] when it is implicit."""
    for key in ("prompt", "conversations", "messages"):
        if isinstance(row.get(key), list) and row[key]:
            return turns(row[key], key)
    asked = next((key for key in ("prompt", "question", "instruction") if row.get(key) is not None), None)
    if asked is None:
        return []
    words = text_of(row[asked], asked)
    further = f"\n\n{row['input']}" if asked == "instruction" and row.get("input") else ""
    return [_user(words + further)]


def _answers(value: Any, side: str) -> list[Turn]:
    """The turns of one side: a string, one message, messages, or a conversation written into one string."""
    if isinstance(value, Mapping):
        return turns([value], side)
    if isinstance(value, list):
        return turns(value, side)
    text = text_of(value, side)
    if not HUMAN_ASSISTANT.match(text):
        return [_assistant(text)]
    parts = HUMAN_ASSISTANT.split(text)[1:]
    roles = {"Human": _user, "Assistant": _assistant}
    return [roles[who](said) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _num_shared(chosen: list[Turn], rejected_: list[Turn]) -> int:
    """How many first turns both sides share, leaving an answer to each: the implicit prompt."""
    limit = min(len(chosen), len(rejected_)) - 1
    return next((i for i in range(limit) if chosen[i] != rejected_[i]), limit)


def _with_system(row: Mapping[str, Any], messages: list[Turn]) -> list[Turn]:
    if row.get("system") is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": text_of(row["system"], "system")}, *messages]


def _with_tools(messages: list[Turn], row: Mapping[str, Any]) -> dict[str, Any]:
    tools = tools_of(row)
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def _without_empty_system(content: dict[str, Any]) -> tuple[dict[str, Any], tuple[Rejection, ...]]:
    """Many exports write `system: ""` for no system turn; a turn that says nothing is left out and written down."""
    for key in ("messages", "prompt"):
        first = content[key][0] if isinstance(content.get(key), list) else None
        if first and first["role"] == "system" and not first["content"].strip():
            kept = {**content, key: content[key][1:]}
            return kept, (rejected(Reason.EMPTY_SYSTEM, f"{key}[0].content", first["content"]),)
    return content, ()


def _user(content: str) -> Turn:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Turn:
    return {"role": "assistant", "content": content}
