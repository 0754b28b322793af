"""What a row must be to be trained on: the first reason against it, or none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, Shape, rejected
from ft_pipeline.curate.mojibake import mojibake_in
from ft_pipeline.curate.turns import Turn

UNFIT = re.compile("[\x00\ud800-\udfff]")
"""NUL (cuts text in C libraries and PostgreSQL) and lone surrogates (no UTF-8)."""
BREAK = "\u200b"
"""Zero-width space: put behind the first character of a control token, it stays readable and is one token no more."""
LONG_ENOUGH = 2
AFTER = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Role -> roles that may follow; None: the start."""


@dataclass(frozen=True)
class ControlTokens:
    """The special tokens of a tokenizer, as text that must not stand in a row."""

    tokens: tuple[str, ...]

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches the longest token at a place; None without tokens."""
        ordered = sorted(self.tokens, key=lambda t: (-len(t), t))
        return re.compile("|".join(map(re.escape, ordered))) if ordered else None

    @cached_property
    def starts(self) -> tuple[str, ...]:
        """For each first character of a token what all tokens with it begin with: a text without any of these holds none."""
        first = sorted({token[0] for token in self.tokens if token})
        return tuple(_shared_start([t for t in self.tokens if t.startswith(c)]) for c in first)

    def may_be_in(self, text: str) -> bool:
        """False for a text that surely holds no token: 0.1 us instead of 5 for 500 characters and 256 tokens."""
        return any(start in text for start in self.starts) and self.first(text) is not None

    def first(self, text: str) -> str | None:
        """The first token in a text."""
        match = self.pattern.search(text) if self.pattern else None
        return match[0] if match else None

    def escaped(self, text: str) -> str:
        """The text with a zero-width space inside every token. A token of one character cannot be broken and stays."""
        if self.pattern is None:
            return text
        return self.pattern.sub(lambda m: m[0][0] + BREAK + m[0][1:] if len(m[0]) >= LONG_ENOUGH else m[0], text)


def _shared_start(texts: Sequence[str]) -> str:
    least, most = min(texts), max(texts)
    return least[: next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))]


def reason_to_reject(shape: Shape, content: Mapping[str, Any], control: ControlTokens) -> Rejection | None:
    """The first reason against a normalised row, with path and value; None when it is fit to train on."""
    whole = _joined(content)
    if _is_suspicious(whole) or control.may_be_in(whole):
        for path, text in strings(content):
            if reason := _text_reason_to_reject(path, text, control):
                return reason
    return RULES[shape](content)


def _is_suspicious(text: str) -> bool:
    if text.isascii():
        return "\x00" in text
    return UNFIT.search(text) is not None or mojibake_in(text) is not None


def _text_reason_to_reject(path: str, text: str, control: ControlTokens) -> Rejection | None:
    if UNFIT.search(text):
        reason = Reason.NUL_CHARACTER if "\x00" in text else Reason.INVALID_UTF8
        return rejected(reason, path, text.encode("ascii", "backslashreplace").decode())
    if token := control.first(text):
        return rejected(Reason.CONTROL_TOKEN, path, token)
    broken = mojibake_in(text)
    return rejected(Reason.MOJIBAKE, path, broken) if broken else None


def escape(content: Any, control: ControlTokens) -> tuple[Any, tuple[Rejection, ...]]:
    """The content with every control token broken, and what was found where. Same shape, new values."""
    if not control.may_be_in(_joined(content)):
        return content, ()
    found = tuple(
        rejected(Reason.CONTROL_TOKEN, path, token)
        for path, text in strings(content)
        if (token := control.first(text)) and control.escaped(text) != text
    )
    return (_escaped(content, control), found) if found else (content, ())


def _joined(value: Any) -> str:
    """Everything that `strings` gives, in one text: most rows are cleared by one look at it, without a path."""
    texts: list[str] = []
    _gather(value, texts)
    return "\n".join(texts)


def _gather(value: Any, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in FIXED_KEYS:
                texts.append(key)
            if isinstance(inner, str):
                texts.append(inner)
            else:
                _gather(inner, texts)
    elif isinstance(value, list):
        for inner in value:
            _gather(inner, texts)


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
        "tool_call_id", "name", "weight", "reasoning_content", "answer", "label", "steps", "labels", "type", "function", "arguments", "id", "description", "parameters",
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


def _kto_reason(content: Mapping[str, Any]) -> Rejection | None:
    prompt, completion = content["prompt"], content["completion"]
    if reason := _prompt_reason(prompt) or _turns_reason([*prompt, *completion], "completion", before=len(prompt)):
        return reason
    if completion[-1]["role"] != "assistant":
        return rejected(Reason.NO_FINAL_ASSISTANT, f"completion[{len(completion) - 1}].role", completion[-1]["role"])
    return None


def _rlvr_reason(content: Mapping[str, Any]) -> Rejection | None:
    if reason := _prompt_reason(content["prompt"]):
        return reason
    return None if content["answer"].strip() else rejected(Reason.EMPTY_TEXT, "answer", content["answer"])


def _stepwise_reason(content: Mapping[str, Any]) -> Rejection | None:
    steps, labels = content["steps"], content["labels"]
    if reason := _prompt_reason(content["prompt"]):
        return reason
    if len(steps) != len(labels):
        return rejected(Reason.STEP_LABELS, "labels", f"{len(labels)} labels for {len(steps)} steps")
    if not steps:
        return rejected(Reason.EMPTY_STEP, "steps", steps)
    empty = next((place for place, step in enumerate(steps) if not step.strip()), None)
    return None if empty is None else rejected(Reason.EMPTY_STEP, f"steps[{empty}]", steps[empty])


def _prompt_reason(prompt: Sequence[Turn]) -> Rejection | None:
    """Turns that the model is to answer."""
    if reason := _turns_reason(prompt, "prompt"):
        return reason
    last = prompt[-1]["role"]
    return (
        None
        if last in ("user", "tool")
        else rejected(Reason.ROLE_ORDER, f"prompt[{len(prompt) - 1}].role", f"{last} at the end")
    )


def _text_reason(content: Mapping[str, Any]) -> Rejection | None:
    return None if content["text"].strip() else rejected(Reason.EMPTY_TEXT, "text", content["text"])


RULES = {
    "chat": _chat_reason,
    "completion": _completion_reason,
    "preference": _preference_reason,
    "kto": _kto_reason,
    "rlvr": _rlvr_reason,
    "stepwise": _stepwise_reason,
    "text": _text_reason,
}


def _turns_reason(messages: Sequence[Turn], path: str, *, before: int = 0) -> Rejection | None:
    """Order of roles, empty turns, tool results without a call. `before`: how many of the messages are the prompt's."""
    last, caller = None, 0
    called: set[str] | None = None
    unanswered: set[str] = set()
    for index, turn in enumerate(messages):
        role = turn["role"]
        if role == "tool" and not _answers_a_call(turn, called):
            return rejected(
                Reason.TOOL_RESULT_WITHOUT_CALL, _place(index, path, before), turn.get("tool_call_id", turn["content"])
            )
        if unanswered and role != "tool":
            where = f"{_place(caller, path, before)}.tool_calls"
            return rejected(Reason.TOOL_CALL_WITHOUT_RESULT, where, _told(messages[caller], unanswered))
        if role not in AFTER[last]:
            return rejected(
                Reason.ROLE_ORDER, f"{_place(index, path, before)}.role", f"{role} after {last or 'nothing'}"
            )
        if role == "tool":
            unanswered = unanswered - {turn["tool_call_id"], ""} if "tool_call_id" in turn else set()
        elif not turn["content"].strip() and not turn.get("tool_calls"):
            return rejected(Reason.EMPTY_TURN, f"{_place(index, path, before)}.content", turn["content"])
        if role == "assistant":
            called, caller = _call_ids(turn), index
            unanswered = called or set()
        last = role
    return None


