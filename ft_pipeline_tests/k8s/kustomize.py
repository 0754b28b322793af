"""What of kustomize the folders of k8s/ use: resources, and JSON patches by kind and name. Anything else is an error."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

KNOWN = {"apiVersion", "kind", "resources", "patches"}


def built(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(said) <= KNOWN, f"{folder}: {set(said) - KNOWN} is not resolved here"
    objects: list[dict[str, Any]] = []
    for name in said["resources"]:
        path = (folder / name).resolve()
        objects += built(path) if path.is_dir() else [d for d in yaml.safe_load_all(path.read_text()) if d]
    objects = copy.deepcopy(objects)
    for patch in said.get("patches", ()):
        steps = yaml.safe_load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
        hit = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"])]  # fmt: skip
        assert len(hit) == 1, f"{folder}: {patch['target']} is {len(hit)} objects"
        for step in steps:
            _patched(hit[0], step)
    return objects


def _patched(made: Any, step: dict[str, Any]) -> None:
    assert step["op"] in ("add", "replace"), step
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].strip("/").split("/")]
    for part in way:
        made = made[int(part)] if isinstance(made, list) else made[part]
    if isinstance(made, list):
        assert last == "-"
        made.append(step["value"])
        return
    assert step["op"] == "add" or last in made, f"nothing to replace at {step['path']}"
    made[last] = step["value"]
