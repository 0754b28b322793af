"""`doctor`: checks the installation, GPU, store, database, cluster; says what is missing and the cure. `catalog`: rebuild the index."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ft_pipeline import settings
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.errors import FtError
from ft_pipeline.settings import PROJECT, Settings

Finding = tuple[str, str, str]
"""State (`ok`, `missing`, `optional`), what was seen, the cure."""


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Check this installation and what it is connected to. Exit 1 when something needed is missing."""
    where = settings.load()
    rows = [
        {"check": name, "state": s, "seen": seen, "cure": cure}
        for name, check in CHECKS.items()
        for s, seen, cure in check(where)
    ]
    table(rows, as_json=as_json)
    if any(row["state"] == "missing" for row in rows):
        raise click.exceptions.Exit(1)


def _python(_where: Settings) -> Iterator[Finding]:
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield ("ok" if good else "missing", sys.version.split()[0], "" if good else "use Python 3.11 to 3.13")


def _packages(_where: Settings) -> Iterator[Finding]:
    lock = PROJECT / "requirements.lock"
    pins = (
        dict(line.split("==") for line in lock.read_text(encoding="utf-8").split() if "==" in line)
        if lock.is_file()
        else {}
    )
    wrong = []
    for name, version in pins.items():
        try:
            there = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            there = "none"
        if there != version:
            wrong.append(f"{name} {there} (locked {version})")
    if wrong:
        yield "missing", f"{len(wrong)} of {len(pins)} differ: {', '.join(wrong[:4])}", "make setup"
    else:
        yield (
            "ok",
            f"{len(pins)} locked packages as locked" if pins else "no lock file here: installed as a package",
            "",
        )


def _gpu(_where: Settings) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}", ""
    else:
        yield (
            "optional",
            f"no CUDA device (torch {torch.__version__}); the CPU is used",
            "install a CUDA build of torch on a GPU machine",
        )


def _disk(where: Settings) -> Iterator[Finding]:
    folder = next(p for p in (where.home, *where.home.parents) if p.exists())
    free_gib = shutil.disk_usage(folder).free / (1 << 30)
    yield (
        "ok" if free_gib > 2 else "missing",
        f"{free_gib:.1f} GiB free at {folder}",
        "" if free_gib > 2 else "free some space or set FT_HOME",
    )


def _store(where: Settings) -> Iterator[Finding]:
    from ft_pipeline.store.artifacts import open_store

    try:
        count = sum(1 for _ in open_store(where).all())
    except FtError as error:
        yield "missing", error.what, error.cure
    else:
        yield "ok", f"{count} artifacts at {where.store_uri}", ""


def _catalog(where: Settings) -> Iterator[Finding]:
    from ft_pipeline.store.catalog import open_catalog

    try:
        count = len(open_catalog(where).models())
    except FtError as error:
        yield "missing", error.what, error.cure
    else:
        yield "ok", f"{count} registered versions at {where.catalog_url.split('@')[-1]}", ""


def _signing(where: Settings) -> Iterator[Finding]:
    there = where.signing_key.is_file()
    yield (
        "ok" if there else "optional",
        str(where.signing_key),
        "" if there else "made at the first registration; FT_SIGNING_KEY names your own",
    )


def _cluster(_where: Settings) -> Iterator[Finding]:
    there = (Path.home() / ".kube" / "config").is_file() or Path(
        "/var/run/secrets/kubernetes.io/serviceaccount"
    ).is_dir()
    yield (
        "ok" if there else "optional",
        "a kubeconfig is here" if there else "no cluster is set up; jobs run as local processes",
        "" if there else "kubectl config",
    )


def _vllm(_where: Settings) -> Iterator[Finding]:
    there = importlib.util.find_spec("vllm") is not None
    yield (
        "ok" if there else "optional",
        "installed" if there else "not installed; the embedded server is used",
        "" if there else "pip install 'ft-pipeline[vllm]'",
    )


CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "python": _python,
    "packages": _packages,
    "gpu": _gpu,
    "disk": _disk,
    "store": _store,
    "catalog": _catalog,
    "signing key": _signing,
    "cluster": _cluster,
    "vllm": _vllm,
}


@click.group()
def catalog() -> None:
    """The SQL index over the store."""


@catalog.command()
def rebuild() -> None:
    """Index every artifact of the store again, for example after the catalog was lost."""
    from ft_pipeline.resources import open_house

    house = open_house()
    console.print(f"{house.catalog.rebuild(house.store):,} artifacts indexed")
