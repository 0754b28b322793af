"""Which vLLM replicas there are: a YAML file (FT_FLEET) that names pools, the model each holds, and where its replicas answer."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import TypeAdapter, ValidationError

from ft_pipeline.errors import UserError
from ft_pipeline.store.catalog_rows import parse_model_name, require_sha256

Kind = Literal["shared", "standalone"]
POOL_PREFIX = "fleet-"
"""Of a pool's id in the catalog: beside the pools of a single machine's server (`local-`)."""
_URL = re.compile(r"https?://[^/?#@]+")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Replicas that hold the same model in memory."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    name: str
    """For people, metrics and the catalog, where it is `fleet-<name>`."""
    kind: Kind = "shared"
    """shared: a base with many adapters. standalone: one version that needs no adapter, a full fine-tune or a merged export."""
    base: str
    """Digest of the base_model artifact; of a standalone pool, of the artifact with the whole weights."""
    serves: str | None = None
    """Of a standalone pool: `tenant/model@3`. Its replicas run with `--served-model-name tenant/model@3`."""
    replicas: tuple[str, ...] = ()
    """`http://host:port` of each."""
    discover: str | None = None
    """`http://host:port` whose host has one address for each replica: a headless Service."""
    drain: bool = False
    """Gets no new requests and no adapters: to take a pool away whose base stays in use, for example for a new image."""
    cache: str | None = None
    """Folder of the resolver's adapters, when the reconciler sees the disk of the replicas: it is kept small."""
    min_replicas: int = 1
    max_replicas: int = 8
    """What the autoscaling signal may suggest."""

    def __post_init__(self) -> None:
        require_sha256(f"base of pool {self.name}", self.base)
        if not _NAME.fullmatch(self.name):
            raise UserError(f"the pool name {self.name!r} is not a DNS label", cure="use a-z, 0-9 and -")
        if (self.serves is not None) != (self.kind == "standalone"):
            raise UserError(
                f"pool {self.name} is {self.kind} and serves is {self.serves!r}",
                why="A standalone pool is one version; a shared pool gets its versions from the catalog.",
                cure="give serves: tenant/model@3 to standalone pools only",
            )
        if self.serves and not isinstance(parse_model_name(self.serves).version, int):
            raise UserError(f"pool {self.name} serves {self.serves!r}", cure="name a version: tenant/model@3")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise UserError(f"pool {self.name}: min_replicas {self.min_replicas} > max_replicas {self.max_replicas}")
        for url in (*self.replicas, *([self.discover] if self.discover else [])):
            if not _URL.fullmatch(url):
                raise UserError(f"pool {self.name}: {url!r} is not http://host:port", cure="leave path and key out")

    @property
    def catalog_id(self) -> str:
        """Its name in the catalog."""
        return f"{POOL_PREFIX}{self.name}"

    def addresses(self) -> tuple[str, ...]:
        """The replicas now, sorted; a name that has no address (yet) adds none."""
        found = self.replicas if self.discover is None else (*self.replicas, *_resolved(self.discover))
        return tuple(sorted(set(found)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """The whole file."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    pools: tuple[Pool, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [pool.name for pool in self.pools]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"the fleet names a pool twice: {', '.join(sorted(twice))}")
        urls = [url for pool in self.pools for url in pool.replicas]
        if twice := {url for url in urls if urls.count(url) > 1}:
            raise UserError(f"a replica is in two pools: {', '.join(sorted(twice))}", why="It holds one model.")

    def shared(self, base: str) -> list[Pool]:
        """The shared pools of a base that take new requests."""
        return [p for p in self.pools if p.kind == "shared" and p.base == base and not p.drain]

    def standalone(self, label: str) -> list[Pool]:
        """The pools that hold one version whole and take new requests."""
        return [p for p in self.pools if p.serves == label and not p.drain]


def read_inventory(path: Path | None) -> Inventory:
    """The fleet of a file. Raises UserError naming the field."""
    if path is None:
        raise UserError(
            "FT_FLEET is not set", why="Nobody knows where the vLLM replicas are.", cure="see docs/vllm.md, Inventory"
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _ADAPTER.validate_json(json.dumps({} if document is None else document, default=str))
    except OSError as error:
        raise UserError(f"the fleet file {path} cannot be read: {error.strerror}", cure="check FT_FLEET") from None
    except yaml.YAMLError as error:
        raise UserError(f"the fleet file {path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"the fleet file {path}: {where}: {first['msg']}", cure="see docs/vllm.md, Inventory") from None


_ADAPTER = TypeAdapter(Inventory)


def _resolved(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return
    for _family, _type, _protocol, _name, address in found:
        host = str(address[0])
        yield f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
