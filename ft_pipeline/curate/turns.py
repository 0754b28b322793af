"""Turns of a conversation, from OpenAI or ShareGPT spelling to the one that every later room reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, rejected
from ft_pipeline.curate.json_rows import RowDecoder

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
}  # fmt: skip
"""Role as found -> system, user, assistant or tool."""
CALLS_ONLY = "function_call"
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys that an assistant turn's reasoning goes by: DeepSeek and Qwen, vLLM, gpt-oss."""
IMAGES = frozenset({"image", "image_url", "input_image"})
"""Types of content parts."""
QUOTED = 80
MAX_DEPTH = 64
"""Levels of nested tool arguments; deeper ones are no call but an attack on the stack."""
Turn = dict[str, Any]


class Refused(Exception):
    """Carries a rejection out of nested conversion; caught in normalize.normalize, never beyond."""

    def __init__(self, rejection: Rejection) -> None:
        """Carries a rejection."""
        super().__init__(rejection.reason)
        self.rejection = rejection


def refuse(reason: Reason, path: str, value: Any) -> Refused:
    """To be raised by a conversion."""
    return Refused(rejected(reason, path, value))


def turns(items: Any, path: str) -> list[Turn]:
    """Messages as {"role", "content"} and, where given, reasoning_content, tool_calls, tool_call_id, name, weight. Raises Refused."""
    if not isinstance(items, list) or not items:
        raise refuse(Reason.WRONG_TYPE, path, items)
    made: list[Turn] = []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise refuse(Reason.WRONG_TYPE, f"{path}[{index}]", item)
        turn = _turn(item, path, index)
        # ShareGPT writes the calls as a turn of their own behind the text that leads to them
        if made and made[-1]["role"] == "assistant" and _said(item, "role", "from") == CALLS_ONLY:
            made[-1].setdefault("tool_calls", []).extend(turn["tool_calls"])
        else:
            made.append(turn)
    return made


def is_turns(value: Any) -> bool:
    """True for a list that begins with a message; a list of content parts is none."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and not _ROLE_KEYS.isdisjoint(value[0])
    )


_ROLE_KEYS = frozenset({"role", "from"})


def user(content: str) -> Turn:
    """A turn of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Turn:
    """A turn of the model."""
    return {"role": "assistant", "content": content}


def text_of(value: Any, path: str) -> str:
    """Text, or the text parts of a list of parts joined; other modalities are refused."""
    return value if isinstance(value, str) else _parts(value, path)[0]