def _place(index: int, path: str, before: int) -> str:
    return f"{path}[{index - before}]" if index >= before else f"prompt[{index}]"


def _answers_a_call(turn: Turn, called: set[str] | None) -> bool:
    """A result without an id fits any call, and so does any result after a call without an id."""
    return called is not None and (bool(called & {"", turn.get("tool_call_id", "")}) or "tool_call_id" not in turn)


def _call_ids(turn: Turn) -> set[str] | None:
    """The ids of a turn's calls, None without calls."""
    calls = turn.get("tool_calls")
    return {call.get("id", "") for call in calls} if calls else None


def _told(turn: Turn, unanswered: set[str]) -> str:
    """The first call that has no result."""
    return next(c["function"]["name"] for c in turn["tool_calls"] if c.get("id", "") in unanswered)


def _escaped(value: Any, control: ControlTokens) -> Any:
    if isinstance(value, str):
        return control.escaped(value)
    if isinstance(value, Mapping):
        return {key if key in FIXED_KEYS else control.escaped(key): _escaped(v, control) for key, v in value.items()}
    return [_escaped(v, control) for v in value] if isinstance(value, list) else value


def as_json(content: Mapping[str, Any]) -> str:
    """A row's content as the split files keep it: canonical JSON, so that equal rows are equal bytes."""
    return _CANONICAL.encode(content)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
