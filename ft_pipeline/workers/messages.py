"""What a child process says while it runs: JSON lines in a file, so that they survive a dead parent and can be read again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["progress", "log", "state", "result", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One line. `progress`: task, done, total, unit, facts. `log`: text. `state`: text. `result`/`error`: facts."""

    kind: Kind
    task: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Message], None]
"""Shows messages: progress bars in a terminal, log lines in Dagster."""


def ignore(_message: Message) -> None:
    """A listener that shows nothing."""


def progress(listener: Listener, task: str, done: float, *, total: float, unit: str = "", **facts: Any) -> None:
    """Tells how far a task is; `done == total` ends it."""
    listener(Message(kind="progress", task=task, done=done, total=total, unit=unit, facts=facts))


def log(listener: Listener, text: str, **facts: Any) -> None:
    """One sentence for a person."""
    listener(Message(kind="log", text=text, facts=facts))


def tell_state(listener: Listener, text: str, **facts: Any) -> None:
    """What the work is doing now, in one word: `checkpointing`, `checkpointed`."""
    listener(Message(kind="state", text=text, facts=facts))


@dataclass
class Mailbox:
    """The child's side: a Listener that appends to a file. At most ten progress lines a second and task."""

    path: Path
    _last: dict[str, float] = field(default_factory=dict)

    def __call__(self, message: Message) -> None:
        """Appends the message as one line."""
        if message.kind == "progress" and message.done < message.total:
            now = time.monotonic()
            if now - self._last.get(message.task, 0) < 0.1:
                return
            self._last[message.task] = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(message), allow_nan=False, default=str) + "\n")


def read_messages(path: Path, offset: int) -> Iterator[tuple[Message, int]]:
    """Whole lines after a byte offset, each with the offset behind it; a half-written last line waits."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield Message(**json.loads(line)), offset
