"""Judges for tests: an OpenAI-compatible server over real HTTP that behaves or does not, and functions that judge in a known way."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[int, dict[str, Any]], tuple[int, str | dict[str, Any]]]
"""(number of the call from 0, request) -> status and content: a text becomes a chat completion, a dict is sent as it is."""


class Server:
    """What a test sees of it."""

    def __init__(self) -> None:
        self.url, self.requests, self.headers = "", [], []


@contextmanager
def serve(answer: Answer, *, slow_seconds: float = 0.0) -> Iterator[Server]:
    """An endpoint on a free port of this machine."""
    seen, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.requests)
                seen.requests.append(body)
                seen.headers.append(dict(self.headers))
            time.sleep(slow_seconds)
            status, said = answer(number, body)
            if isinstance(said, str) and status == 200:
                said = {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": {"total_tokens": 7}}
            sent = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client's patience had an end
                self.wfile.write(sent)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answers_of(request: dict[str, Any]) -> tuple[str, str]:
    """The two answers in a request."""
    text = request["messages"][-1]["content"]
    found = re.findall(r"\[The Start of Assistant [AB]'s Answer\]\n(.*?)\n\[The End of Assistant", text, re.DOTALL)
    return found[0], found[1]


def prefers_longer(*, form: str, first: str, second: str, **_: str) -> str:
    """Consistent, and a lover of length."""
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def prefers_reference(*, form: str, reference: str, first: str, second: str, **_: str) -> str:
    """The one that holds more of the reference's words."""
    words = set(reference.split())
    mine, other = (len(words & set(text.split())) for text in (first, second))
    return "tie" if mine == other else "first" if mine > other else "second"


def always_first(**_: str) -> str:
    """Looks at places only."""
    return "[[A]]"


def no_function_at_all(**_: str) -> str:
    """Confused."""
    return "both have their merits"
