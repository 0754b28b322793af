"""The asset graph is the one that was reviewed. Regenerate on purpose: python -m ft_pipeline_tests.test_asset_graph"""

from __future__ import annotations

import json
from pathlib import Path

from ft_pipeline import definitions

SNAPSHOT = Path(__file__).with_name("asset_graph.json")


def shape_of(node) -> dict:
    return {
        "deps": sorted(key.to_user_string() for key in node.parent_keys),
        "group": node.group_name,
        "checks": sorted(check.name for check in node.check_keys),
        "partitioned": node.is_partitioned,
    }


def graph() -> dict:
    nodes = definitions.build().resolve_asset_graph().asset_nodes
    return {node.key.to_user_string(): shape_of(node) for node in sorted(nodes, key=lambda n: n.key)}


def test_asset_graph_is_the_reviewed_one():
    assert graph() == json.loads(SNAPSHOT.read_text())


def test_every_asset_has_an_owner_a_group_kinds_and_a_description():
    for spec in definitions.build().resolve_all_asset_specs():
        assert spec.owners and spec.group_name and spec.kinds and spec.description, spec.key


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(graph(), indent=1) + "\n")
