"""What a registered model is in the store: its files, and how rooms below open one they can rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ft_pipeline.recipe import Recipe
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.manifest import Ref

KIND = "registered_model"
CARD = "model_card.md"
"""Markdown with Hugging Face front matter."""
CARD_PAGE = "model_card.html"
LOSS_PLOT, GATE_PLOT = "loss.svg", "gates.svg"
ML_BOM = "ml_bom.cdx.json"
"""CycloneDX 1.6."""
CROISSANT = "croissant.json"
"""Of the data behind the model."""
STATEMENT = "statement.json"
"""DSSE envelope around an in-toto Statement v1."""
LINEAGE = "lineage.json"
"""Every ancestor with its role, digest, files and parents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """A registered model whose signature and whole chain were verified a moment ago."""

    model: str
    """`tenant/name@3`, as it was signed."""
    adapter: Ref
    base: Ref
    report: Ref
    signed_by: str
    """Id of the key."""


def open_registered(store: Store, ref: Ref, settings: Settings) -> Registered:
    """The registered model, its signature verified and its chain walked to the raw bytes. Raises IntegrityError."""
    from ft_pipeline.register.attest import verified_statement

    claim, signed_by = verified_statement(store, ref, settings=settings)
    manifest = store.fetch(ref).manifest
    return Registered(
        model=claim["subject"][0]["name"],
        adapter=manifest.parents["adapter"],
        base=manifest.parents["base"],
        report=manifest.parents["report"],
        signed_by=signed_by,
    )


def register_export(recipe: Recipe, exported: Ref, report: Ref, **about: Any) -> ModelVersion:
    """The version of an exported model, in the line `tenant/name-FORMAT`. Raises GateRefused unless its report is a PASS.

    `about`: base, run_id, format; and where: store, catalog, settings. Mirrored to MLflow as every version is.
    """
    from ft_pipeline.register import registration, registry

    where = {name: about[name] for name in ("store", "catalog", "settings")}
    candidate = registration.Candidate(
        recipe=recipe, adapter=exported, report=report, base=about["base"], run_id=about["run_id"],
        exported_as=about["format"],
    )  # fmt: skip
    made = registration.register(candidate, **where).model
    registry.mirror(about["catalog"], made.line, about["settings"])
    return made


def seal(catalog: Catalog, settings: Settings) -> None:
    """Signs everything that the catalog's journal says so far (register/seal.py)."""
    from ft_pipeline.register.seal import sign_journal

    sign_journal(catalog, settings)


def verify_seals(catalog: Catalog, settings: Settings) -> int:
    """The number of signatures over the catalog's journal, after they held. Raises IntegrityError."""
    from ft_pipeline.register.seal import verify_journal

    return verify_journal(catalog, settings)
