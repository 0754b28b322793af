"""Asks replicas in turn until one gives a first byte. After that byte there is no other try: the client may have seen it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx

from ft_pipeline.serve.fleet.replica import message_of
from ft_pipeline.serve.gateway.authority import Refused, unavailable
from ft_pipeline.serve.gateway.replicas import Replicas
from ft_pipeline.serve.gateway.requests import Routed
from ft_pipeline.serve.gateway.targets import Target

MOST_BROKEN = 2
"""Replicas that one request may be seen to break: a request that kills its server must not travel through the fleet."""
_AWAY = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_BROKE = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.CloseError)


@dataclass
class Opened:
    """An answer that has begun. `stack` ends the request at the replica: vLLM stops generating."""

    url: str
    chunks: AsyncIterator[bytes]
    stack: AsyncExitStack

    async def whole(self) -> bytes:
        """All of it."""
        return b"".join([chunk async for chunk in self.chunks])


@dataclass
class Turn:
    """One replica's failure to answer; the next one is asked."""

    url: str
    why: str
    broke: bool = False
    refused: bool = False


async def opened(routed: Routed, replicas: Replicas, retried: Callable[[], None]) -> Opened:
    """The first answer. Raises Refused: the replica's own 4xx, 503 when nobody answers, 504 when one is silent for too long."""
    turns: list[Turn] = []
    for url in replicas.order(routed.target):
        if sum(turn.broke for turn in turns) >= MOST_BROKEN:
            break
        if turns:
            retried()
        found = await _try(url, routed, replicas)
        if isinstance(found, Opened):
            return found
        turns.append(found)
    raise _nobody(turns, routed.target)


async def _try(url: str, routed: Routed, replicas: Replicas) -> Opened | Turn:
    """One replica. Whatever is not an answer closes the request."""
    async with AsyncExitStack() as stack:
        stack.enter_context(replicas.busy(url))
        try:
            return await _answer(url, routed, replicas, stack=stack)
        except (*_AWAY, *_BROKE) as error:
            replicas.lost(url, f"{type(error).__name__}: {error}")
            return Turn(url, type(error).__name__, broke=isinstance(error, _BROKE))
        except httpx.TimeoutException:
            raise Refused(504, "the replica was silent for too long", kind="server_error", code="timeout") from None


async def _answer(url: str, routed: Routed, replicas: Replicas, *, stack: AsyncExitStack) -> Opened | Turn:
    """What a replica says; with its first byte the stack passes to the answer."""
    content, kind = routed.for_vllm(replicas.base_name(url)), {"Content-Type": "application/json"}
    request = replicas.client.stream("POST", f"{url}{routed.asked.path}", content=content, headers=kind)
    answer = await stack.enter_async_context(request)
    if answer.status_code != 200:
        return _refusal(url, answer.status_code, await answer.aread())
    if not routed.asked.stream:
        return Opened(url, _of(await answer.aread()), stack.pop_all())
    chunks = answer.aiter_bytes()
    return Opened(url, _after(await anext(chunks, b""), chunks), stack.pop_all())


def _refusal(url: str, status: int, body: bytes) -> Turn:
    """Another replica's turn, or the client's fault, which every replica would find."""
    message = message_of(body)
    if status == 404 or (status == 400 and "could not be loaded" in message):
        return Turn(url, message, refused=True)  # its resolver found the adapter wanting
    if status >= 500:
        return Turn(url, f"{status} {message}", broke=status == 500)
    if status == 429:
        raise Refused(429, message, kind="rate_limit_error", code="queue_full", retry_after_seconds=1)
    raise Refused(status, message)


def _nobody(turns: list[Turn], target: Target) -> Refused:
    refused = [turn for turn in turns if turn.refused]
    if refused:
        return unavailable(
            f"{target.label} is not served: the replicas refuse its weights ({refused[-1].why}). "
            "Whoever runs the fleet sees why in `ft-pipeline fleet status`.",
            "adapter_refused",
            retry_after_seconds=30,
        )
    said = "; ".join(turn.why for turn in turns) or "its pool has no replica"
    return unavailable(f"no replica answers for {target.label}: {said}", "no_replica")


async def _of(whole: bytes) -> AsyncIterator[bytes]:
    yield whole


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
