"""Follows the catalog: which names answer now, on which base, with which verified adapter. Promotions and rollbacks need no restart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from ft_pipeline.errors import FtError, NotFoundError, did_you_mean
from ft_pipeline.register.artifact import Registered
from ft_pipeline.serve.batching import Closed
from ft_pipeline.serve.deploy import deploy, is_recertified, verified
from ft_pipeline.serve.engine import Answer, Generation, Piece, Served
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.manifest import Ref

PERMITTED = ("staging", "production")
CHANGES_OF_SERVER = 3
"""How often one request follows a name to another server before it gives up."""
REFRESH_SECONDS = 0.25
"""A rollback answers within a second: this, one read of the catalog, the verification of one adapter."""
logger = logging.getLogger(__name__)


class BaseServer(Protocol):
    """One base model and its adapters: `serve.local.PeftServer`."""

    batcher: Any

    def add(self, adapter: Artifact, *, recertified: bool = False) -> None: ...
    def pin(self, keys: frozenset[str]) -> None: ...
    def answer(self, request: Generation, adapter: str | None) -> Iterator[Piece]: ...
    def close(self, *, wait: bool = True) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where a name leads. `version` is None for a base model."""

    served: Served
    host: str
    """Digest of the model that has to be in memory: the base, or a full fine-tune."""
    adapter: str | None
    version: ModelVersion | None


@dataclass
class LiveEngine:
    """The Engine of this machine."""

    catalog: Catalog
    store: Store
    settings: Settings
    open_server: Callable[[Artifact], BaseServer]
    refused: dict[str, FtError] = field(default_factory=dict)
    """Version -> why it does not answer although its stage permits it."""
    _routes: Mapping[str, Route] = field(default_factory=dict)
    _servers: dict[str, BaseServer] = field(default_factory=dict)
    _ready: set[int] = field(default_factory=set)
    _pins: dict[str, frozenset[str]] = field(default_factory=dict)
    _seen: Any = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def refresh(self) -> bool:
        """Reads the catalog; loads what became production, forgets what no longer may answer. True when something changed."""
        versions = self.catalog.models()
        seen = [(v.id, v.stage, v.registered_digest) for v in versions]
        if seen == self._seen:
            return False
        with self._lock:
            permitted = [v for v in versions if v.stage in PERMITTED]
            self.refused = {}
            self._pin([v for v in permitted if v.stage == "production"])
            for version in (v for v in permitted if v.stage == "production"):
                self._try_prepare(version)
            self._routes = routes([v for v in permitted if v.label not in self.refused])
            self._seen = seen
            self._forget_others()
        return True

    def models(self) -> list[Served]:
        """What answers now: production, staging, and the bases they stand on."""
        return list({route.served.id: route.served for route in self._routes.values()}.values())

    def resolve(self, name: str) -> Served:
        """What a name stands for. Raises NotFoundError with the reason, IntegrityError when its bytes were refused."""
        return self._route(name).served

    def answer(self, request: Generation) -> Answer:
        """An answer in the making. A staging version is verified and loaded at its first request."""
        for _ in range(CHANGES_OF_SERVER):
            route = self._ready_route(request.model)
            with suppress(
                Closed
            ):  # the last version on this base left between the two lines: the name leads elsewhere now
                return Answer(served=route.served, pieces=self._server(route).answer(request, route.adapter))
        raise FtError(f"the server of {request.model} is closing", cure="ask again")

    def counters(self) -> dict[str, float]:
        """Numbers for `/metrics`."""
        servers = list(self._servers.values())
        return {
            "ft_models_served": len(self.models()),
            "ft_models_refused": len(self.refused),
            "ft_bases_loaded": len(servers),
            "ft_decode_steps_total": sum(s.batcher.steps for s in servers),
            "ft_rows_joined_total": sum(s.batcher.rows for s in servers),
            "ft_rows_waiting": sum(s.batcher.waiting for s in servers),
            "ft_rows_running": sum(s.batcher.running for s in servers),
            "ft_largest_batch_rows": max((s.batcher.largest for s in servers), default=0),
        }

    def trouble(self) -> str:
        """Empty while every base has its decoding thread."""
        dead = [host[:12] for host, server in self._servers.copy().items() if not server.batcher.alive]
        return f"the decoding thread of base {', '.join(dead)} has ended: restart the server" if dead else ""

    def close(self) -> None:
        """Ends every decoding thread."""
        for server in self._servers.values():
            server.close()

    def _ready_route(self, name: str) -> Route:
        """The route of a name, its version verified and loaded."""
        route = self._route(name)
        if route.version is None or route.version.id in self._ready:
            return route
        with self._lock:
            route = self._route(name)  # a promotion may have come between: what it archived must not be deployed again
            if route.version is not None:
                self._prepare(route.version)
        return route

    def _route(self, name: str) -> Route:
        routes_now = self._routes
        if name in routes_now:
            return routes_now[name]
        for version in self.catalog.models():
            if (
                name in (version.label, version.line, f"{version.line}:{version.stage}")
                and version.label in self.refused
            ):
                raise self.refused[version.label]
        raise NotFoundError(
            f"the model {name!r} does not answer: {self._stages(name) or did_you_mean(name, routes_now)}",
            why="Only versions in staging and production answer; a bare `tenant/name` means production.",
            cure="`ft-pipeline models` shows the stages, `ft-pipeline promote` moves one on",
        )

    def _stages(self, name: str) -> str:
        """The stages of the line that a name belongs to, for the error."""
        line = name.partition("@")[0].partition(":")[0]
        return ", ".join(f"{v.label} is in {v.stage}" for v in self.catalog.models() if v.line == line)

    def _try_prepare(self, version: ModelVersion) -> None:
        """A version whose bytes are refused must not stop the others."""
        try:
            self._prepare(version)
        except FtError as error:
            self.refused[version.label] = error
            logger.error("%s is not served: %s", version.label, error)

    def _prepare(self, version: ModelVersion) -> None:
        if version.id in self._ready:
            return
        let_in = deploy if version.stage == "production" else verified
        registered = let_in(version, catalog=self.catalog, store=self.store, settings=self.settings)
        server = self._open(host_of(version), registered)
        if version.artifact_type == "lora_adapter":
            server.add(self.store.fetch(registered.adapter), recertified=is_recertified(registered))
        self._ready.add(version.id)
        logger.warning("%s answers (adapter %s)", version.label, version.adapter_digest[:12])

    def _pin(self, production: list[ModelVersion]) -> None:
        """Before they are loaded: what is loaded first must not leave for what comes after."""
        self._pins = {v: frozenset() for v in self._servers}
        for version in production:
            host = host_of(version)
            self._pins[host] = self._pins.get(host, frozenset()) | {version.adapter_digest}
        for host, server in self._servers.items():
            server.pin(self._pins[host])

    def _open(self, host: str, registered: Registered) -> BaseServer:
        if host not in self._servers:
            ref: Ref = registered.base if host == registered.base.digest else registered.adapter
            self._servers[host] = self.open_server(self.store.fetch(ref))
            self._servers[host].pin(self._pins.get(host, frozenset()))
        return self._servers[host]

    def _server(self, route: Route) -> BaseServer:
        """The server of a route. A base alone is asked for only while a version stands on it; it may not be open yet."""
        if route.host not in self._servers:
            with self._lock:
                if route.host not in self._servers:
                    self._servers[route.host] = self.open_server(self.store.fetch(self.catalog.ref(route.host)))
        return self._servers[route.host]

    def _forget_others(self) -> None:
        """What may no longer answer has to be verified again before it does; bases nobody stands on close after their last answers."""
        self._ready &= {r.version.id for r in self._routes.values() if r.version}
        for host in set(self._servers) - {r.host for r in self._routes.values()}:
            self._servers.pop(host).close(wait=False)


