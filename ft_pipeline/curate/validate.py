"""What a row must be to be trained on: the first reason against it, or none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, Shape, rejected
from ft_pipeline.curate.turns import Turn

UNFIT = re.compile("[\x00\ud800-\udfff]")
"""NUL (cuts text in C libraries and PostgreSQL) and lone surrogates (no UTF-8)."""
BREAK = "\u200b"
"""Zero-width space: put behind the first character of a control token, it stays readable and is one token no more."""
LONG_ENOUGH = 2
AFTER = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Role -> roles that may follow."""


@dataclass(frozen=True)
class ControlTokens:
    """The special tokens of a tokenizer, as text that must not stand in a row."""

    tokens: tuple[str, ...]

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches the longest token at a place; None without tokens."""
        ordered = sorted(self.tokens, key=lambda t: (-len(t), t))
        return re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def first(self, text: str) -> str | None:
        """The first token in a text."""
        match = self.pattern.search(text) if self.pattern else None
        return match[0] if match else None

    def escaped(self, text: str) -> str:
        """The text with a zero-width space inside every token. A token of one character cannot be broken and stays."""
        if self.pattern is None:
            return text
        return self.pattern.sub(lambda m: m[0][0] + BREAK + m[0][1:] if len(m[0]) >= LONG_ENOUGH else m[0], text)


def reason_to_reject(shape: Shape, content: Mapping[str, Any], control: ControlTokens) -> Rejection | None:
    """The first reason against a normalised row, with path and value; None when it is fit to train on."""
    for path, text in strings(content):
        if UNFIT.search(text):
            reason = Reason.NUL_CHARACTER if "\x00" in text else Reason.INVALID_UTF8
            return rejected(reason, path, text.encode("ascii", "backslashreplace").decode())
        if token := control.first(text):
            return rejected(Reason.CONTROL_TOKEN, path, token)
    return RULES[shape](content)


def escape(content: Any, control: ControlTokens) -> tuple[Any, tuple[Rejection, ...]]:
    """The content with every control token broken, and what was found where. Same shape, new values."""
    found = tuple(
        rejected(Reason.CONTROL_TOKEN, path, token)
        for path, text in strings(content)
        if (token := control.first(text)) and control.escaped(text) != text
    )
    return (_escaped(content, control), found) if found else (content, ())


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with its path, keys of objects included: templates render those of tool calls too."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in FIXED_KEYS:
                yield f"{path} key", key
            yield from strings(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings(inner, f"{path}[{index}]")


FIXED_KEYS = frozenset(
    {
        "messages", "tools", "prompt", "completion", "chosen", "rejected", "text", "role", "content", "tool_calls",
        "tool_call_id", "name", "weight", "type", "function", "arguments", "id", "description", "parameters",
    }
)  # fmt: skip
"""Keys that the schema gives: not the dataset's words."""


def _chat_reason(content: Mapping[str, Any]) -> Rejection | None:
    messages = content["messages"]
    if reason := _turns_reason(messages, "messages"):
        return reason
    if messages[-1]["role"] != "assistant":
        return rejected(Reason.NO_FINAL_ASSISTANT, f"messages[{len(messages) - 1}].role", messages[-1]["role"])
    if all(t.get("weight") == 0 for t in messages if t["role"] == "assistant"):
        return rejected(Reason.NOTHING_TO_TRAIN, "messages", "every assistant turn has weight 0")
    return None


def _completion_reason(content: Mapping[str, Any]) -> Rejection | None:
    empty = next((key for key in ("prompt", "completion") if not content[key].strip()), None)
    return rejected(Reason.EMPTY_TURN, empty, content[empty]) if empty else None


def _preference_reason(content: Mapping[str, Any]) -> Rejection | None:
    prompt = content["prompt"]
    for side in ("chosen", "rejected"):
        if reason := _turns_reason([*prompt, *content[side]], side, before=len(prompt)):
            return reason
        if content[side][-1]["role"] != "assistant":
            return rejected(Reason.NO_FINAL_ASSISTANT, side, content[side][-1]["role"])
    if content["chosen"] == content["rejected"]:
        return rejected(Reason.SAME_ANSWERS, "rejected", content["rejected"][-1]["content"])
    return None


def _text_reason(content: Mapping[str, Any]) -> Rejection | None:
    return None if content["text"].strip() else rejected(Reason.EMPTY_TEXT, "text", content["text"])


RULES = {
    "chat": _chat_reason,
    "completion": _completion_reason,
    "preference": _preference_reason,
    "text": _text_reason,
}


def _turns_reason(messages: Sequence[Turn], path: str, *, before: int = 0) -> Rejection | None:
    """Order of roles, empty turns, tool results without a call. `before`: how many of the messages are the prompt's."""
    last = None
    called: set[str] | None = None
    for index, turn in enumerate(messages):
        where = f"{path}[{index - before}]" if index >= before else f"prompt[{index}]"
        role = turn["role"]
        if role == "tool" and not _answers_a_call(turn, called):
            return rejected(Reason.TOOL_RESULT_WITHOUT_CALL, where, turn.get("tool_call_id", turn["content"]))
        if role not in (AFTER[last] if last else ("system", "user")):
            return rejected(Reason.ROLE_ORDER, f"{where}.role", f"{role} after {last or 'nothing'}")
        if role != "tool" and not turn["content"].strip() and not turn.get("tool_calls"):
            return rejected(Reason.EMPTY_TURN, f"{where}.content", turn["content"])
        if role == "assistant":
            called = _call_ids(turn)
        last = role
    return None


def _answers_a_call(turn: Turn, called: set[str] | None) -> bool:
    """A result without an id fits any call, and so does any result after a call without an id."""
    return called is not None and (bool(called & {"", turn.get("tool_call_id", "")}) or "tool_call_id" not in turn)


def _call_ids(turn: Turn) -> set[str] | None:
    """The ids of a turn's calls, None without calls."""
    calls = turn.get("tool_calls")
    return {call.get("id", "") for call in calls} if calls else None


def _escaped(value: Any, control: ControlTokens) -> Any:
    if isinstance(value, str):
        return control.escaped(value)
    if isinstance(value, Mapping):
        return {key if key in FIXED_KEYS else control.escaped(key): _escaped(v, control) for key, v in value.items()}
    return [_escaped(v, control) for v in value] if isinstance(value, list) else value


def as_json(content: Mapping[str, Any]) -> str:
    """A row's content as the split files keep it: canonical JSON, so that equal rows are equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
