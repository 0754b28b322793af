"""A row is taken down: everything that learned from it is found, the way back is shut when it is done, and it does not come again."""

from __future__ import annotations

import json

import polars as pl
import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.curate.artifact import rows_of
from ft_pipeline.curate.consolidate import curate, curation_of
from ft_pipeline.errors import GateRefused, NotFoundError, UserError
from ft_pipeline.recipe import Dataset, parse
from ft_pipeline.register import takedown
from ft_pipeline.register.attest import verify_statement
from ft_pipeline.register.keys import trusted_keys
from ft_pipeline.store.catalog import NewModel
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import road

TRAINED, HELD, NEAR, OTHER = ("r" + digit * 16 for digit in "abcd")
LEDGER = ["row_id", "origin", "action", "stage", "reason", "evidence", "excerpt"]


def made(store, kind: str, name: str, files: dict, **parents):
    spec = Spec(kind=kind, config={"n": name}, parents={role: a.ref for role, a in parents.items()}, code="c" * 64)
    with store.publish(spec) as draft:
        for file, content in files.items():
            if isinstance(content, pl.DataFrame):
                content.write_parquet(draft.folder / file)
            else:
                (draft.folder / file).write_text(content)
    return draft.artifact


def adapter_of(store, name: str, *, train: list[str], holdout: list[str], near: str = "", **rewards):
    """A curated dataset, shards, checkpoints and an adapter."""
    raw = made(store, "raw_dataset", name, {"rows.jsonl": name})
    gone = [
        dict(
            zip(
                LEDGER,
                (near, "f:9", "dropped", "near_duplicate", "near_duplicate", json.dumps({"kept_id": train[0]}), ""),
                strict=True,
            )
        )
    ]
    files = {
        "train.parquet": pl.DataFrame(
            {"row_id": train, "origin": [f"{name}.jsonl:{n}" for n, _ in enumerate(train, 1)]}
        ),
        "holdout.parquet": pl.DataFrame(
            {"row_id": holdout, "origin": [""] * len(holdout)}, schema={"row_id": pl.String, "origin": pl.String}
        ),
        "ledger.parquet": pl.DataFrame(gone if near else [], schema=dict.fromkeys(LEDGER, pl.String)),
    }
    curated = made(store, "curated_dataset", name, files, raw=raw)
    places = pl.DataFrame({"row_id": train, "split": ["train"] * len(train)})
    shards = made(store, "packed_shards", name, {"rows.parquet": places}, curated=curated)
    checkpoints = made(store, "checkpoints", name, {"x": name}, shards=shards, **rewards)
    return {
        "curated_dataset": curated,
        "adapter": made(store, "adapter", name, {"w": name}, checkpoints=checkpoints, shards=shards),
    }


@pytest.fixture
def lines(store, catalog):
    """`judge` learned from the row, `policy` from a reward of judge, `other` from neither; all in production and deployed."""
    judge = adapter_of(store, "judge", train=[TRAINED, OTHER + "-2"], holdout=[HELD], near=NEAR)
    reward = made(store, "reward_function", "judged", {"x": "r"}, model=judge["adapter"])
    policy = adapter_of(store, "policy", train=["r" + "e" * 16], holdout=[], reward_1=reward)
    found = {"judge": judge, "policy": policy, "other": adapter_of(store, "other", train=[OTHER], holdout=[])}
    catalog.set_pool("local", "a" * 64)
    for name, artifacts in found.items():
        for asset, artifact in artifacts.items():
            catalog.set_head(f"acme/{name}", asset, artifact)
        model = catalog.register(
            NewModel(
                tenant="acme", name=name, base_digest="a" * 64, dataset_digest=artifacts["curated_dataset"].ref.digest,
                adapter_digest=artifacts["adapter"].ref.digest, report_digest="e" * 64, recipe_sha256="f" * 64, run_id="r",
                code="c", lora_rank=8,
            )
        )  # fmt: skip
        catalog.add_report(model.id, "a" * 64, "5" * 64, True, "e" * 64)
        for stage in ("dev", "staging", "production"):
            catalog.transition(model.id, stage, actor="ann", approved_by="bob", reason="x")
        catalog.deploy("local", model.id)
    return found


def test_whatever_learned_from_the_row_is_found_through_reward_models_too(store, catalog, lines):
    found = takedown.affected_by([TRAINED[:9]], store=store, catalog=catalog)
    assert found.rows == (TRAINED,) and found.origins == ("judge.jsonl:1",)
    assert [v.label for v in found.versions] == ["acme/judge@1", "acme/policy@1"]
    assert found.adapters == (lines["judge"]["adapter"].ref, lines["policy"]["adapter"].ref)
    assert found.lines == ("acme/judge", "acme/policy"), "the reward model is made before the policy"
    assert found.near == (NEAR,)
    steps = takedown.plan(found)
    assert "ft-pipeline run acme/judge" in steps[1] and "ft-pipeline run acme/policy" in steps[2]


