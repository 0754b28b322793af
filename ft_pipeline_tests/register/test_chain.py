"""The tree above an artifact: the nearest ancestor in a role is its own, not that of a model that it was rewarded by."""

from __future__ import annotations

import pytest

from ft_pipeline.errors import IntegrityError
from ft_pipeline.register.chain import by_role, walk
from ft_pipeline.store.manifest import Spec


def published(store, kind: str, name: str, **parents):
    spec = Spec(
        kind=kind, config={"name": name}, parents={role: made.ref for role, made in parents.items()}, code="test"
    )
    with store.publish(spec) as draft:
        (draft.folder / "file").write_text(name)
    return draft.artifact


def trained(store, name: str, **rewards):
    """An adapter with its own data, and the data."""
    base = published(store, "base_model", name)
    curated = published(store, "curated_dataset", name)
    shards = published(store, "packed_shards", name, curated=curated)
    checkpoints = published(store, "checkpoints", name, base=base, shards=shards, **rewards)
    return published(store, "adapter", name, base=base, checkpoints=checkpoints, shards=shards), curated, base


def test_the_data_of_a_policy_is_its_own_and_not_that_of_its_reward_model(store):
    model, other, other_base = trained(store, "reward model")
    calibration = published(store, "reward_function", "calibration", base=other_base, model=model)
    policy, curated, base = trained(
        store, "policy", reward_1=calibration, reward_1_base=other_base, reward_1_model=model
    )
    tree = walk(store, "adapter", policy.ref)
    assert by_role(tree, "curated").ref == curated.ref != other.ref
    assert by_role(tree, "base").ref == base.ref
    assert by_role(tree, "reward_1_model").ref == model.ref
    with pytest.raises(IntegrityError, match="no ancestor in the role 'raw'"):
        by_role(tree, "raw")
