"""Real, dirty rows, where they are at hand: the figures of shared/data/README.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.curate.artifact import statistics_of
from ft_pipeline.curate.consolidate import curate
from ft_pipeline.recipe import Curate, Dataset, NearDuplicates

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(os.environ.get("FT_SHARED_DATA") or Path(__file__).parents[2] / "../shared/data")
    if not (root / "MANIFEST.tsv").is_file():
        pytest.skip(f"no shared data at {root}: set FT_SHARED_DATA")
    return root


@pytest.mark.parametrize(("policy", "dropped"), [("whole_example", 1327), ("prompt_and_response", 822)])
def test_t0_duplicates_are_those_of_brute_force(home, store, shared_data, tmp_path, policy, dropped):
    path = tmp_path / "t0.jsonl"
    with path.open("w") as file:
        for source in sorted((shared_data / "t0_train_sample").glob("*.jsonl")):
            for line in source.read_text().splitlines():
                row = {key: text.replace("<|endoftext|>", "") for key, text in json.loads(line).items()}
                file.write(json.dumps(row) + "\n")
    raw = dataset.acquire(Dataset(uri=str(path)), settings=home, store=store)
    config = Curate(near_duplicates=NearDuplicates(policy=policy), max_rejected_share=1.0)
    numbers = statistics_of(curate(config, store=store, raw=raw.ref, base=None))
    assert numbers["rows_in"] == 2400
    assert numbers["dropped_by_reason"]["exact_duplicate"] == 377
    assert sum(numbers["dropped_by_reason"].values()) == dropped
    assert numbers["conflicts"] == {"pairs": 74, "prompts": 56}


@pytest.mark.parametrize(
    ("name", "rows", "exact", "shape"),
    [
        ("llamafactory_demo/dpo_en_demo.json", 300, 5, "preference"),
        ("llamafactory_demo/glaive_toolcall_en_demo.json", 300, 35, "chat"),
        ("vicuna_dummy_conversation", 500, 0, "chat"),
    ],
)
def test_layouts_in_the_wild(home, store, shared_data, name, rows, exact, shape):
    raw = dataset.acquire(Dataset(uri=str(shared_data / name)), settings=home, store=store)
    numbers = statistics_of(curate(Curate(), store=store, raw=raw.ref, base=None))
    assert numbers["rows_in"] == rows
    assert numbers["dropped_by_reason"].get("exact_duplicate", 0) == exact
    assert list(numbers["shapes"]) == [shape]
