"""A job's row."""

from __future__ import annotations

import pytest

from ft_pipeline.store.platform.rows import TrainingJob


@pytest.fixture
def a_job() -> TrainingJob:
    empty = dict.fromkeys(TrainingJob.__dataclass_fields__)
    said = {"id": "ftjob-1", "tenant": "acme", "line": "acme/a", "status": "queued", "attempt": 1, "tier": 10}
    return TrainingJob(**{**empty, **said, "request": {}, "placement": {}, "estimate": {}})  # type: ignore[arg-type]
