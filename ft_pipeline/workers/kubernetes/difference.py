"""What a cluster has that is other than the manifests say. Only fields that a manifest says are compared: a server fills in the rest."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ft_pipeline.workers.kubernetes.looking import Looking


def difference(cluster: Looking, objects: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[str]]]:
    """(object, `missing`, `same` or `other`, lines of a unified diff) for each of them. Raises ApiError."""
    for made in objects:
        of = f"{made['kind']}/{made['metadata']['name']}"
        found = cluster.object(made)
        if found is None:
            yield of, "missing", []
            continue
        lines = _lines(_seen(found, made), made)
        yield of, "other" if lines else "same", lines


def _seen(there: Any, said: Any) -> Any:
    """Of what is there, the part that is said; lists whole, row by row."""
    if isinstance(said, Mapping) and isinstance(there, Mapping):
        return {key: _seen(there[key], value) for key, value in said.items() if key in there}
    if isinstance(said, list) and isinstance(there, list):
        return [_seen(row, said[n]) if n < len(said) else row for n, row in enumerate(there)]
    return there


def _lines(there: Any, said: Any) -> list[str]:
    before, after = (yaml.safe_dump(document, sort_keys=True, width=120).splitlines() for document in (there, said))
    return list(difflib.unified_diff(before, after, "cluster", "manifest", lineterm="", n=2))
