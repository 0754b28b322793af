"""Events of a job as server-sent events: from where a client stopped to the end of the job, with a heartbeat in between."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool

from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.rows import JobEvent
from ft_pipeline.web.job_views import EVENT, event_view
from ft_pipeline.web.refusals import Refusal

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
"""Proxies cut connections on which nothing comes for 30 to 60 seconds."""
MOST_SECONDS = 1800.0
"""Then the stream ends without `[DONE]`: a client comes back with Last-Event-ID, and its key is looked at again."""
A_TIME = 200
DONE = "data: [DONE]\n\n"


def last_seen(last_event_id: str | None) -> int:
    """The number behind a Last-Event-ID, 0 without one. Raises Refusal."""
    if not last_event_id:
        return 0
    digits = last_event_id.removeprefix(EVENT)
    if not digits.isdecimal() or len(digits) > 18:
        raise Refusal(
            f"Last-Event-ID {last_event_id[:80]!r} is no id of an event", cure=f"{EVENT}123, as the stream sent it"
        )
    return int(digits)


async def stream(
    records: Records, job_id: str, *, after: int, stopping: threading.Event, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[str]:
    """Whatever happens after an event, as it happens; `[DONE]` when the job has ended and everything was sent.

    `stopping`: the process is to end, and the stream with it.
    """
    began = spoke = clock()
    while clock() - began < MOST_SECONDS and not stopping.is_set():
        ended, events = await run_in_threadpool(_look, records, job_id, after)
        for event in events:
            after, spoke = event.id, clock()
            yield _sent(event)
        if ended and len(events) < A_TIME:
            yield DONE
            return
        if len(events) < A_TIME:
            if clock() - spoke >= HEARTBEAT_SECONDS:
                spoke = clock()
                yield ": still here\n\n"
            await asyncio.sleep(LOOK_SECONDS)


def _look(records: Records, job_id: str, after: int) -> tuple[bool, list[JobEvent]]:
    """Whether the job had ended before the events were read: what comes with its end is then among them."""
    ended = records.job(job_id).has_ended
    return ended, records.events_after(job_id, after, limit=A_TIME)


def _sent(event: JobEvent) -> str:
    body = json.dumps(event_view(event).model_dump())
    return f"id: {EVENT}{event.id}\nevent: {event.type}\ndata: {body}\n\n"
