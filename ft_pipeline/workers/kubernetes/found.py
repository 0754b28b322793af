"""What the checks share: the form of a finding, patterns of the API, and looks into documents that may be of any shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Found = tuple[str, str, str]
"""Field, what is wrong with it, the cure. `advice: ...` as the cure: it works and should not be signed."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
QUANTITY = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|e[0-9]+)?")


def part(document: Any, *steps: str) -> Mapping[str, Any]:
    """The mapping at the end of these keys; empty where there is none."""
    for step in steps:
        document = document.get(step) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def rows(document: Any, *steps: str) -> list[Mapping[str, Any]]:
    """The mappings of the list at the end of these keys."""
    *way, last = steps
    found = part(document, *way).get(last)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
