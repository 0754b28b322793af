"""Runs the HTTP server; on SIGTERM or Ctrl-C it stops accepting, finishes the answers that run, and returns."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_until_told(app: FastAPI, listening: socket.socket, *, drain_seconds: int) -> None:
    """Serves on a bound socket until a signal, then drains. A second Ctrl-C does not wait for the answers."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=drain_seconds)
    Draining(config).run(sockets=[listening])


class Draining(uvicorn.Server):
    """uvicorn raises the signal again after its shutdown, so that a drained process would end as a killed one (-15, not 0)."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The handlers during the run; nothing is raised afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
