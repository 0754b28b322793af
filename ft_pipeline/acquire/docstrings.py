"""Reads the documentation that is inside a Python installation: docstrings of the standard library and of installed packages.

The standard library is imported, in a child process of its own (`python -m ft_pipeline.acquire.docstrings FILE`), because half of it is
written in C and because an import must leave no trace here. Packages are only parsed, never imported: 4 MB of prose in about 8 s.
Licences: standard library and `pydoc_data.topics` PSF-2.0; numpy, pandas, scipy, scikit-learn, networkx BSD-3-Clause; polars and
SQLAlchemy MIT; matplotlib its own PSF-based licence.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ft_pipeline.errors import FtError

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "polars", "scipy", "sklearn", "sqlalchemy")
CHARACTERS_PER_PACKAGE = 520_000
SKIPPED_MODULES = frozenset(
    # They print, open a browser or a window, need a terminal, or hold no documentation.
    # distutils is setuptools' own copy, or gone (Python 3.12).
    {"__main__", "antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "tkinter", "turtle", "turtledemo"}
)  # fmt: skip
SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "_vendor", "externals"})
SECTION_SECONDS = 60


class Docstring(NamedTuple):
    """What is written about one public name."""

    module: str
    """The top-level module that the text was written in: for an inherited docstring the module of the ancestor."""
    name: str
    """The public name it is shown for, dotted."""
    text: str
    """Cleaned of indentation; empty for a name that nobody documented."""


def of_standard_library() -> list[Docstring]:
    """The docstrings of every public name of the standard library, inherited ones included, sorted by name (about 10,000)."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "docstrings.json"
        child = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "ft_pipeline.acquire.docstrings", str(target)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=SECTION_SECONDS,
            check=False,
        )  # fmt: skip
        if child.returncode:
            raise FtError(
                f"reading the standard library's docstrings failed with exit code {child.returncode}: {child.stderr[-500:]}",
                cure="run `python -m ft_pipeline.acquire.docstrings /tmp/out.json` to see where",
            )
        return [Docstring(*row) for row in json.loads(target.read_text(encoding="utf-8"))]


def of_package(name: str, *, characters: int = CHARACTERS_PER_PACKAGE) -> list[str]:
    """Docstrings of a package's source files in order of path, about as many as fill the budget. Empty when it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return []
    found: list[str] = []
    length = 0
    for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
        texts = _parsed(path) if SKIPPED_FOLDERS.isdisjoint(path.parts) else []
        found += texts
        length += sum(len(prose(text)) for text in texts)
        if length > characters:
            break
    return found


def prose(text: str) -> str:
    """The paragraphs of running text in a docstring, each on one line; examples, tables, headings and directives are left out."""
    return "\n".join(paragraphs(text))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of at least 8 words that are prose, white space collapsed."""
    lines = (" ".join(block.split()) for block in text.split("\n\n"))
    return [line for line in lines if len(line.split()) >= 8 and not _is_markup(line)]


def first_paragraph(text: str) -> str:
    """The first paragraph on one line: what a list of names shows."""
    return " ".join(text.strip().split("\n\n")[0].split())


def _is_markup(line: str) -> bool:
    return line.startswith((".. ", ":", "|", "* ", "- ")) or any(
        mark in line for mark in (">>>", "---", "===", "``.", "\\")
    )


def _parsed(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template or a file for another Python: it documents nothing here
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def _write(target: Path) -> None:
    """The child: imports, reads, writes one JSON file."""
    warnings.simplefilter("ignore")
    os.chdir(target.parent)
    rows = {row.name: row for module in _modules() for row in _public_names(module)}
    target.write_text(json.dumps([rows[name] for name in sorted(rows)]), encoding="utf-8")


def _modules() -> Iterator[ModuleType]:
    """The importable public modules and packages of the standard library, in order of name."""
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in SKIPPED_MODULES:
            continue
        module = _imported(name)
        if module is None:
            continue
        yield module
        for path in sorted(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []))):
            if not path.startswith("_") and path not in SKIPPED_MODULES and (inner := _imported(f"{name}.{path}")):
                yield inner


def _imported(name: str) -> ModuleType | None:
    """The module, or None where this platform or build does not have it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(name)
    except (Exception, SystemExit):  # noqa: BLE001  a module for another platform raises whatever it likes; it has no documentation here
        return None


def _public_names(module: ModuleType) -> Iterator[Docstring]:
    top = module.__name__.split(".")[0]
    for name, thing in sorted(vars(module).items()):
        written_in = getattr(thing, "__module__", None) or top
        if name.startswith("_") or not (inspect.isroutine(thing) or inspect.isclass(thing)) or _top(written_in) != top:
            continue
        yield Docstring(top, f"{top}.{name}", _clean(getattr(thing, "__doc__", None)))
        if inspect.isclass(thing):
            yield from _members(thing, top)


def _members(owner: type, top: str) -> Iterator[Docstring]:
    """Public methods and properties, each with the docstring that `help()` shows and the module which wrote it."""
    for name in sorted(dir(owner)):
        if name.startswith("_") or not _is_documentable(inspect.getattr_static(owner, name)):
            continue
        texts = [(_top(base.__module__), text) for base in owner.__mro__ if (text := _doc_of_member(base, name))]
        module, text = texts[0] if texts else (top, "")
        yield Docstring(module, f"{top}.{owner.__name__}.{name}", text)


def _doc_of_member(base: type, name: str) -> str:
    member = vars(base).get(name)
    return _clean(getattr(member, "__doc__", None)) if _is_documentable(member) else ""


def _is_documentable(member: object) -> bool:
    return inspect.isroutine(member) or isinstance(member, property | classmethod | staticmethod)


def _top(module: str) -> str:
    return module.split(".")[0].lstrip("_")


def _clean(text: object) -> str:
    return inspect.cleandoc(text) if isinstance(text, str) else ""


if __name__ == "__main__":
    _write(Path(sys.argv[1]).resolve())
