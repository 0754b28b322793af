"""Times as HTTP gives them: whole Unix seconds of the rows' ISO text."""

from __future__ import annotations

from datetime import datetime


def unix(moment: str) -> int:
    """Seconds since 1970 of an ISO time."""
    return int(datetime.fromisoformat(moment).timestamp())


def unix_or_none(moment: str | None) -> int | None:
    """The same, None for None."""
    return None if moment is None else unix(moment)