def routes(versions: list[ModelVersion]) -> dict[str, Route]:
    """Name -> route of every version that may answer, and of the bases they stand on (`tenant/name:base`, `base-<12 hex>`)."""
    found: dict[str, Route] = {}
    for base in sorted({v.base_digest for v in versions if v.artifact_type == "lora_adapter"}):
        lines = sorted({f"{v.line}:base" for v in versions if v.base_digest == base})
        served = Served(
            id=f"base-{base[:12]}", aliases=tuple(lines), stage="base", base_digest=base, adapter_digest=None, created=0,
            owned_by="ft-pipeline",
        )  # fmt: skip
        found |= dict.fromkeys((served.id, *lines), Route(served=served, host=base, adapter=None, version=None))
    for version in versions:
        names = _aliases(version, versions)
        served = Served(
            id=version.label, aliases=names, stage=version.stage, base_digest=version.base_digest,
            adapter_digest=version.adapter_digest, created=int(datetime.fromisoformat(version.created_at).timestamp()),
            owned_by=version.tenant,
        )  # fmt: skip
        adapter = version.adapter_digest if version.artifact_type == "lora_adapter" else None
        route = Route(served=served, host=host_of(version), adapter=adapter, version=version)
        found |= dict.fromkeys((served.id, *names), route)
    return found


def host_of(version: ModelVersion) -> str:
    """Digest of the model that a version needs in memory."""
    return version.base_digest if version.artifact_type == "lora_adapter" else version.adapter_digest


def _aliases(version: ModelVersion, versions: list[ModelVersion]) -> tuple[str, ...]:
    """`tenant/name` and `:production` for the production version, `:staging` for the newest in staging."""
    if version.stage == "production":
        return (version.line, f"{version.line}:production")
    newest = max(v.version for v in versions if v.line == version.line and v.stage == "staging")
    return (f"{version.line}:staging",) if version.version == newest else ()


def guard(engine: LiveEngine, stopped: threading.Event, every_seconds: float = REFRESH_SECONDS) -> None:
    """Refreshes until stopped. A catalog that does not answer for a while leaves what is live alive."""
    while not stopped.wait(every_seconds):
        try:
            engine.refresh()
        except FtError as error:
            logger.error("the catalog could not be read; serving goes on as before: %s", error)
