"""The catalog: what the manifests cannot say (versions, stages, approvals, deployments) and an index over those that can.

The only place that speaks SQL. SQLite by default, PostgreSQL in production; see catalog_index, catalog_models, catalog_stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from ft_pipeline.settings import Settings
from ft_pipeline.store.catalog_database import open_database
from ft_pipeline.store.catalog_index import ArtifactIndex
from ft_pipeline.store.catalog_rows import ModelVersion, NewModel, Stage, Transition
from ft_pipeline.store.catalog_stages import Stages
from ft_pipeline.store.catalog_takedowns import Takedown, Takedowns

__all__ = ["Catalog", "ModelVersion", "NewModel", "Stage", "Takedown", "Transition", "open_catalog"]


@dataclass(frozen=True)
class Catalog(ArtifactIndex, Stages, Takedowns):
    """Everything that is known of artifacts and model versions."""


def open_catalog(settings: Settings) -> Catalog:
    """The catalog that the settings name, made or brought up to date. Raises StorageError, UserError."""
    return Catalog(open_database(settings.catalog_url).engine)
