"""The socket that a server of ours answers on, taken before anything slow starts."""

from __future__ import annotations

import socket

from ft_pipeline.errors import UserError

BACKLOG = 512


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """The bound socket. Raises UserError, naming the setting, when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol is named because asyncio turns Nagle's algorithm off only then: without it each answer took 40 ms more
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            cure=f"stop what listens there, or choose another port: --port or {setting}",
        ) from None
    return listening
