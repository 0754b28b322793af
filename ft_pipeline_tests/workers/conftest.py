"""What a scenario leaves in the JUnit report, for the table of scenarios."""

from __future__ import annotations

import pytest

from ft_pipeline_tests.workers import scenes


@pytest.fixture(autouse=True)
def _recorded(record_property):
    scenes.record.tell = record_property
    yield
    scenes.record.tell = None