def test_a_row_of_the_holdout_taught_nobody(store, catalog, lines):
    found = takedown.affected_by([HELD], store=store, catalog=catalog)
    assert [split for _, split in found.datasets] == ["holdout"]
    assert (found.adapters, found.versions, found.lines) == ((), (), ("acme/judge",))
    with pytest.raises(NotFoundError, match="no row rffffff"):
        takedown.affected_by(["rffffff"], store=store, catalog=catalog)
    assert takedown.affected_by([OTHER], store=store, catalog=catalog).versions[0].label == "acme/judge@1", (
        "a repetition counts"
    )


def test_the_takedown_ends_when_nobody_answers_from_it_and_shuts_the_way_back(store, catalog, lines, home, typed):
    ended = typed("forget", TRAINED, "--reason", "asked by the person", "--plan", str(home.home / "plan.md"))
    assert ended.code == 0 and "acme/policy@1 (production)" in ended.out and "local" in ended.out, ended.err
    assert "ft-pipeline run acme/judge" in (home.home / "plan.md").read_text()
    ended = typed("forget", TRAINED, "--complete")
    assert ended.code == 3 and "acme/judge@1 in local" in ended.err
    for model in catalog.models()[:1] + catalog.models()[2:]:
        catalog.undeploy("local", model.id)
    assert typed("forget", TRAINED, "--complete").code == 0
    policy = catalog.model("acme/policy@1")
    with pytest.raises(GateRefused, match="taken down"):
        catalog.deploy("local", policy.id)
    catalog.transition(policy.id, "archived", actor="ann", reason="gone")
    with pytest.raises(GateRefused, match="taken down"):
        catalog.transition(policy.id, "production", actor="ann", approved_by="bob", reason="back")
    told = typed("history", "acme/policy").out
    assert (
        f"row {TRAINED}: takedown requested" in told and "takedown completed" in told and "asked by the person" in told
    )
    events = json.loads(typed("forget", "--json").out)
    assert [(e["event"], e["by"]) for e in events] == [("requested", "tester"), ("completed", "tester")]
    claim = verify_statement(
        json.loads(catalog.takedowns()[0].envelope),
        trusted_keys(home),
        predicate_type=takedown.PREDICATE_TYPE,
    )
    assert claim["predicate"]["models"] == ["acme/judge@1", "acme/policy@1"]
    assert catalog.verify_rows() > 20


def test_nothing_that_learned_from_it_is_registered_any_more(store, catalog, lines, home):
    found = takedown.affected_by([TRAINED], store=store, catalog=catalog)
    takedown.request(found, reason="asked", catalog=catalog, settings=home)
    with pytest.raises(GateRefused, match=f"acme/new is made of .* learned from the row {TRAINED}"):
        takedown.require_not_forgotten([lines["policy"]["adapter"].ref.digest], "acme/new", catalog)
    takedown.require_not_forgotten([lines["other"]["adapter"].ref.digest], "acme/other", catalog)


def test_a_reason_is_asked_for_a_dry_run_records_nothing_and_nothing_ends_before_it_began(
    store, catalog, lines, typed, home
):
    assert typed("forget", TRAINED, "--dry-run").code == 0
    assert catalog.takedowns() == []
    assert typed("forget", TRAINED).code == 2
    with pytest.raises(UserError, match="nobody asked"):
        found = takedown.affected_by([TRAINED], store=store, catalog=catalog)
        takedown.complete(found, reason="", catalog=catalog, settings=home)


def test_a_forgotten_row_does_not_come_back_and_other_datasets_keep_their_identity(home, store, catalog, tmp_path):
    recipe = parse(road.document(), origin="test")
    raw = []
    for name, first in (("one", 0), ("two", 500)):
        path = road.write_rows(tmp_path / f"{name}.jsonl", [road.question(n) for n in range(first, first + 60)])
        raw.append(dataset.acquire(Dataset(uri=str(path), licence="mit"), settings=home, store=store).ref)
    before = curate(curation_of(recipe, raw=raw[0], base=None, store=store), store=store)
    row = next(iter(rows_of(before, "train")))
    text = row["content"]["messages"][0]["content"]
    gone = [row["row_id"]]
    after = curate(curation_of(recipe, raw=raw[0], base=None, store=store, forgotten=gone), store=store)
    assert after.ref != before.ref
    kept = [r["row_id"] for split in ("train", "validation", "holdout") for r in rows_of(after, split)]
    assert row["row_id"] not in kept and len(kept) == 59
    (line,) = pl.read_parquet(after.file("ledger.parquet")).filter(pl.col("row_id") == row["row_id"]).to_dicts()
    assert (line["action"], line["reason"], line["excerpt"]) == ("dropped", "forgotten", "")
    assert not any(text.encode() in path.read_bytes() for path in after.folder.iterdir() if path.suffix == ".json")
    untouched = curation_of(recipe, raw=raw[1], base=None, store=store)
    assert curation_of(recipe, raw=raw[1], base=None, store=store, forgotten=gone).spec() == untouched.spec()
