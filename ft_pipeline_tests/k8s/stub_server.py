"""An API server that answers from a table: paths -> objects, and which verbs the account may use. For `doctor` and `diff`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


@dataclass
class Stub:
    """What the server knows."""

    objects: dict[str, Any] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    """Paths that answer 403."""
    denied: set[tuple[str, str]] = field(default_factory=set)
    """(verb, resource) that SelfSubjectAccessReview denies."""
    url: str = ""

    def kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that names this server."""
        cluster = {"name": "stub", "cluster": {"server": self.url}}
        context = {"name": "stub", "context": {"cluster": "stub", "user": "me"}}
        said = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "users": [{"name": "me", "user": {}}], "current-context": "stub"}  # fmt: skip
        path.write_text(yaml.safe_dump(said))
        return path


@contextmanager
def stub_server() -> Iterator[Stub]:
    """Answers until the block ends."""
    stub = Stub()

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *_words: Any) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in stub.forbidden:
                return self.told(403, {"message": f"{path} is forbidden"})
            found = stub.objects.get(path)
            return self.told(404, {"message": "not found"}) if found is None else self.told(200, found)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["spec"]["resourceAttributes"]
            name = asked["resource"] + (f"/{asked['subresource']}" if asked.get("subresource") else "")
            self.told(201, {"status": {"allowed": (asked["verb"], name) not in stub.denied}})

        def told(self, code: int, body: Any) -> None:
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
