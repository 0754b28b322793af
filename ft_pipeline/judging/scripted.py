"""Judges without a model: a Python function, and a transcript that is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.judging.forms import Form, Messages
from ft_pipeline.judging.judge import NoReply, Reply
from ft_pipeline.store.fingerprint import sha256_json


@dataclass(frozen=True)
class Scripted:
    """`f(*, form, **fields) -> label or text`: form is a name of forms.py; fields are prompt, first, second, reference or prompt, answer."""

    function: Callable[..., str]

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """As Speaker; the function's exceptions go through, because a broken function is a mistake and no silent judge."""
        return Reply(text=self.function(form=form.name, **fields))


class Replay:
    """Says again what is in the rows of a transcript: a verdict is recomputed without its judge."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._said = {_key(row["form"], tuple(row["request"])): row for row in rows if row["request"]}

    def say(self, form: Form, fields: Mapping[str, str]) -> Reply:
        """As Speaker. A call that failed then fails again; one that was not made is a failure too."""
        row = self._said.get(_key(form.name, form.messages(fields)))
        if row is None:
            raise NoReply("unknown", "the transcript holds no such call")
        if not row["response"]:
            cause, _, detail = row["error"].partition(": ")
            raise NoReply(cause, detail)
        return Reply(text=row["response"])


def _key(form: str, request: Messages) -> str:
    return sha256_json([form, list(request)])
