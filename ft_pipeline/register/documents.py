"""What a registered model says of itself: card in Markdown and HTML, two plots, ML-BOM, Croissant. Made from the artifacts alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.finetune.artifact import COMPLETION, LOSSES, RESUME
from ft_pipeline.recipe import Recipe, identity
from ft_pipeline.register.artifact import CARD, CARD_PAGE, CROISSANT, GATE_PLOT, LOSS_PLOT, ML_BOM
from ft_pipeline.register.card_plots import forest_svg, loss_svg
from ft_pipeline.register.chain import Link, by_role
from ft_pipeline.register.evidence import Evidence
from ft_pipeline.register.ml_bom import croissant, ml_bom
from ft_pipeline.register.model_card import Subject, card, card_page
from ft_pipeline.store.artifacts import Store

SHOWN = (
    "steps", "windows_consumed", "rows", "trained_tokens", "validation_loss_before", "validation_loss", "exact_resume",
)  # fmt: skip
"""Fields of the completion proof that the card shows."""


def documents(judged: tuple[Recipe, Evidence], version: int, links: Sequence[Link], *, store: Store) -> dict[str, str]:
    """File name -> text, the same for the same chain. The first link is the adapter."""
    recipe, evidence = judged
    adapter = links[0]
    subject = Subject(
        tenant=recipe.tenant, name=recipe.name, version=version, description=recipe.description,
        base_name=base_name(recipe.base_model.uri), licence=recipe.dataset.licence, method=recipe.finetune.method,
        finetune=identity(recipe.finetune),
        exported=adapter.manifest.config["format"] if adapter.ref.kind == "exported_model" else "",
    )  # fmt: skip
    curated = store.fetch(by_role(adapter, "curated").ref)
    facts: dict[str, Any] = {"curated": curated, "completion": _completion(store, adapter)}
    plots = {LOSS_PLOT: loss_svg(_losses(store, adapter)), GATE_PLOT: forest_svg(evidence.gates)}
    titles = {"Loss": plots[LOSS_PLOT], "Gates, measured": plots[GATE_PLOT]}
    return {
        CARD: card(subject, adapter, evidence, **facts),
        CARD_PAGE: card_page(subject, adapter, evidence, **facts, plots=titles),
        **plots,
        ML_BOM: _text(ml_bom(subject, links, evidence)),
        CROISSANT: _text(croissant(subject, adapter, curated)),
    }


def _completion(store: Store, adapter: Link) -> dict[str, Any]:
    packaged = store.fetch(adapter.ref)
    said = json.loads(packaged.file(COMPLETION).read_bytes())
    if RESUME in packaged.manifest.files:
        said["exact_resume"] = json.loads(packaged.file(RESUME).read_bytes())["told"]
    return {name: said[name] for name in SHOWN if said.get(name) is not None}


def _losses(store: Store, adapter: Link) -> list[dict[str, Any]]:
    checkpoints = by_role(adapter, "checkpoints").manifest
    if LOSSES not in checkpoints.files:
        return []
    return [
        json.loads(line) for line in store.fetch_file(checkpoints.ref, LOSSES).read_text(encoding="utf-8").splitlines()
    ]


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def base_name(uri: str) -> str:
    """`owner/name` of a Hub URI, else the last part of a path: no location goes into a card."""
    if uri.startswith("hf://"):
        return uri.removeprefix("hf://")
    return uri.rstrip("/").rsplit("/", 1)[-1]
