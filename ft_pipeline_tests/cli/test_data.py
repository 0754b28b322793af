"""`datasets` and `diff`: two curated versions by digest, by recipe and by model version, for people and as JSON."""

from __future__ import annotations

import json

import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.recipe import Curate, Dataset, Pii
from ft_pipeline.store.catalog import NewModel
from ft_pipeline_tests import road


@pytest.fixture
def versions(home, store, catalog):
    """Two versions of acme/router; the newer one is its head, the older one is what acme/router@1 was trained on."""
    rows = road.clean_rows(30)
    rows[4]["messages"][0]["content"] += " write to ann.miller@firma.de"
    made = []
    for number, policy in enumerate(("flag", "reject")):
        path = road.write_rows(home.home / "rows.jsonl", [*rows, *(road.question(99) for _ in range(number))])
        raw = dataset.acquire(Dataset(uri=str(path)), settings=home, store=store)
        config = Curate(pii=Pii(policy=policy))
        made.append(curate(Curation(config=config, raw=raw.ref, dataset=Dataset(uri=str(path))), store=store))
        catalog.set_head("acme/router", "curated_dataset", made[-1])
    catalog.index(made[0].manifest)
    digests = dict.fromkeys(("base_digest", "adapter_digest", "report_digest", "recipe_sha256", "code"), "a" * 64)
    catalog.register(
        NewModel(tenant="acme", name="router", dataset_digest=made[0].ref.digest, run_id="r", lora_rank=4, **digests)
    )
    return made


def test_datasets_of_an_empty_home(typed):
    assert json.loads(typed("datasets", "--json").out) == []
    assert "no dataset is curated yet" in typed("datasets").out


def test_datasets_lists_versions_and_what_uses_them(typed, versions):
    rows = {r["dataset"]: r for r in json.loads(typed("datasets", "--json").out)}
    old, new = (v.ref.digest for v in versions)
    assert rows[old]["used_by"] == ["acme/router@1"] and rows[new]["used_by"] == ["acme/router"]
    assert rows[old]["rows_in"] == 30 and rows[new]["rows_kept"] == 30
    assert old[:12] in typed("datasets").out


@pytest.mark.parametrize("names", ["digests", "recipe and version"])
def test_diff_says_what_why_and_made_of_what(typed, versions, names):
    pair = [v.ref.digest[:10] for v in versions] if names == "digests" else ["acme/router@1", "acme/router"]
    answer = typed("diff", *pair)
    assert answer.code == 0, answer.err
    for part in (
        "29 unchanged",
        "1 removed",
        "1 added",
        "personal_data",
        "new_in_raw_data",
        "flag",
        "reject",
        "rows.jsonl:5",
        "B drops it",
    ):
        assert part in answer.out, part


def test_diff_as_json(typed, versions):
    old, new = (v.ref.digest for v in versions)
    told = json.loads(typed("diff", old, new, "--json").out)
    assert told["before"]["digest"] == old and told["after"]["digest"] == new
    assert told["counts"] == {"removed": 1, "added": 1, "changed": 0, "moved": 0} and told["unchanged"] == 29
    gone = next(r for r in told["rows"] if r["change"] == "removed")
    assert gone["reason"] == "personal_data" and gone["evidence"]["kind"] == "email"
    assert {i["name"] for i in told["inputs"]} == {"pii.policy", "raw"}
    assert json.loads(typed("diff", old, new, "--json", "--rows", "0").out)["rows"] == []


def test_diff_with_itself(typed, versions):
    answer = typed("diff", "acme/router", versions[1].ref.digest)
    assert answer.code == 0 and "30 unchanged   0 removed   0 added   0 changed   0 moved" in answer.out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/rooter", "did you mean acme/router?"), ("acme/router@7", "acme/router@1"), ("ffffffffffff", "no curated dataset"),
        ("", "no curated dataset"), ("a", "no curated dataset"), ("acme/router:production", "acme/router@1"),
    ],
)  # fmt: skip
def test_an_unknown_dataset_gets_the_nearest_names(typed, versions, name, said):
    answer = typed("diff", "acme/router", name)
    assert answer.code == 2 and said in answer.err and "Cure:" in answer.err and "Traceback" not in answer.err


def test_diff_in_an_empty_home_and_without_a_second_name(typed):
    assert typed("diff", "abcdef", "abcdef").code == 2
    assert typed("diff", "abcdef").code == 2


def test_trace_of_a_dropped_row_shows_its_flags(typed, versions):
    told = json.loads(typed("diff", "acme/router@1", "acme/router", "--json").out)
    row_id = next(r["row_id"] for r in told["rows"] if r["change"] == "removed")
    found = json.loads(typed("trace", row_id, "--json").out)
    assert [(f["filter"], f["action"]) for f in sorted(found["flags"], key=lambda f: f["action"])] == [
        ("pii", "drop"),
        ("pii", "note"),
    ]
    said = typed("trace", row_id).out
    assert "dropped in curated_dataset" in said and "pii, personal_data (note)" in said
