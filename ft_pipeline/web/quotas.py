"""What a tenant may have at once: pure functions of its limits and of what there is. A quota does not pass by waiting, so clients do not retry."""

from __future__ import annotations

from collections.abc import Mapping

from ft_pipeline.store.platform.jobs import Admission
from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.web.refusals import TooMany

NO_RETRY = {"x-should-retry": "false"}
WAITING = ("queued", "paused")


def admission(limits: Limits) -> Admission:
    """For Records.submit: raises TooMany (job_quota_exceeded) when one more job has no place in the tenant's queue.

    More jobs than may run at once are no reason: they wait. Nothing may wait where nothing may run.
    """

    def admit(counts: Mapping[str, int]) -> None:
        waiting = sum(counts.get(status, 0) for status in WAITING)
        if limits.concurrent_jobs == 0:
            raise _refused("no job of this tenant may run", "job_quota_exceeded")
        if limits.queued_jobs is not None and waiting >= limits.queued_jobs:
            raise _refused(
                f"{waiting} jobs wait or are paused, and {limits.queued_jobs} may", "job_quota_exceeded",
                cure="let some end, cancel some, or ask whoever runs the platform for more",
            )  # fmt: skip

    return admit


def require_storage(limits: Limits, *, stored_bytes: int, new_bytes: int) -> None:
    """Raises TooMany (storage_quota_exceeded) when the tenant's files would have more bytes than they may."""
    if limits.storage_bytes is not None and stored_bytes + new_bytes > limits.storage_bytes:
        raise _refused(
            f"{new_bytes:,} bytes more than the {stored_bytes:,} that are stored, and {limits.storage_bytes:,} may be",
            "storage_quota_exceeded",
            cure="delete files that no job needs, or ask whoever runs the platform for more",
        )


def _refused(what: str, code: str, *, cure: str = "ask whoever runs the platform") -> TooMany:
    return TooMany(what, code=code, why="It is a quota of your tenant.", cure=cure, headers=NO_RETRY)
