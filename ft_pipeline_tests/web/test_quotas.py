"""Quotas as functions of limits and of what there is."""

from __future__ import annotations

import pytest

from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.web.quotas import admission, require_storage
from ft_pipeline.web.refusals import TooMany


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        (Limits(), {}),
        (Limits(queued_jobs=3), {"queued": 1, "paused": 1, "running": 9, "failed": 99}),
        (Limits(queued_jobs=None), {"queued": 10**6}),
        (Limits(concurrent_jobs=1), {"running": 1}),
    ],
)
def test_one_more_job_may_wait(limits, counts):
    admission(limits)(counts)


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        (Limits(queued_jobs=3), {"queued": 2, "paused": 1}),
        (Limits(queued_jobs=0), {}),
        (Limits(concurrent_jobs=0), {}),
    ],
)
def test_one_more_job_is_refused_for_good(limits, counts):
    with pytest.raises(TooMany) as refused:
        admission(limits)(counts)
    assert refused.value.code == "job_quota_exceeded"
    assert refused.value.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(("most", "new"), [(100, 40), (None, 10**12)])
def test_bytes_that_fit(most, new):
    require_storage(Limits(storage_bytes=most), stored_bytes=60, new_bytes=new)


@pytest.mark.parametrize(("most", "new"), [(100, 41), (0, 1)])
def test_bytes_that_do_not_fit(most, new):
    with pytest.raises(TooMany, match="bytes more than the 60 that are stored") as refused:
        require_storage(Limits(storage_bytes=most), stored_bytes=60, new_bytes=new)
    assert (refused.value.code, refused.value.headers) == ("storage_quota_exceeded", {"x-should-retry": "false"})
