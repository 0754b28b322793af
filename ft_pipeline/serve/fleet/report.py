"""What one look at the fleet found and did: for people, for JSON, and kept in FT_HOME for the next command."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaReport:
    """One replica."""

    url: str
    state: str
    """ok, repaired, drifted (something is to do), refused (a step failed), fault (no step repairs it), down."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Name -> digest of its weights, `?` when its folder does not say."""
    done: tuple[str, ...] = ()
    """Steps that were taken, or would be: `load acme/router@3: missing`."""
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolReport:
    """One pool."""

    pool: str
    kind: str
    base: str
    wanted: Mapping[str, str]
    refused: Mapping[str, str]
    """Versions in production that it does not serve, and why."""
    replicas: tuple[ReplicaReport, ...]
    idle: bool
    """True when nothing in production stands on it: it may be taken away."""
    removed: tuple[str, ...] = ()
    """Folders of adapters that nobody names any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetReport:
    """The fleet at a time."""

    at: str
    """UTC, ISO 8601."""
    acted: bool
    """False for a look that changed nothing."""
    pools: tuple[PoolReport, ...]
    unnamed_since: Mapping[str, float] = field(default_factory=dict)
    """Folder of an adapter -> Unix seconds since when no replica names it."""

    @property
    def healthy(self) -> bool:
        """True when every replica is as the catalog says and nothing was refused."""
        replicas = [replica for pool in self.pools for replica in pool.replicas]
        return all(r.state in ("ok", "repaired") for r in replicas) and not any(p.refused for p in self.pools)


def as_json(report: FleetReport) -> str:
    """With `healthy`, for scripts."""
    return json.dumps({"healthy": report.healthy, **asdict(report)}, indent=1, sort_keys=True)


def keep(report: FleetReport, path: Path) -> None:
    """Writes it atomically: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(as_json(report) + "\n", encoding="utf-8")
    draft.replace(path)


def kept(path: Path) -> FleetReport | None:
    """The last one; None when there is none that can be read."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        document.pop("healthy", None)
        return TypeAdapter(FleetReport).validate_python(document)
    except (OSError, ValueError, ValidationError, AttributeError):
        return None
