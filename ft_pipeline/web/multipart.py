"""multipart/form-data as it streams in: small fields are kept, the one file goes to disk piece by piece, nothing else is held."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from anyio.to_thread import run_sync
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from ft_pipeline.web.arrivals import Arrival
from ft_pipeline.web.refusals import Refusal, TooLarge

FIELD_BYTES = 1024
MOST_PARTS = 16
HEADER_BYTES = 64 << 10
"""Of a part: a name of 10,000 characters fits, an endless one does not."""
OVERHEAD_BYTES = 1 << 20
"""Of a body beside its file: boundaries, headers, fields."""
BATCH_BYTES = 1 << 20
"""Handed to a thread at once, so that neither parsing nor the disk stops other requests."""
SILENT_SECONDS = 60
LEAST_BYTES_A_SECOND = 1024
"""On average, after the first minute: a byte now and then holds a connection for ever."""
DRAINED_BYTES, DRAINED_SECONDS = 8 << 20, 2.0
"""After a refusal: read on a little, or the client sees a broken connection and not the answer."""


class Slow(Refusal):
    """A body that stopped coming."""

    status = 408


@dataclass
class Form:
    """What a body held."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    has_file: bool = False


@dataclass
class _Reader:
    """The parser's callbacks: which part is being read, and where its bytes go."""

    arrival: Arrival
    file_field: str
    known: Sequence[str]
    form: Form = field(default_factory=Form)
    name: str = ""
    ended: bool = False
    _parts: int = 0
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _headers: dict[bytes, bytes] = field(default_factory=dict)

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_ended,
            "on_headers_finished": self._headers_ended,
            "on_part_data": self._data,
            "on_part_end": self._part_ended,
            "on_end": self._all_ended,
        }

    def _begin(self) -> None:
        self._parts += 1
        self._headers, self._value = {}, bytearray()
        if self._parts > MOST_PARTS:
            raise _malformed(f"more than {MOST_PARTS} parts")

    def _header_ended(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _headers_ended(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self.name = options.get(b"name", b"").decode("utf-8", "replace")
        if self.name == self.file_field:
            if self.form.has_file:
                raise _malformed(f"two parts are called {self.name}")
            self.form.has_file = True
            self.form.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif self.name not in self.known:
            raise Refusal(
                f"unknown field {self.name[:60]!r}",
                code="unknown_field",
                param=self.name[:60],
                cure=f"send {', '.join([self.file_field, *self.known])}",
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self.name == self.file_field:
            self.arrival.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES:
            raise TooLarge(f"the field {self.name} has more than {FIELD_BYTES} bytes", param=self.name)

    def _part_ended(self) -> None:
        if self.name != self.file_field:
            self.form.fields[self.name] = self._value.decode("utf-8", "replace")

    def _all_ended(self) -> None:
        self.ended = True


async def read_form(request: Request, arrival: Arrival, *, file_field: str, fields: Sequence[str]) -> Form:
    """The fields of a body, its file written to the arrival.

    Raises Refusal: no form, unknown fields, too large (at that byte, or at once when Content-Length says so), cut off, too slow.
    """
    reader = _Reader(arrival, file_field, fields)
    parser = _parser(request, reader)
    try:
        arrival.check(max(0, _content_length(request) - OVERHEAD_BYTES))
        await _feed(request, parser)
    except Refusal:
        await _drain(request)
        raise
    except FormParserError as error:
        await _drain(request)
        raise _malformed(str(error)) from None
    if not reader.ended:
        raise _malformed("the body ends in the middle")
    if not reader.form.has_file:
        raise Refusal(f"the field {file_field} is missing", code="missing_field", param=file_field)
    await run_sync(arrival.finish)
    return reader.form


def _parser(request: Request, reader: _Reader) -> MultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise _malformed(f"the body is {kind.decode('latin-1')[:60] or 'of no type'}")
    try:
        return MultipartParser(boundary, reader.callbacks(), max_header_count=8, max_header_size=HEADER_BYTES)  # type: ignore[arg-type]
    except FormParserError as error:
        raise _malformed(str(error)) from None


async def _feed(request: Request, parser: MultipartParser) -> None:
    waiting = bytearray()
    async for piece in _pieces(request):
        waiting += piece
        if len(waiting) >= BATCH_BYTES:
            await run_sync(parser.write, bytes(waiting))
            waiting.clear()
    await run_sync(parser.write, bytes(waiting))
    parser.finalize()


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    stream, began, size = request.stream(), time.monotonic(), 0
    try:
        while True:
            async with asyncio.timeout(SILENT_SECONDS):
                piece = await anext(stream, None)
            if piece is None:
                return
            size += len(piece)
            if (seconds := time.monotonic() - began) > SILENT_SECONDS and size < seconds * LEAST_BYTES_A_SECOND:
                raise TimeoutError
            yield piece
    except TimeoutError:
        raise Slow(
            f"nothing came for {SILENT_SECONDS} s, or less than {LEAST_BYTES_A_SECOND} bytes a second",
            code="slow_body",
            cure="send it again; large files: /v1/uploads, in parts",
        ) from None
    except ClientDisconnect:
        raise _malformed("the connection was closed in the middle") from None


async def _drain(request: Request) -> None:
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAINED_SECONDS):
            async for piece in request.stream():
                left -= len(piece)
                if left < 0:
                    return


def _content_length(request: Request) -> int:
    said = request.headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 19 else 0


def _malformed(what: str) -> Refusal:
    return Refusal(
        f"no whole multipart/form-data body: {what}",
        code="malformed_body",
        cure="send the form as the openai client does",
    )
