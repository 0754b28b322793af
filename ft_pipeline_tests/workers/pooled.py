"""Functions for the processes of test_pool; run as a program it maps without end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ft_pipeline.errors import DataError
from ft_pipeline.workers.pool import mapped

_factor = 1


def open_factor(factor: int) -> None:
    global _factor
    _factor = factor


def late_square(number: int) -> tuple[int, int]:
    """Later items are faster, so that order is not by chance."""
    time.sleep(0.3 if number < 3 else 0.05)
    return _factor * number * number, os.getpid()


def refuse_seven(number: int) -> int:
    if number == 7:
        raise DataError("seven", cure="another number")
    return number


def refuse() -> None:
    raise DataError("no such thing")


def die_at_two(number: int) -> int:
    if number == 2:
        os._exit(9)
    return number


def sleep_long(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(300)


if __name__ == "__main__":
    list(mapped(sleep_long, [sys.argv[1]] * 4, processes=2))
