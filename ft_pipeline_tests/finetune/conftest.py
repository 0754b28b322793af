"""Shards of a tiny model, made once for the room's tests, and runs over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.files import Bucket
from ft_pipeline_tests import tiny


@dataclass(frozen=True)
class Road:
    """Everything above finetune."""

    store: Store
    base: Artifact
    curated: Artifact
    shards: Artifact
    folder: Path


@pytest.fixture(scope="session")
def road(tmp_path_factory) -> Road:
    root = tmp_path_factory.mktemp("road")
    store = Store(Bucket(str(root / "store")), root / "work")
    base = tiny.publish_base(store, tiny.base_folder(root / "base"))
    curated = tiny.publish_curated(store, tiny.chat_rows(90), validation=10)
    return Road(store, base, curated, tiny.publish_shards(store, curated, base), root)


@pytest.fixture
def no_mlflow(monkeypatch):
    monkeypatch.setenv("FT_MLFLOW", "off")


@pytest.fixture(scope="session")
def pairs(road) -> Artifact:
    """Shards of preference pairs: the module that is meant against another one."""
    curated = tiny.publish_curated(road.store, tiny.pair_rows(72), validation=8, shape="preference")
    return tiny.publish_shards(road.store, curated, road.base)


@pytest.fixture(scope="session")
def labelled(road) -> Artifact:
    """Shards of labelled completions: the right module is wanted, another one is not."""
    curated = tiny.publish_curated(road.store, tiny.labelled_rows(72), validation=8, shape="kto")
    return tiny.publish_shards(road.store, curated, road.base)


@pytest.fixture(scope="session")
def stepwise(road) -> Artifact:
    """Shards of solutions whose steps are judged."""
    curated = tiny.publish_curated(road.store, tiny.stepwise_rows(72), validation=8, shape="stepwise")
    return tiny.publish_shards(road.store, curated, road.base)
