"""The rooms, the doors and the dependency rule of the architecture, held by the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ft_pipeline"
FLOW = ["acquire", "curate", "encode", "finetune", "gate", "register", "serve"]
FURNITURE = ["billing", "jobs", "judging", "planning", "store", "sweeps", "web", "workers"]
KNOWS_DAGSTER = {
    "definitions.py",
    "automation.py",
    "resources.py",
    "partitions.py",
    "costs.py",
    "runs.py",
    "cli/launch.py",
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "migrations/versions" not in p.as_posix())


def imports(path: Path) -> list[str]:
    """Every dotted name in the import statements of a file, `from a import b` as both a and a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_rooms_sort_in_the_order_of_the_flow():
    rooms = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
    assert rooms == sorted([*FLOW, *FURNITURE, "cli"])
    assert sorted(FLOW) == FLOW


@pytest.mark.parametrize("path", FILES, ids=inside)
def test_a_file_is_short_and_says_what_it_is_for(path):
    text = path.read_text()
    assert text.count("\n") <= 300, "over 300 lines: it is two files"
    assert ast.get_docstring(ast.parse(text)), "the first sentence is missing"
    assert text.isascii(), "ASCII only"


@pytest.mark.parametrize("path", FILES, ids=inside)
def test_only_doors_know_dagster(path):
    if inside(path) in KNOWS_DAGSTER or path.name == "assets.py":
        return
    assert not [name for name in imports(path) if name.split(".")[0] in ("dagster", "dagster_pipes")]


@pytest.mark.parametrize("path", [p for p in FILES if inside(p).split("/")[0] in FLOW], ids=inside)
def test_data_flows_down_and_imports_look_up(path):
    room = inside(path).split("/")[0]
    for name in imports(path):
        package, *rest = name.split(".")
        if package != "ft_pipeline" or not rest or rest[0] not in FLOW or rest[0] == room:
            continue
        assert FLOW.index(rest[0]) < FLOW.index(room), f"{room} may not look downstream at {name}"
        assert rest[1:2] == ["artifact"], f"{room} may import {rest[0]}.artifact, not {name}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if inside(p).split("/")[0] in ("judging", "store", "workers")], ids=inside
)
def test_furniture_imports_no_room(path):
    rooms = {*FLOW, "web", "cli"}
    assert not [n for n in imports(path) if n.startswith("ft_pipeline.") and n.split(".")[1] in rooms]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("absent", "module"),
    [
        ("dagster", "ft_pipeline.encode.main"),
        ("dagster", "ft_pipeline.encode.reference_main"),
        ("dagster", "ft_pipeline.finetune.main"),
        ("dagster", "ft_pipeline.gate.main"),
        ("torch", "ft_pipeline.definitions"),
        ("transformers", "ft_pipeline.definitions"),
        ("mlflow", "ft_pipeline.definitions"),
        ("polars", "ft_pipeline.definitions"),
        ("torch", "ft_pipeline.serve.app"),
        ("torch", "ft_pipeline.cli.main"),
    ],
)
def test_a_module_loads_without(absent, module):
    code = f"import sys; sys.modules['{absent}'] = None; import {module}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_lock_file_names_versions_and_no_hosts():
    lines = (PACKAGE.parent / "requirements.lock").read_text().split()
    assert len(lines) > 100
    assert all("==" in line and "://" not in line and "@" not in line for line in lines)
