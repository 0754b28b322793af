"""File ids inside a tenant's recipe: every place of a recipe that names a URI may name a file of the tenant's instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

FILE_ID = re.compile(r"file-[A-Za-z0-9_-]{1,64}")
PLACES = frozenset({"uri", "words", "probes"})
"""Keys of a recipe whose value says where something lies."""


def with_places(section: Any, placed: Callable[[str], str]) -> Any:
    """The same values, `file-...` replaced by where that file lies."""
    if isinstance(section, Mapping):
        return {
            key: placed(value) if key in PLACES and _is_file(value) else with_places(value, placed)
            for key, value in section.items()
        }
    if isinstance(section, list | tuple):
        return [with_places(value, placed) for value in section]
    return section


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and bool(FILE_ID.fullmatch(value))
