"""What a model consists of, for other people's tools: a CycloneDX 1.6 ML-BOM and a Croissant description, JSON by hand.

No time and no random serial number: the same chain gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.curate.artifact import CROISSANT
from ft_pipeline.register.chain import Link, by_role
from ft_pipeline.register.evidence import Evidence
from ft_pipeline.store.artifacts import Artifact

TYPES = {
    "base_model": "machine-learning-model",
    "adapter": "machine-learning-model",
    "exported_model": "machine-learning-model",
    "checkpoints": "machine-learning-model",
}
DATA = ("raw_dataset", "curated_dataset", "packed_shards", "eval_suite", "benchmark_mirror")
SPDX_LIKE = {"mit": "MIT", "apache-2.0": "Apache-2.0", "cc0-1.0": "CC0-1.0", "cc-by-4.0": "CC-BY-4.0"}


def ml_bom(subject: Any, links: Sequence[Link], evidence: Evidence) -> dict[str, Any]:
    """CycloneDX 1.6: the model with its model card, every artifact of its chain as a component, who was made of whom.

    `subject` is a model_card.Subject; the first link is the adapter.
    """
    adapter = links[0]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'ft:{subject.model}:{adapter.ref.digest}')}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model", "bom-ref": _named(adapter), "group": subject.tenant, "name": subject.name,
                "version": str(subject.version), "description": subject.description,
                "hashes": _hashes(adapter), "licenses": _licences(subject.licence), "modelCard": _card(subject, links, evidence),
            }
        },
        "components": [_component(link, subject) for link in links[1:]],
        "dependencies": [
            {"ref": _named(link), "dependsOn": sorted({f"{r.kind}@{r.digest}" for r in link.manifest.parents.values()})}
            for link in links
        ],
    }  # fmt: skip


def croissant(subject: Any, adapter: Link, curated: Artifact) -> dict[str, Any]:
    """The description of the model's dataset, with the model that it stands behind."""
    made = json.loads(curated.file(CROISSANT).read_bytes()) if CROISSANT in curated.manifest.files else {}
    return {
        **made,
        "@type": made.get("@type", "sc:Dataset"),
        "name": f"data-of-{subject.tenant}-{subject.name}-{subject.version}",
        "license": subject.licence,
        "sha256": curated.ref.digest,
        "prov:hadPrimarySource": [{"@id": f"sha256:{by_role(adapter, 'raw').ref.digest}"}],
        "subjectOf": {
            "@type": "sc:SoftwareApplication",
            "name": subject.model,
            "identifier": f"sha256:{adapter.ref.digest}",
        },
    }


def without_hashes(document: Mapping[str, Any]) -> dict[str, Any]:
    """A Croissant description without the hashes of its Parquet files: their bytes change with the library, their rows do not."""
    files = [{k: v for k, v in f.items() if k != "sha256"} for f in document.get("distribution", [])]
    return {**document, "distribution": files}


def _named(link: Link) -> str:
    return f"{link.ref.kind}@{link.ref.digest}"


def _hashes(link: Link) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": link.ref.digest}]


def _licences(licence: str) -> list[dict[str, Any]]:
    known = SPDX_LIKE.get(licence.lower())
    return [{"license": {"id": known} if known else {"name": licence}}]


def _component(link: Link, subject: Any) -> dict[str, Any]:
    kind = link.ref.kind
    name = subject.base_name if kind == "base_model" and link.role == "base" else f"{link.role} ({kind})"
    made: dict[str, Any] = {
        "type": TYPES.get(kind, "data"), "bom-ref": _named(link), "name": name, "version": link.ref.digest[:12],
        "hashes": _hashes(link),
        "properties": [
            {"name": "ft:kind", "value": kind}, {"name": "ft:fingerprint", "value": link.ref.fingerprint},
            {"name": "ft:code", "value": link.manifest.code},
        ],
    }  # fmt: skip
    if made["type"] == "data":
        made["data"] = [
            {"type": "dataset" if kind in DATA else "other", "name": kind, "contents": {"properties": _counts(link)}}
        ]
    return made


def _counts(link: Link) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in sorted(link.manifest.counts.items())]


def _card(subject: Any, links: Sequence[Link], evidence: Evidence) -> dict[str, Any]:
    data = [{"ref": _named(link)} for link in links if link.ref.kind in ("raw_dataset", "curated_dataset")]
    return {
        "modelParameters": {
            "approach": {"type": "reinforcement-learning" if subject.method in ("grpo", "ppo", "rloo") else "supervised"},
            "task": "text-generation", "architectureFamily": "transformer", "modelArchitecture": subject.base_name, "datasets": data,
            "inputs": [{"format": "text"}], "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": [m for g in evidence.gates if (m := _metric(g))]},
        "properties": [
            {"name": "ft:verdict", "value": evidence.verdict}, {"name": "ft:policy", "value": evidence.policy},
            {"name": "ft:method", "value": subject.method},
        ],
    }  # fmt: skip


def _metric(gate: Mapping[str, Any]) -> dict[str, Any] | None:
    if gate.get("adapter") is None:
        return None
    made: dict[str, Any] = {
        "type": str(gate["name"]),
        "value": f"{float(gate['adapter']):.6f}",
        "slice": str(gate["kind"]),
    }
    if gate.get("low") is not None and gate.get("high") is not None:
        made["confidenceInterval"] = {
            "lowerBound": f"{float(gate['low']):.6f}",
            "upperBound": f"{float(gate['high']):.6f}",
        }
    return made
