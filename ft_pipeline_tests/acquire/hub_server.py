"""A small local server that speaks the Hub's protocol: revisions, file lists, HEAD, ranges, and lines that break on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

PIECE_BYTES = 4096


@dataclass
class Repo:
    """A repository: commits (40 hex) with their files, and branches or tags that name commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def push(self, files: dict[str, bytes], *, branch: str = "main") -> str:
        """A new commit on a branch; its id."""
        before = self.branches.get(branch, "")
        text = (
            before + branch + json.dumps({n: hashlib.sha256(b).hexdigest() for n, b in files.items()}, sort_keys=True)
        )
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass
class Hub:
    """What a test sees of the server."""

    endpoint: str
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    """("models" or "datasets", "owner/name") -> repository."""
    gated: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    """File name -> bytes after which the next download of it breaks; used up by one break."""
    lie: dict[str, bytes] = field(default_factory=dict)
    """File name -> other bytes of the same length to send."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range header) of everything that was asked."""

    def repo(self, kind: str, name: str) -> Repo:
        return self.repos.setdefault((kind, name), Repo())

    def downloads(self, name: str) -> list[str | None]:
        """The Range header of each GET of a file."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A server on a free local port: hand `hub.endpoint` to HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    errors: ClassVar = {
        "RepoNotFound": (404, "Repository not found"),
        "RevisionNotFound": (404, "Invalid rev id"),
        "EntryNotFound": (404, "Entry not found"),
        "GatedRepo": (403, "Access to this repository is restricted"),
    }

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_args) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4:
            revision = "/".join(parts[5:]) if parts[4:5] == ["revision"] else "main"
            self._describe(parts[1], "/".join(parts[2:4]), revision)
        elif parts[0] == "plain":
            self._send_file("/".join(parts[1:]), self.hub.repo("plain", "files").commits["0"], {})
        else:
            self._resolve(parts)

    def _describe(self, kind: str, name: str, revision: str) -> None:
        found = self._find(kind, name, revision)
        if found is None:
            return
        commit, files = found
        siblings = [{"rfilename": n, "size": len(b), "blobId": hashlib.sha1(b).hexdigest()} for n, b in files.items()]
        for sibling in siblings:
            if sibling["rfilename"].endswith((".safetensors", ".parquet", ".bin")):
                content = files[sibling["rfilename"]]
                sibling["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
        self._send_json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _resolve(self, parts: list[str]) -> None:
        kind = "datasets" if parts[0] == "datasets" else "models"
        rest = parts[1:] if kind == "datasets" else parts
        found = self._find(kind, "/".join(rest[:2]), rest[3])
        if found is not None:
            self._send_file("/".join(rest[4:]), found[1], {"X-Repo-Commit": found[0]})

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._refuse("RepoNotFound")
        if name in self.hub.gated and not self.headers.get("Authorization"):
            return self._refuse("GatedRepo")
        commit = repo.branches.get(revision, revision)
        return (commit, repo.commits[commit]) if commit in repo.commits else self._refuse("RevisionNotFound")

    def _send_file(self, name: str, files: dict[str, bytes], headers: dict[str, str]) -> None:
        if name not in files:
            return self._refuse("EntryNotFound")
        content = self.hub.lie.get(name, files[name])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        if self.headers.get("If-Range") not in (None, etag):
            start = 0
        self.send_response(206 if start else 200)
        headers = {**headers, "ETag": etag, "Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._send_body(name, content, start)
        return None

    def _send_body(self, name: str, content: bytes, start: int) -> None:
        stop = self.hub.cut_after.get(name)
        body = content[start:] if stop is None else content[start : max(start, stop)]
        for at in range(0, len(body), PIECE_BYTES):
            self.wfile.write(body[at : at + PIECE_BYTES])
        if stop is not None:
            del self.hub.cut_after[name]
            self.close_connection = True

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, code: str) -> None:
        status, text = self.errors[code]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Length", "0")
        self.end_headers()
