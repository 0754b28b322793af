"""The API process: opens the platform, answers on a port until a signal, then finishes what runs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from ft_pipeline.serve.drain import Draining
from ft_pipeline.serve.listening import BACKLOG, listen
from ft_pipeline.settings import Settings
from ft_pipeline.web.app import build_api
from ft_pipeline.web.delivery import TIMEOUT_SECONDS, Sender
from ft_pipeline.web.platform import Platform, open_platform

DRAIN_SECONDS = 30
"""After SIGTERM, for answers that run. Streams of events are told to end at once (`app.state.stopping`): clients take them up again."""
KEEP_ALIVE_SECONDS = 65
"""Longer than the 60 s after which load balancers usually let a connection go: the other way round they meet closed ones."""


def serve_api(settings: Settings, *, host: str, port: int, with_server: bool = False) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises UserError when the port is taken, StorageError when the database does not answer."""
    listening = listen(host, port, setting="FT_API_PORT")
    try:
        platform = open_platform(settings)
        _log_to_stderr()
        app = build_api(platform, with_server=with_server)
        with _sending(platform):
            Stopping(app, _config(app, settings)).run(sockets=[listening])
    finally:
        listening.close()
    platform.records.close()
    platform.catalog.close()


@contextmanager
def _sending(platform: Platform) -> Iterator[None]:
    """Sends what webhooks are owed while the process runs."""
    sender = Sender(platform.records, private=platform.settings.webhooks_private)
    thread = threading.Thread(target=sender.run, name="webhooks", daemon=True)
    thread.start()
    yield
    sender.stopped.set()
    thread.join(TIMEOUT_SECONDS)


class Stopping(Draining):
    """Tells the application that it is to end, so that streams without an end do not use up the time of the others."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM and Ctrl-C."""
        self._app.state.stopping.set()
        super().handle_exit(sig, frame)


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    options: dict[str, Any] = {
        "log_level": "warning", "access_log": False, "server_header": False, "date_header": True,
        "proxy_headers": True, "forwarded_allow_ips": settings.api_proxies,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS, "timeout_graceful_shutdown": DRAIN_SECONDS, "backlog": BACKLOG,
    }  # fmt: skip
    return uvicorn.Config(app, **options)


def _log_to_stderr() -> None:
    """The access log and failures, a line each."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(logging.Formatter("%(message)s"))
    for name, level in {"ft_pipeline.access": logging.INFO, "ft_pipeline.web": logging.WARNING}.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(output)
        logger.propagate = False
