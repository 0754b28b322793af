"""The inference server of this machine as the API sees it: one that answers already, or one that is started with the first question."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager

import httpx

from ft_pipeline.errors import UserError
from ft_pipeline.serve.client import running_server
from ft_pipeline.serve.gateway.authority import unavailable
from ft_pipeline.settings import Settings

SILENT_SECONDS = 300.0
"""Between two bytes of an answer: a long prompt on a small machine."""


class LocalServer:
    """Use inside `life`."""

    def __init__(self, settings: Settings, *, may_start: bool) -> None:
        self._settings, self._may_start = settings, may_start
        self._running: AbstractContextManager[str] | None = None
        self._url = f"http://127.0.0.1:{settings.serve_port}"
        self._starting: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()
        # a thread of its own that lives as long as we do: Linux ends a child when the thread that started it ends (PR_SET_PDEATHSIG)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-server")
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(SILENT_SECONDS, connect=2.0), trust_env=False, follow_redirects=False,
            limits=httpx.Limits(max_connections=512, max_keepalive_connections=64),
        )  # fmt: skip

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """Afterwards a server that was started is stopped."""
        try:
            yield
        finally:
            await self.client.aclose()
            if self._starting is not None:
                await asyncio.wait([self._starting])
            await self.lost()
            self._thread.shutdown()

    async def url(self) -> str:
        """Its root; where we may, one is started and this waits until it answers (15-20 s). Raises Refused (503) when it does not start."""
        if self._may_start and self._running is None:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(self._start())
            # who leaves while it starts must not leave a server behind that nobody stops
            await asyncio.shield(self._starting)
        return self._url

    async def lost(self) -> None:
        """It does not answer, or is needed no more: what we started is ended, and the next question starts another."""
        async with self._one:
            running, self._running = self._running, None
            if running is not None:
                await self._in_thread(lambda: running.__exit__(None, None, None))

    async def _start(self) -> None:
        async with self._one:
            running = running_server(self._settings, self._settings.serve_port)
            try:
                await self._in_thread(running.__enter__)
            except UserError as error:
                raise unavailable(str(error), "no_server", retry_after_seconds=30) from error
            self._running = running

    async def _in_thread(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)
