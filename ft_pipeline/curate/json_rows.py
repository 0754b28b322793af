"""Strict JSON: repeated keys and NaN are told, not swallowed; arrays are read item by item."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, rejected
from ft_pipeline.errors import DataError

MAX_ITEM_CHARACTERS = 64 << 20
BETWEEN = " \t\r\n,"


class RowDecoder:
    """Decodes one row at a time; `problem` says what the standard library would have passed over in the last one."""

    def __init__(self) -> None:
        """A decoder that has seen nothing."""
        self.problem: Rejection | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str) -> Any:
        """The value of a text. Raises ValueError, RecursionError."""
        self.problem = None
        return self._decoder.decode(text)

    def decode_at(self, text: str, position: int) -> tuple[Any, int]:
        """The value that starts at a position, and where it ends. Raises ValueError, RecursionError."""
        self.problem = None
        return self._decoder.raw_decode(text, position)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self.problem = rejected(Reason.DUPLICATE_KEY, twice, [value for name, value in pairs if name == twice])
        return made

    def _constant(self, name: str) -> None:
        self.problem = rejected(Reason.NOT_JSON, "", f"{name} is not JSON")


def array_items(source: Iterator[bytes], decoder: RowDecoder, name: str) -> Iterator[str]:
    """The items of a JSON array as they are written, one at a time. Raises DataError where it stops being one: what follows has no line to restart at."""
    text = _Text(source, name)
    text.need(1)
    text.position = text.buffer.index("[") + 1
    number = 0
    while True:
        text.skip_between()
        if text.at_end or text.buffer[text.position] == "]":
            break
        number += 1
        yield _item(text, decoder, f"{name}:{number}")
    if text.at_end:
        raise DataError(f"{name} ends in the middle of its array, after row {number}", cure="download it again")


class _Text:
    """Decoded characters of a stream, and a position in them."""

    def __init__(self, source: Iterator[bytes], name: str) -> None:
        self.source, self.name = source, name
        self.buffer, self.position, self.ended = "", 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def need(self, count: int) -> None:
        """Reads until so many characters lie ahead, or the stream ends."""
        parts = [self.buffer[self.position :]]
        ahead = len(parts[0])
        try:
            while ahead < count and not self.ended:
                piece = next(self.source, b"")
                self.ended = not piece
                parts.append(self._decoder.decode(piece, final=self.ended))
                ahead += len(parts[-1])
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name} is not UTF-8: {error}", cure="convert it, or save JSON lines") from None
        self.buffer, self.position = "".join(parts), 0

    def skip_between(self) -> None:
        """Moves to the next item or bracket."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in BETWEEN:
                self.position += 1
            if self.position < len(self.buffer) or self.ended:
                return
            self.need(1)

    @property
    def at_end(self) -> bool:
        return self.ended and self.position >= len(self.buffer)


def _item(text: _Text, decoder: RowDecoder, origin: str) -> str:
    while True:
        try:
            _, end = decoder.decode_at(text.buffer, text.position)
        except (ValueError, RecursionError) as error:
            ahead = len(text.buffer) - text.position
            if text.ended or ahead > MAX_ITEM_CHARACTERS:
                raise DataError(
                    f"{origin} is not JSON: {error}",
                    why="In one big array nothing behind a broken row can be read.",
                    cure="save the rows as JSON lines: then a broken row costs one row",
                ) from None
            text.need(max(1 << 16, 2 * ahead))
            continue
        # a number may go on in the next piece
        if end == len(text.buffer) and not text.ended:
            text.need(2 * (end - text.position) + 1)
            continue
        start, text.position = text.position, end
        return text.buffer[start:end]
