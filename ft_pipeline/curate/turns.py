"""Turns of a conversation, from OpenAI or ShareGPT spelling to the one that every later room reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, rejected

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
}  # fmt: skip
"""Role as found -> system, user, assistant or tool."""
CALLS_ONLY = "function_call"
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
    """Messages as {"role", "content"} and, where given, tool_calls, tool_call_id, name, weight. Raises Refused."""
    if not isinstance(items, list) or not items:
        raise refuse(Reason.WRONG_TYPE, path, items)
    made: list[Turn] = []
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        if not isinstance(item, Mapping):
            raise refuse(Reason.WRONG_TYPE, where, item)
        turn = _turn(item, where)
        # ShareGPT writes the calls as a turn of their own behind the text that leads to them
        if _said(item, "role", "from") == CALLS_ONLY and made and made[-1]["role"] == "assistant":
            made[-1].setdefault("tool_calls", []).extend(turn["tool_calls"])
        else:
            made.append(turn)
    return made


def text_of(value: Any, path: str) -> str:
    """Text, or the text parts of a list of parts joined; other modalities are refused."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(p, Mapping) for p in value):
        wrong = next((p for p in value if p.get("type", "text") != "text" or not isinstance(p.get("text"), str)), None)
        if wrong is None:
            return "".join(p["text"] for p in value)
        value = wrong
    raise refuse(Reason.WRONG_TYPE, path, value)


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools of a row as [{"type": "function", "function": {...}}]; a JSON string is read, nothing gives []."""
    value = row.get("tools") or row.get("functions")
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise refuse(Reason.WRONG_TYPE, "tools", value)
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(value)]


def _turn(item: Mapping[str, Any], path: str) -> Turn:
    found = _said(item, "role", "from")
    if not isinstance(found, str):
        raise refuse(Reason.WRONG_TYPE, f"{path}.role", found)
    role = ROLES.get(found.strip().lower())
    if role is None:
        raise refuse(Reason.UNKNOWN_ROLE, f"{path}.role", found)
    content = _said(item, "content", "value")
    if found == CALLS_ONLY:
        return {"role": role, "content": "", "tool_calls": _calls(_json(content, f"{path}.content"), path)}
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else None)
    turn: Turn = {"role": role, "content": "" if content is None and calls else text_of(content, f"{path}.content")}
    if calls:
        turn["tool_calls"] = _calls(calls, path)
    for key in ("tool_call_id", "name"):
        if item.get(key) is not None:
            turn[key] = text_of(item[key], f"{path}.{key}")
    if item.get("weight") is not None:
        turn["weight"] = _weight(item["weight"], f"{path}.weight")
    return turn


def _said(item: Mapping[str, Any], *keys: str) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


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
        arguments = _json(arguments, f"{path}.arguments") if arguments.strip() else {}
    if not isinstance(arguments, Mapping | None):
        raise refuse(Reason.WRONG_TYPE, f"{path}.arguments", arguments)
    made: dict[str, Any] = {"function": {"arguments": arguments or {}, "name": function["name"]}, "type": "function"}
    if isinstance(call.get("id"), str):
        made["id"] = call["id"]
    return made


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise refuse(Reason.WRONG_TYPE, path, tool)
    return {"function": function, "type": "function"}


def _json(value: Any, path: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise refuse(Reason.WRONG_TYPE, path, value) from None
