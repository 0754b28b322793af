"""Turns tokens into text as they come: whole characters only, cut at stop sequences, nothing shown that a stop may still take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a byte-level tokenizer gives for the first bytes of a character."""


class TextStream:
    """The text of one answer. `push` a token, show what comes back; `flush` at the end."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(s for s in stop if s)
        self._tokens: list[int] = []
        self._context, self._shown = 0, 0
        self._held = ""
        self.stopped = False
        """True once a stop sequence was seen."""

    def push(self, token: int) -> str:
        """The text that is certain after this token."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._context : self._shown])
        text = self._decode(self._tokens[self._context :])
        if len(text) <= len(known) or text.endswith(UNFINISHED):
            return ""
        # decoding a window of the last tokens, not all of them, keeps a long answer linear
        self._context, self._shown = self._shown, len(self._tokens)
        return self._release(text[len(known) :])

    def spell(self, token: int) -> str:
        """One token alone, as text."""
        return self._decode([token])

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return ""
        known = self._decode(self._tokens[self._context : self._shown])
        rest = self._release(self._decode(self._tokens[self._context :])[len(known) :])
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, text: str) -> str:
        self._held += text
        cuts = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if cuts:
            self.stopped = True
            released, self._held = self._held[: min(cuts)], ""
            return released
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is a beginning of the stop sequence."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
