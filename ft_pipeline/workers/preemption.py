"""A stop that loses nothing: SIGTERM or SIGINT sets a flag, the work ends after the present step, saves and exits 75."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

from ft_pipeline.errors import Interrupted

_early: StopRequest | None = None


class StopRequest:
    """Made first of all, before the heavy imports; asked between steps and in validation."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

    def leave(self, before: str) -> NoReturn:
        """Raises Interrupted where nothing was computed that is not kept: on the way to the first step, or right after saving."""
        self.asked = True
        raise Interrupted(
            f"stopped before {before}",
            why="What was computed before is kept.",
            cure="run the same command again: it resumes",
        )


def listen() -> None:
    """Hears a stop from now on, for the body that starts later: importing alone takes seconds."""
    global _early
    _early = StopRequest()


def stop_request() -> StopRequest:
    """The stop request of this process, with what it has heard since `listen`."""
    global _early
    heard, _early = _early, None
    return heard or StopRequest()
