"""A stop that loses nothing: SIGTERM or SIGINT sets a flag, the loop ends after the present step, saves and exits 75."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Made first of all, before the heavy imports; asked between steps and in validation."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
