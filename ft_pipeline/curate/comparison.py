"""What two rows are compared by: an exact key, the prompt, the response; lower case, NFC, white space collapsed."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.curate.turns import Turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparable:
    """A row as the search for duplicates sees it."""

    row_id: str
    frame: str
    """Shape and tools: rows of different frames are never duplicates, whatever their words."""
    exact: bytes
    """sha256 of the normalised content."""
    prompt: str
    """All that is not trained on: system, user and tool turns. Empty for plain text."""
    response: str
    """All that is: assistant turns with their calls; both answers of a preference."""

    @property
    def whole(self) -> str:
        """Prompt and response."""
        return f"{self.prompt}\n{self.response}" if self.prompt else self.response


def comparable(row_id: str, shape: str, content: Mapping[str, Any]) -> Comparable:
    """The row's key and texts."""
    prompt, response = _texts(shape, content)
    frame = shape + (hashlib.sha256(_canonical(content["tools"])).hexdigest() if content.get("tools") else "")
    return Comparable(
        row_id=row_id,
        frame=frame,
        exact=hashlib.sha256(frame.encode() + _canonical(_normalised(content))).digest(),
        prompt=normal_text(prompt),
        response=normal_text(response),
    )


def normal_text(text: str) -> str:
    """NFC, lower case, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def _texts(shape: str, content: Mapping[str, Any]) -> tuple[str, str]:
    if shape == "text":
        return "", content["text"]
    if shape == "completion":
        return content["prompt"], content["completion"]
    if shape == "preference":
        return _joined(content["prompt"]), _joined([*content["chosen"], *content["rejected"]])
    asked = [t for t in content["messages"] if t["role"] != "assistant"]
    answered = [t for t in content["messages"] if t["role"] == "assistant"]
    return _joined(asked), _joined(answered)


def _joined(messages: Iterable[Turn]) -> str:
    return "\n".join(t["content"] + (json.dumps(t["tool_calls"]) if t.get("tool_calls") else "") for t in messages)


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return normal_text(value)
    if isinstance(value, Mapping):
        return {k: _normalised(v) for k, v in value.items()}
    return [_normalised(v) for v in value] if isinstance(value, list) else value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
