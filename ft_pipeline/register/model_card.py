"""The model card: Markdown with Hugging Face front matter, and an HTML page, made from the artifacts alone, so that the same chain gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ft_pipeline.register.chain import Link, by_role, text_tree
from ft_pipeline.register.evidence import Evidence
from ft_pipeline.register.html_page import document, paragraph, section, table, wide
from ft_pipeline.store.artifacts import Artifact

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a card is about."""

    tenant: str
    name: str
    version: int
    description: str
    base_name: str
    licence: str
    method: str
    finetune: Mapping[str, Any]
    """The recipe's section, resolved."""
    exported: str = ""
    """Format, where the model is an export of what the recipe made."""

    @property
    def what(self) -> str:
        """`LoRA adapter`, `fully fine-tuned model`, `w8a8 export of a LoRA adapter`."""
        trained = "LoRA adapter" if self.finetune.get("lora") else "fully fine-tuned model"
        return f"{self.exported} export of a {trained}" if self.exported else trained

    @property
    def relation(self) -> str:
        """To the base model, in the words of the Hub."""
        if self.exported:
            return "merge" if self.exported == "merged" else "quantized"
        return "adapter" if self.finetune.get("lora") else "finetune"

    @property
    def model(self) -> str:
        """`tenant/name@N`."""
        return f"{self.tenant}/{self.name}@{self.version}"


def card(
    subject: Subject, adapter: Link, evidence: Evidence, *, curated: Artifact, completion: Mapping[str, Any]
) -> str:
    """The card's text: what it is, the data, the training, every gate with its interval, the lineage, how to verify."""
    from huggingface_hub import ModelCard

    made = ModelCard.from_template(
        _front_matter(subject, evidence, curated),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        subject=subject,
        adapter=adapter,
        base=by_role(adapter, "base"),
        shards=by_role(adapter, "shards"),
        evidence=evidence,
        gates=[_gate_row(g) for g in evidence.gates],
        counts=curated.manifest.counts,
        dropped=_dropped(curated),
        completion=completion,
        tree=text_tree(adapter),
    )
    return str(made).rstrip() + "\n"


def _front_matter(subject: Subject, evidence: Evidence, curated: Artifact) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=str(g["kind"]),
            dataset_name=str(g["name"]),
            dataset_revision=evidence.suite_sha256 if g["kind"] != "holdout" else curated.ref.digest,
            metric_type=str(g["name"]),
            metric_value=round(float(g["adapter"]), 6),
        )
        for g in evidence.gates
        if g.get("adapter") is not None
    ]
    return ModelCardData(
        model_name=subject.model,
        base_model=subject.base_name,
        base_model_relation=subject.relation,
        library_name="peft" if subject.relation == "adapter" else "transformers",
        pipeline_tag="text-generation",
        license="other" if subject.licence == "unknown" else subject.licence,
        tags=["ft-pipeline", subject.method],
        eval_results=results or None,
    )


def _dropped(curated: Artifact) -> list[tuple[str, int]]:
    """Reason and number of rows, the commonest first."""
    body = json.loads(curated.file("statistics.json").read_bytes())
    return sorted(body.get("dropped_by_reason", {}).items(), key=lambda item: (-item[1], item[0]))


def _gate_row(gate: Mapping[str, Any]) -> dict[str, str]:
    interval = [_number(gate.get(end)) for end in ("low", "high")]
    return {
        "name": str(gate["name"]), "verdict": str(gate["verdict"]), "rows": str(gate.get("rows", 0)),
        "base": _number(gate.get("base")), "adapter": _number(gate.get("adapter")),
        "difference": _number(gate.get("difference")), "interval": f"[{interval[0]}, {interval[1]}]",
        "reason": str(gate.get("reason", "")).replace("|", "/").replace("\n", " "),
    }  # fmt: skip


def _number(value: Any) -> str:
    return "-" if value is None else f"{float(value):.3f}"


def card_page(
    subject: Subject,
    adapter: Link,
    evidence: Evidence,
    *,
    curated: Artifact,
    completion: Mapping[str, Any],
    plots: Mapping[str, str],
) -> str:
    """The card as one HTML page, its pictures inside. `plots`: title -> SVG."""
    lora = subject.finetune.get("lora") or {}
    trained = {k: v for k, v in subject.finetune.items() if k != "lora" and v is not None}
    gates = [list(_gate_row(g).values()) for g in evidence.gates]
    said = evidence.override.told if evidence.override and not evidence.passed else ""
    return document(
        subject.model,
        paragraph(subject.description or "No description is given in the recipe."),
        paragraph(
            f"A {subject.what} for the base model {subject.base_name}, trained with {subject.method}. The verdict of its gates is "
            f"{evidence.verdict} under the policy {evidence.policy}."
        ),
        *([paragraph(f"Overruled by a person: {said}")] if said else []),
        section("Gates", table(("gate", "verdict", "rows", "base", "adapter", "difference", "interval", "reason"), gates)),
        *(section(title, wide(picture)) for title, picture in plots.items()),
        section(
            "Data",
            table(("rows", "number"), sorted(curated.manifest.counts.items())),
            table(("dropped because", "rows"), _dropped(curated)),
            paragraph(f"Licence of the rows: {subject.licence}."),
        ),
        section("Training", table(("setting", "value"), sorted({**trained, **{f"LoRA {k}": v for k, v in lora.items()}, **completion}.items()))),
        section("Lineage", f"<pre>{escape(text_tree(adapter))}</pre>"),
        section("Verify", paragraph(f"ft-pipeline verify {subject.model}")),
    )  # fmt: skip
