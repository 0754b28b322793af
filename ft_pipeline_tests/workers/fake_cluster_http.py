"""The HTTP side of the fake cluster: list, watch, create, delete, evict, logs, and the errors of a real server."""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

from ft_pipeline_tests.workers.fake_cluster import NAMESPACE, FakeCluster, Refused, matches
from ft_pipeline_tests.workers.fake_cluster_rules import refuse_invalid

PATH = re.compile(
    r"/(?:api/v1|apis/batch/v1)/namespaces/(?P<ns>[^/]+)/(?P<plural>jobs|pods|services|configmaps|events)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>log|eviction))?"
)
KINDS = {"jobs": "Job", "pods": "Pod", "services": "Service", "configmaps": "ConfigMap", "events": "Event"}
BOOKMARK_SECONDS = 0.5


def serve(cluster: FakeCluster) -> ThreadingHTTPServer:
    """A running server for a cluster."""

    class Bound(_Requests):
        pass

    Bound.cluster = cluster
    server = _Server(("127.0.0.1", 0), Bound)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: FakeCluster

    def setup(self) -> None:
        super().setup()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if self.cluster.faults.down:
            self.close_connection = True
            self.connection.close()
            return
        try:
            self._route(method, body)
        except Refused as no:
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": no.message,
                "reason": no.reason,
            }
            self._json(no.code, {**status, "code": no.code})

    def _route(self, method: str, body: dict[str, Any]) -> None:
        url = urlparse(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        found = PATH.fullmatch(url.path)
        if not found:
            raise Refused(404, "the server could not find the requested resource", "NotFound")
        plural, name, sub = found["plural"], found["name"], found["sub"]
        self.cluster.requests[f"{method} {plural}{' watch' if 'watch' in query else ''}"] += 1
        if found["ns"] != NAMESPACE:
            raise Refused(404 if method == "POST" else 200, f'namespaces "{found["ns"]}" not found', "NotFound")
        if method == "POST":
            self._post(plural, body, name if sub == "eviction" else None)
        elif method == "DELETE":
            self._delete(plural, str(name), body)
        elif sub == "log":
            self._log(str(name), query)
        elif name:
            with self.cluster.changed:
                one = copy.deepcopy(self.cluster.get(plural, name))
            self._json(200, one)
        elif "watch" in query:
            self._watch(plural, query)
        else:
            with self.cluster.changed:
                items = [copy.deepcopy(o) for o in self.cluster.all(plural) if matches(o, query)]
                version = str(self.cluster.version)
            about = {"resourceVersion": version}
            self._json(200, {"kind": f"{KINDS[plural]}List", "apiVersion": "v1", "metadata": about, "items": items})

    def _post(self, plural: str, body: dict[str, Any], evicted: str | None) -> None:
        if evicted:
            self.cluster.evict(evicted)
            return self._json(201, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        if plural == "jobs" and self.cluster.faults.create:
            code, message = self.cluster.faults.create.pop(0)
            raise Refused(code, message, "InternalError")
        refuse_invalid(plural, body)
        return self._json(201, copy.deepcopy(self.cluster.create(plural, body)))

    def _delete(self, plural: str, name: str, body: dict[str, Any]) -> None:
        cluster = self.cluster
        with cluster.changed:
            found = cluster.get(plural, name)
            wanted = (body.get("preconditions") or {}).get("uid")
            if wanted and wanted != found["metadata"]["uid"]:
                raise Refused(409, "the UID in the precondition does not match", "Conflict")
            if plural == "pods":
                cluster.stop_pod(found)
            elif plural != "jobs":
                cluster.remove(plural, name)
            else:
                self._delete_job(found, body.get("propagationPolicy", "Orphan"))
            answer = copy.deepcopy(found)
        self._json(200, answer)

    def _delete_job(self, job: dict[str, Any], policy: str) -> None:
        cluster, name = self.cluster, job["metadata"]["name"]
        if policy == "Orphan":  # what batch/v1 does by default: running pods stay
            for pod in cluster.pods_of(name):
                pod["metadata"]["ownerReferences"] = []
            return cluster.remove("jobs", name)
        for pod in cluster.pods_of(name):
            cluster.stop_pod(pod)
        if policy == "Foreground":
            job["metadata"] |= {
                "deletionTimestamp": job["metadata"]["creationTimestamp"],
                "finalizers": ["foregroundDeletion"],
            }
            return cluster.touch("jobs", job)
        return cluster.remove("jobs", name)

    def _watch(self, plural: str, query: dict[str, str]) -> None:
        cluster, version = self.cluster, int(query["resourceVersion"])
        until, dropped = time.monotonic() + float(query.get("timeoutSeconds", 60)), cluster.faults.drop
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with cluster.changed:
            cluster.watches += 1
            cluster.most_watches = max(cluster.most_watches, cluster.watches)
        with suppress(OSError):
            if version < cluster.oldest or cluster.faults.watch:
                code = cluster.faults.watch.pop(0) if cluster.faults.watch else 410
                gone = {"kind": "Status", "code": code, "message": f"too old resource version: {version}"}
                self._line({"type": "ERROR", "object": gone})
            else:
                self._stream(plural, query, (version, until, dropped))
            self.wfile.write(b"0\r\n\r\n")
        with cluster.changed:
            cluster.watches -= 1

    def _stream(self, plural: str, query: dict[str, str], state: tuple[int, float, int]) -> None:
        cluster, (version, until, dropped) = self.cluster, state
        marked = time.monotonic()
        while time.monotonic() < until:
            with cluster.changed:
                new = cluster.since(plural, version)
                version = cluster.version
                if not new:
                    cluster.changed.wait(0.1)
            if cluster.faults.down or cluster.faults.drop > dropped:
                self.wfile.write(b'20\r\n{"type": "MODIFIED", "obj')
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                raise OSError("dropped")
            for _, kind, found in new:
                if matches(found, query):
                    self._line({"type": kind, "object": found})
            if time.monotonic() - marked > BOOKMARK_SECONDS and query.get("allowWatchBookmarks") == "true":
                marked = time.monotonic()
                about = {"metadata": {"resourceVersion": str(version)}, "kind": KINDS[plural]}
                self._line({"type": "BOOKMARK", "object": about})

    def _log(self, name: str, query: dict[str, str]) -> None:
        pod = self.cluster.get("pods", name)
        if not pod["status"].get("containerStatuses"):
            raise Refused(
                400, f'container "trainer" in pod "{name}" is waiting to start: ContainerCreating', "BadRequest"
            )
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            for line in self.cluster.kubelet.log_of(pod, follow=query.get("follow") == "true"):
                self._chunk(line)
            self.wfile.write(b"0\r\n\r\n")

    def _line(self, value: dict[str, Any]) -> None:
        self._chunk(json.dumps(value).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _json(self, code: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