def _parts(value: Any, path: str) -> tuple[str, str]:
    """The text and the reasoning in a list of content parts. Raises Refused at the first part that is neither."""
    if not isinstance(value, list) or not value or not all(isinstance(p, Mapping) for p in value):
        raise refuse(Reason.WRONG_TYPE, path, value)
    texts, thoughts = [], []
    for index, part in enumerate(value):
        kind = part.get("type", "text")
        if isinstance(kind, str) and kind in IMAGES:
            raise refuse(Reason.IMAGE, f"{path}[{index}]", part)
        key = "thinking" if kind in ("thinking", "reasoning") and "thinking" in part else "text"
        if kind not in ("text", "input_text", "output_text", "thinking", "reasoning") or not isinstance(
            part.get(key), str
        ):
            raise refuse(Reason.WRONG_TYPE, f"{path}[{index}]", part)
        (thoughts if kind in ("thinking", "reasoning") else texts).append(part[key])
    return "".join(texts), "".join(thoughts)


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools of a row as [{"type": "function", "function": {...}}]; a JSON string is read, nothing gives []."""
    value = row.get("tools") or row.get("functions")
    if isinstance(value, str):
        value = read_json(value, "tools") if value.strip() else None
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise refuse(Reason.WRONG_TYPE, "tools", value)
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(value)]


def _turn(item: Mapping[str, Any], path: str, index: int) -> Turn:
    found, content = _said(item, "role", "from"), _said(item, "content", "value")
    if isinstance(content, str) and isinstance(found, str) and found in _SPOKEN and _FURTHER.isdisjoint(item):
        return {"role": _SPOKEN[found], "content": content}
    return _full_turn(item, f"{path}[{index}]", found, content=content)


_SPOKEN = {found: role for found, role in ROLES.items() if role != "tool" and found != CALLS_ONLY}
_FURTHER = frozenset({"tool_calls", "function_call", "tool_call_id", "name", "weight", *REASONING})


def _full_turn(item: Mapping[str, Any], path: str, found: Any, *, content: Any) -> Turn:
    role = _role(found, path)
    if found == CALLS_ONLY:
        return {"role": role, "content": "", "tool_calls": _calls(read_json(content, f"{path}.content"), path)}
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else None)
    text, reasoning = _words(item, path, "" if content is None and calls else content)
    turn: Turn = {"role": role, "content": text}
    if reasoning:
        if role != "assistant":
            raise refuse(Reason.WRONG_TYPE, f"{path}.reasoning_content", reasoning)
        turn["reasoning_content"] = reasoning
    if calls:
        turn["tool_calls"] = _calls(calls, path)
    for key in ("tool_call_id", "name"):
        if item.get(key) is not None:
            turn[key] = text_of(item[key], f"{path}.{key}")
    if item.get("weight") is not None:
        turn["weight"] = _weight(item["weight"], f"{path}.weight")
    return turn


def _role(found: Any, path: str) -> str:
    if not isinstance(found, str):
        raise refuse(Reason.WRONG_TYPE, f"{path}.role", found)
    role = ROLES.get(found.strip().lower())
    if role is None:
        raise refuse(Reason.UNKNOWN_ROLE, f"{path}.role", found)
    return role


def _words(item: Mapping[str, Any], path: str, content: Any) -> tuple[str, str]:
    """What a turn says, and what was thought before: a key of the turn, or parts of its content."""
    text, thought = (content, "") if isinstance(content, str) else _parts(content, f"{path}.content")
    key = next((key for key in REASONING if item.get(key)), None)
    return text, text_of(item[key], f"{path}.{key}") if key else thought


def _said(item: Mapping[str, Any], key: str, other: str) -> Any:
    found = item.get(key)
    return item.get(other) if found is None else found


def _weight(value: Any, path: str) -> int:
    if isinstance(value, int | float) and value in (0, 1):
        return int(value)
    raise refuse(Reason.WRONG_TYPE, path, value)


def _calls(value: Any, path: str) -> list[dict[str, Any]]:
    """[{"type": "function", "function": {"name", "arguments": object}, ("id")}], the form that chat templates render."""
    calls = value if isinstance(value, list) else [value]
    return [_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, path: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise refuse(Reason.WRONG_TYPE, path, call)
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = read_json(arguments, f"{path}.arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise refuse(Reason.WRONG_TYPE, f"{path}.arguments", arguments)
    _require_json(arguments, f"{path}.arguments")
    made: dict[str, Any] = {"function": {"arguments": arguments or {}, "name": function["name"]}, "type": "function"}
    if isinstance(call.get("id"), str):
        made["id"] = call["id"]
    return made


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise refuse(Reason.WRONG_TYPE, path, tool)
    _require_json(function, path)
    return {"function": function, "type": "function"}


def read_json(value: Any, path: str) -> Any:
    """The value of JSON within JSON, as strict as the row itself; anything but text as it is. Raises Refused."""
    if not isinstance(value, str):
        return value
    decoder = RowDecoder()
    try:
        made = decoder.decode(value)
    except (ValueError, RecursionError):
        raise refuse(Reason.WRONG_TYPE, path, value) from None
    if found := decoder.problem:
        reason = Reason.DUPLICATE_KEY if found.reason == Reason.DUPLICATE_KEY else Reason.WRONG_TYPE
        raise Refused(Rejection(reason=reason, path=f"{path}.{found.path}".rstrip("."), value=found.value))
    return made


def _require_json(value: Any, path: str, depth: int = 0) -> None:
    """Refuses what has no place in JSON: dates and bytes of Parquet, 1e999, nesting without end."""
    if isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return
    if isinstance(value, dict) and depth < MAX_DEPTH and all(isinstance(key, str) for key in value):
        for key, inner in value.items():
            _require_json(inner, f"{path}.{key}", depth + 1)
    elif isinstance(value, list) and depth < MAX_DEPTH:
        for index, inner in enumerate(value):
            _require_json(inner, f"{path}[{index}]", depth + 1)
    else:
        raise refuse(Reason.WRONG_TYPE, path, str(value)[:QUOTED])
