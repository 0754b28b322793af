"""What the gateway counts, under the names of the embedded server; and the meter, told in a thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ft_pipeline.serve.gateway.authority import Meter
from ft_pipeline.serve.gateway.events import Counted
from ft_pipeline.serve.gateway.requests import Routed
from ft_pipeline.serve.metrics import Metrics, labels

logger = logging.getLogger(__name__)


class Counts(Metrics):
    """Counters since the start, by tenant and version."""

    def __init__(self, meter: Meter | None) -> None:
        super().__init__()
        self.retries, self.unmetered = 0, 0
        self._meter = meter
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="meter")

    def retried(self) -> None:
        """A request went on to another replica."""
        self.retries += 1

    def answered(self, routed: Routed, counted: Counted, *, started: float) -> None:
        """An answer that ended, in whatever way; `started` in monotonic seconds. Never waits for the meter."""
        seconds = time.monotonic() - started
        where = {"tenant": routed.caller.tenant, "model": routed.target.label}
        who = labels(**where)
        self._add("ft_requests_total", labels(**where, outcome=counted.outcome), 1)
        self._add("ft_prompt_tokens_total", who, counted.prompt_tokens)
        self._add("ft_completion_tokens_total", who, counted.completion_tokens)
        self._observe("ft_request_seconds", who, seconds)
        if counted.first_at is not None:
            self._observe("ft_first_token_seconds", who, counted.first_at - started)
        if self._meter and counted.prompt_tokens:
            self._thread.submit(self._tell, self._meter.add, tuple(where.values()), counted, seconds)

    def close(self) -> None:
        """Waits until the meter knows everything."""
        self._thread.shutdown(wait=True)

    def _tell(  # noqa: PLR0917 - as the executor hands them on
        self, add: Callable[..., None], who: tuple[str, ...], counted: Counted, seconds: float
    ) -> None:
        try:
            add(*who, prompt_tokens=counted.prompt_tokens, completion_tokens=counted.completion_tokens, seconds=seconds)
        except Exception:
            self.unmetered += 1
            logger.exception("usage of %s %s was not recorded: %s", *who, counted)
