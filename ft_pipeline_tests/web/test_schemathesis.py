"""Schemathesis asks the API whatever its own description permits, and much that it forbids: never a 5xx, never an answer that the description lacks."""

from __future__ import annotations

import itertools
import os
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from ft_pipeline.web.app import build_api
from ft_pipeline.web.auth import Door
from ft_pipeline.web.platform import Platform

EXAMPLES = int(os.environ.get("FT_TEST_EXAMPLES") or 6)
"""Of each operation; a night of it: FT_TEST_EXAMPLES=500."""
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, ignored_auth,
]  # fmt: skip
pytestmark = pytest.mark.slow


def test_the_api_is_what_it_says_it_is(platform: Platform, key: Any) -> None:
    app = build_api(platform)
    # a clock that runs: keys that are not good are tried a thousand times here, from one address
    app.state.door = Door(platform, clock=map(float, itertools.count(step=60)).__next__)
    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", app)
    headers = {"Authorization": f"Bearer {key('acme', requests_a_minute=None)}"}
    found = {}
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:
        if wrong := _faults(operation, headers):
            found[operation.label] = wrong
    assert found == {}, "\n\n".join(f"{label}: {wrong}" for label, wrong in found.items())


def _faults(operation: Any, headers: dict[str, str]) -> str:
    """What the first wrong answer to an operation was, empty when every answer was right."""

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if isinstance(case.query, dict):
            case.query.pop("stream", None)  # an answer without an end
        case.call_and_validate(headers=headers, checks=CHECKS)

    try:
        ask()
    except (Failure, FailureGroup) as error:
        return str(error)[:1500]
    return ""
