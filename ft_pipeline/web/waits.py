"""What each queued job waits for, as the queue itself would decide it now: read at most once a second for all who ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from ft_pipeline.billing.budget import holds
from ft_pipeline.jobs.queue import Rules, decide
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.rows import TrainingJob
from ft_pipeline.web.platform import Platform

FRESH_SECONDS = 1.0


class Waits:
    """Reasons of one platform."""

    def __init__(self, platform: Platform, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._platform, self._clock = platform, clock
        self._lock = threading.Lock()
        self._known: Mapping[str, str] = {}
        self._until = 0.0

    def of(self, job: TrainingJob) -> str | None:
        """In words; None for a job that is not queued, or that came into the queue this second."""
        if job.status != "queued":
            return None
        with self._lock:
            if self._clock() >= self._until:
                self._known = self._read()
                self._until = self._clock() + FRESH_SECONDS
            return self._known.get(job.id)

    def _read(self) -> Mapping[str, str]:
        """As if no place were free: what nothing else keeps back waits for one, and is told how many go before it."""
        records = self._platform.records
        hold = holds(records, prices=read_prices(self._platform.settings.prices), moment=now())
        return decide(records.queue_view(), Rules(places=0, hold=hold), now=datetime.now(UTC)).waits
