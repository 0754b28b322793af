"""What two rows are compared by: an exact key, the prompt, the response; lower case, NFC, white space collapsed."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.curate.turns import Turn

SPOKEN = ("role", "content")


@dataclass(frozen=True, slots=True)
class Comparable:
    """A row as the search for duplicates sees it."""

    frame: bytes
    """16 bytes of shape, labels and tools: rows of different frames are never duplicates, whatever their words."""
    exact: bytes
    """sha256 of the normalised content."""
    prompt: str
    """All that is not trained on: system, user and tool turns. Empty for plain text."""
    response: str
    """All that is: assistant turns with their calls; both answers of a preference; the answer that is checked."""

    @property
    def whole(self) -> str:
        """Prompt and response."""
        return f"{self.prompt}\n{self.response}" if self.prompt else self.response


def comparable(shape: str, content: Mapping[str, Any]) -> Comparable:
    """The row's keys and normalised texts."""
    asked, answered = _parts(shape, content)
    frame = hashlib.sha256(f"{shape}/{content.get('label', content.get('labels'))}/".encode())
    if content.get("tools"):
        frame.update(_canonical(content["tools"]))
    exact = hashlib.sha256(frame.digest())
    if shape == "chat":
        exact.update("/".join([turn["role"] for turn in content["messages"]]).encode())
    sides = []
    for turns in (asked, answered):
        words = [_said(turn, exact) for turn in turns]
        sides.append(" ".join([w for w in words if w]))
    return Comparable(frame.digest()[:16], exact.digest(), *sides)


def written(shape: str, content: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and response as they are in the dataset, turns joined by line breaks: what filters look at."""
    asked, answered = _parts(shape, content)
    return _joined(asked), _joined(answered)


def normal_text(text: str) -> str:
    """NFC, lower case, runs of white space as one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.lower().split())


def _parts(shape: str, content: Mapping[str, Any]) -> tuple[Sequence[Turn], Sequence[Turn]]:
    """Turns that are not trained on, and turns that are."""
    if shape == "text":
        return (), ({"role": "text", "content": content["text"]},)
    if shape == "completion":
        return ({"role": "p", "content": content["prompt"]},), ({"role": "c", "content": content["completion"]},)
    if shape == "preference":
        return content["prompt"], [*content["chosen"], {"role": "or", "content": ""}, *content["rejected"]]
    if shape == "kto":
        return content["prompt"], content["completion"]
    if shape == "stepwise":
        return content["prompt"], [{"role": "step", "content": step} for step in content["steps"]]
    if shape == "rlvr":
        return content["prompt"], ({"role": "answer", "content": content["answer"]},)
    turns = content["messages"]
    return [t for t in turns if t["role"] != "assistant"], [t for t in turns if t["role"] == "assistant"]


def _said(turn: Turn, exact: Any) -> str:
    """The normalised words of a turn; role, words and all else go into the exact key."""
    text = normal_text(_words(turn))
    exact.update(f"\0{turn['role']}\0{len(text)}\0{text}".encode())
    if len(turn) > len(SPOKEN):
        exact.update(_canonical({k: v for k, v in turn.items() if k not in SPOKEN}))
    return text


def _joined(turns: Iterable[Turn]) -> str:
    return "\n".join([_words(turn) for turn in turns])


def _words(turn: Turn) -> str:
    """What a turn says: its reasoning, its content, its calls."""
    if len(turn) == len(SPOKEN):
        return turn["content"]
    calls = json.dumps(turn["tool_calls"]) if turn.get("tool_calls") else ""
    return turn.get("reasoning_content", "") + turn["content"] + calls


def _canonical(value: Any) -> bytes:
    return json.dumps(_normalised(value), sort_keys=True, separators=(",", ":")).encode()


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return normal_text(value)
    if isinstance(value, Mapping):
        return {k: _normalised(v) for k, v in value.items()}
    return [_normalised(v) for v in value] if isinstance(value, list) else value
