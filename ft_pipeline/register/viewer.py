"""The pages a person reads: the lineage of a model, and the whole of an evidence bundle. Self-contained, no scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ft_pipeline.register.chain import manifests_of
from ft_pipeline.register.graph import lineage_svg, size
from ft_pipeline.register.html_page import document, paragraph, section, table, wide
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import ModelVersion, Transition
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.manifest import Manifest, Ref
from ft_pipeline.store.paths import lineage_path


def lineage_page(label: str, manifests: Mapping[str, Manifest], root: str) -> str:
    """Every ancestor as a graph and as a table."""
    return document(f"Lineage of {label}", *lineage_parts(manifests, root))


def write_lineage(label: str, ref: Ref, *, store: Store, settings: Settings) -> Path:
    """Writes the page beside the store, for people: it holds times, which no artifact does."""
    path = lineage_path(settings.home, label)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lineage_page(label, manifests_of(store, ref), ref.digest).encode())
    return path


def lineage_parts(manifests: Mapping[str, Manifest], root: str) -> list[str]:
    """The graph and the table as sections."""
    rows = [
        (
            m.kind, m.digest, size(m.size_bytes), len(m.files), m.created_at[:19], m.code[:12],
            ", ".join(f"{name} {number:,}" for name, number in sorted(m.counts.items())[:6]),
            ", ".join(f"{role} {ref.digest[:12]}" for role, ref in sorted(m.parents.items())),
        )
        for m in manifests.values()
    ]  # fmt: skip
    graph = paragraph(
        "A box was made of the boxes below it. Hold the mouse over a box for its whole digest, over a line for the role."
    )
    heads = ("artifact", "digest (sha256)", "size", "files", "made", "code version", "counts", "made of")
    return [
        section("Lineage", graph, wide(lineage_svg(manifests, root))),
        section("Artifacts", table(heads, rows)),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What the viewer of a bundle shows."""

    version: ModelVersion
    manifests: Mapping[str, Manifest]
    root: str
    verdicts: Mapping[str, Any]
    pages: Sequence[tuple[str, str]]
    """Title and path in the bundle of the model card and of each gate report."""
    statistics: Mapping[str, Any]
    moves: Sequence[Transition]
    signatures: Sequence[tuple[str, str, str]]
    """What is signed, by which key, in which file."""
    not_included: Sequence[str]
    made_at: str


def bundle_page(shown: Shown) -> str:
    """`index.html` of a bundle."""
    version = shown.version
    facts = [(name, getattr(version, name)) for name in (
        "stage", "base_digest", "dataset_digest", "adapter_digest", "report_digest", "registered_digest", "recipe_sha256", "code", "created_at"
    )]  # fmt: skip
    links = "".join(f'<li><a href="{escape(path)}">{escape(title)}</a></li>' for title, path in shown.pages)
    intro = paragraph(
        f"Evidence exported {shown.made_at}. This page is for reading; `python -I verify.py` in this folder checks every byte of it, "
        "the digests, the chain and the signatures, and needs nothing but Python."
    )
    return document(
        f"Evidence: {version.label}",
        intro,
        section("The version", table(("fact", "value"), facts), f"<ul>{links}</ul>"),
        *lineage_parts(shown.manifests, shown.root),
        section("Data", *_data(shown)),
        section("Gates", _gates(shown.verdicts)),
        section("Stages", _moves(shown.moves)),
        section("Signatures", table(("what", "key id", "file"), shown.signatures)),
        section("Not included", "<ul>" + "".join(f"<li>{escape(said)}</li>" for said in shown.not_included) + "</ul>"),
    )


def _data(shown: Shown) -> list[str]:
    counts = [m.counts for m in shown.manifests.values() if m.digest == shown.version.dataset_digest]
    dropped = shown.statistics.get("dropped_by_reason", {})
    parts = [table(("rows", "number"), sorted(counts[0].items()) if counts else [])]
    if dropped:
        rows = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
        parts.append(table(("dropped because", "rows"), rows))
    rest = {
        k: v
        for k, v in shown.statistics.items()
        if k != "dropped_by_reason" and isinstance(v, int | float | str | dict)
    }
    parts.append(
        table(
            ("statistic", "value"),
            [(k, v if not isinstance(v, dict) else json.dumps(v)[:300]) for k, v in sorted(rest.items())],
        )
    )
    return parts


def _gates(verdicts: Mapping[str, Any]) -> str:
    names = ("name", "kind", "verdict", "rows", "base", "adapter", "difference", "low", "high", "rule", "reason")
    rows = [[_short(gate.get(name, "")) for name in names] for gate in verdicts.get("gates", ())]
    head = paragraph(
        f"Verdict {verdicts.get('verdict')} under the policy {verdicts.get('policy')}. {verdicts.get('reason', '')}"
    )
    return head + table(names, rows)


def _moves(moves: Sequence[Transition]) -> str:
    heads = ("seq", "at", "model", "from", "to", "by", "approved by", "reason", "sha256")
    return table(
        heads,
        [
            (
                t.seq,
                t.created_at[:19],
                t.model,
                t.from_stage,
                t.to_stage,
                t.actor,
                t.approved_by or "",
                t.reason,
                t.sha256[:16],
            )
            for t in moves
        ],
    )


def _short(value: object) -> object:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else value
