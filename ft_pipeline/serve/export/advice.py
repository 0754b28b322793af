"""Which export pays: hardware, software and accuracy side by side, from advice.yaml with its sources, joined with what was measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ft_pipeline.errors import UserError, did_you_mean
from ft_pipeline.gate.artifact import read_report
from ft_pipeline.serve.artifact import export_head, export_report_head
from ft_pipeline.serve.export.exporting import FIDELITY, reports_of
from ft_pipeline.serve.export.formats import FORMATS
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog

DATA = Path(__file__).with_name("advice.yaml")
BILLION_70 = 70
"""The model whose size the table shows, in billions of weights."""


def rows(gpu: str | None, measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a format, the best advice first. `measured`: what `measured` below gives. Raises UserError for an unknown GPU."""
    capability = None if gpu is None else capability_of(gpu)
    made = [_row(name, capability, measured.get(name)) for name in FORMATS]
    order = ("yes", "for memory", "measure", "no")
    return sorted(made, key=lambda row: next(i for i, word in enumerate(order) if row["advice"].startswith(word)))


def lessons() -> list[str]:
    """What the table teaches, a sentence each, and where its entries come from."""
    data = _data()
    return [*data["lessons"], *(f"[{name}] {url}" for name, url in data["sources"].items())]


def capability_of(gpu: str) -> float:
    """Compute capability of a kind of GPU: `h100`, or a name of a placement such as `h100-80gb`. Raises UserError."""
    known = _data()["gpus"]
    name = gpu.lower().partition("-")[0]
    if name not in known:
        raise UserError(f"no GPU {gpu!r} in the advice table: {did_you_mean(name, known)}")
    return float(known[name])


def measured(line: str, *, catalog: Catalog, store: Store) -> dict[str, dict[str, Any]]:
    """Format -> KL, top-1, perplexity ratio, MB and verdict of the newest export of a model line."""
    found: dict[str, dict[str, Any]] = {}
    newest: dict[str, str] = {}
    for manifest, report in reports_of(line, catalog, store):
        name, made_at = manifest.config["format"], report.manifest.created_at
        if made_at >= newest.get(name, ""):
            newest[name] = made_at
            found[name] = {
                **json.loads(report.file(FIDELITY).read_bytes()), "verdict": str(read_report(report).verdict),
                "mb": manifest.size_bytes / 1e6,
            }  # fmt: skip
    return found


def export_row(line: str, name: str, *, catalog: Catalog, store: Store) -> dict[str, Any]:
    """What became of a line's newest export of a format, for a table."""
    made = store.recorded(catalog.head(line, export_head(name)))
    judged = store.fetch(catalog.head(line, export_report_head(name)))
    report, fidelity = read_report(judged), json.loads(judged.file(FIDELITY).read_bytes())
    version = next((v for v in reversed(catalog.models()) if v.adapter_digest == made.digest), None)
    return {
        "format": name, "verdict": str(report.verdict), "version": version.label if version else "not registered",
        "stage": version.stage if version else "-", "mb": round(made.size_bytes / 1e6, 2),
        "seconds": made.execution.get("seconds"), "kl": fidelity["kl"], "top1": fidelity["top1"],
        "perplexity_ratio": fidelity["perplexity_ratio"], "tokens": fidelity["tokens"], "why": report.reason,
    }  # fmt: skip


def _row(name: str, capability: float | None, found: Mapping[str, Any] | None) -> dict[str, Any]:
    about = _data()["formats"][name]
    hardware = _hardware(about, capability)
    here = (
        f"{found['verdict']}: KL {found['kl']:.3g}, top-1 {found['top1']:.1%}, perplexity {found['perplexity_ratio'] - 1:+.1%}, {found['mb']:.3g} MB"
        if found else "not measured"
    )  # fmt: skip
    return {
        "format": name, "advice": _advice(name, hardware, found), "gb_of_70b": BILLION_70 * FORMATS[name].bits // 8,
        "hardware": hardware, "software": about["software"], "accuracy": about["accuracy"], "measured": here,
        "sources": ", ".join(about["sources"]),
    }  # fmt: skip


def _hardware(about: Mapping[str, Any], capability: float | None) -> str:
    if capability is None:
        told = [f"multiplies in it: {_range(about['native'])}", f"unpacks it: {_range(about['runs'])}"]
        return "; ".join(told)
    if _within(about["native"], capability):
        return "multiplies in it"
    return "unpacks it to 16 bits" if _within(about["runs"], capability) else "does not run it"


def _advice(name: str, hardware: str, found: Mapping[str, Any] | None) -> str:
    if found and found["verdict"] != "PASS":
        return f"no: {found['verdict']} for this model"
    if hardware == "does not run it":
        return "no: the GPU does not run it"
    if name == "merged":
        return "yes: for one hot adapter on replicas of its own; many adapters share a base better"
    if not found:
        return "measure it: export it, and its gates and fidelity decide"
    if hardware == "unpacks it to 16 bits":
        return "for memory and small batches, not for throughput"
    return "yes, where the GPU multiplies in it" if ";" in hardware else "yes: all three layers agree"


def _within(span: Mapping[str, float], capability: float) -> bool:
    return bool(span) and span["from"] <= capability < span.get("below", float("inf"))


def _range(span: Mapping[str, float]) -> str:
    if not span:
        return "no GPU"
    return f"from {span['from']}" + (f", below {span['below']}" if "below" in span else "")


@cache
def _data() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(DATA.read_text(encoding="utf-8"))
