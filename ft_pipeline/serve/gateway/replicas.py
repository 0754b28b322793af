"""The replicas of the fleet as the gateway knows them now: who answers, under which name the base, and how many requests each has."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ft_pipeline.errors import FtError
from ft_pipeline.serve.fleet.inventory import Inventory, read_inventory
from ft_pipeline.serve.fleet.replica import Replica, Seen
from ft_pipeline.serve.gateway.affinity import in_order
from ft_pipeline.serve.gateway.targets import Target

LOOK_SECONDS = 2.0
logger = logging.getLogger(__name__)


@dataclass
class Replicas:
    """State of one event loop."""

    inventory: Inventory
    client: httpx.AsyncClient
    file: Path | None = None
    """Read again when it changes (a ConfigMap, an operator)."""
    seen: dict[str, Seen] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    _addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _read: int = 0

    async def look(self) -> None:
        """One look at every replica."""
        await self._reread()
        pools = self.inventory.pools
        found = await asyncio.gather(*(asyncio.to_thread(pool.addresses) for pool in pools))
        addresses = {pool.name: urls for pool, urls in zip(pools, found, strict=True)}
        urls = sorted({url for row in addresses.values() for url in row})
        seen = await asyncio.gather(*(Replica(url, self.client).seen() for url in urls))
        self._addresses, self.seen = addresses, {row.url: row for row in seen}

    async def watch(self) -> None:
        """Looks for ever; a look that fails is told and the next one comes."""
        while True:
            try:
                await self.look()
            except (FtError, OSError) as error:
                logger.error("the fleet could not be looked at: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    def order(self, target: Target) -> list[str]:
        """The replicas to ask, best first; those that did not answer lately come last, not never."""
        urls = [url for pool in target.pools for url in self._addresses.get(pool.name, ())]
        preferred = in_order(target.weights, urls, self.in_flight)
        return sorted(preferred, key=lambda url: bool(self.trouble(url)))

    def trouble(self, url: str) -> str:
        """Empty for a replica that answered the last look and every request since."""
        return self.seen[url].trouble if url in self.seen else "not looked at yet"

    def lost(self, url: str, why: str) -> None:
        """A request found it dead before the next look does."""
        self.seen[url] = Seen(url=url, trouble=why)

    def base_name(self, url: str) -> str:
        """The name of its base."""
        return self.seen[url].base_name if url in self.seen else ""

    @property
    def num_alive(self) -> int:
        """Replicas that answer."""
        return sum(not row.trouble for row in self.seen.values())

    @contextmanager
    def busy(self, url: str) -> Iterator[None]:
        """Counts a request."""
        self.in_flight[url] += 1
        try:
            yield
        finally:
            self.in_flight[url] -= 1

    async def _reread(self) -> None:
        changed = self.file.stat().st_mtime_ns if self.file else 0
        if self.file and changed != self._read:
            self.inventory = await asyncio.to_thread(read_inventory, self.file)
            self._read = changed
