"""Mirrors a model line into MLflow's model registry, one way, in a child process: a slow or broken MLflow is reported and blocks nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from ft_pipeline import settings as settings_module
from ft_pipeline.settings import NO_MLFLOW, Settings, child_environment
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json, sha256_json

TIMEOUT_SECONDS = 120
"""Importing MLflow takes 6 s idle and 20 s on a busy machine; making its SQLite tables 3-6 s more."""
LABEL_TAG = "ft.model"
ALIASED = ("staging", "production")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirrored:
    """What became of a mirroring."""

    ok: bool
    text: str
    """The link below the MLflow UI, or why there is none."""
    seconds: float


def mirror(catalog: Catalog, line: str, settings: Settings) -> Mirrored:
    """Brings every version of a line, its tags and its aliases into MLflow. Never raises because of MLflow.

    What was mirrored last is remembered beside the work files, so that an unchanged line costs nothing.
    """
    if settings.mlflow_uri == NO_MLFLOW:
        return Mirrored(ok=True, text=f"not mirrored: FT_MLFLOW is {NO_MLFLOW}", seconds=0.0)
    entries = [_entry(v) for v in catalog.models(line.partition("/")[0]) if v.line == line]
    memory = settings.work / "mlflow" / f"{mlflow_name(line)}.json"
    content = sha256_json([settings.mlflow_uri, entries])
    if memory.is_file() and (known := json.loads(memory.read_bytes()))["content"] == content:
        return Mirrored(ok=True, text=known["link"], seconds=0.0)
    begun = time.monotonic()
    ok, text = _run_child(entries, settings)
    if ok:
        write_atomic(memory, canonical_json({"content": content, "link": text}))
    return Mirrored(ok=ok, text=text, seconds=round(time.monotonic() - begun, 1))


def _run_child(entries: list[dict[str, Any]], settings: Settings) -> tuple[bool, str]:
    """True and the link, or False and the last line of what went wrong."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "ft_pipeline.register.registry", json.dumps(entries)],
            env=child_environment(settings), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"MLflow at {settings.mlflow_uri} did not answer within {TIMEOUT_SECONDS} s"
    said = (child.stderr if child.returncode else child.stdout).strip()
    return child.returncode == 0, said.splitlines()[-1] if said else f"MLflow ended with {child.returncode}"


def mlflow_name(line: str) -> str:
    """The name in MLflow, which allows no slash: `tenant.name`. No part of a line holds a dot, so it is unambiguous."""
    return line.replace("/", ".")


def write_mirror(entries: list[dict[str, Any]], uri: str) -> str:
    """Writes the versions of one line into an MLflow registry and returns the newest one's path below the MLflow UI."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    name = mlflow_name(entries[0]["line"])
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        model = client.create_registered_model(name, tags={"ft.line": entries[0]["line"]})
    known = {v.tags.get(LABEL_TAG): v for v in client.search_model_versions(f"name = '{name}'")}
    numbers = {e["model"]: _write_version(client, name, entry=e, known=known.get(e["model"])) for e in entries}
    wanted = {e["stage"]: numbers[e["model"]] for e in entries if e["stage"] in ALIASED}
    for alias, number in wanted.items():
        client.set_registered_model_alias(name, alias, number)
    for alias in set(model.aliases or {}) - set(wanted):
        client.delete_registered_model_alias(name, alias)
    return f"/#/models/{name}/versions/{numbers[entries[-1]['model']]}"


def _write_version(client: Any, name: str, *, entry: dict[str, Any], known: Any) -> str:
    """The number in MLflow of a version; its tags are brought up to date."""
    tags = {f"ft.{key}": str(value) for key, value in entry.items() if key not in ("source", "line")}
    if known is None:
        return client.create_model_version(name, entry["source"], tags=tags, description=entry["model"]).version
    for key, value in tags.items():
        if known.tags.get(key) != value:
            client.set_model_version_tag(name, known.version, key, value)
    return known.version


def _entry(version: ModelVersion) -> dict[str, Any]:
    shown = (
        "stage",
        "base_digest",
        "dataset_digest",
        "adapter_digest",
        "report_digest",
        "registered_digest",
        "recipe_sha256",
        "run_id",
    )
    facts = {name: value for name, value in asdict(version).items() if name in shown}
    return {"line": version.line, "model": version.label, "source": f"ft:adapter/{version.adapter_digest}", **facts}


def main(argv: list[str]) -> int:
    """The child: writes the mirror and says where it is on standard output."""
    sys.stdout.write(write_mirror(json.loads(argv[1]), settings_module.load().mlflow_uri) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
