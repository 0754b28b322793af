"""From a registered model to the raw bytes and back: every flipped byte is named, every row finds its adapters."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from ft_pipeline import lineage
from ft_pipeline.errors import IntegrityError, NotFoundError, UserError
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, NewModel
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.messages import Message

KEPT, HELD, DROPPED, CUT = "r0a" + "1" * 14, "r0b" + "2" * 14, "r0c" + "3" * 14, "r0d" + "4" * 14
LEDGER = ["row_id", "origin", "action", "stage", "reason", "evidence", "excerpt"]


def made(store: Store, kind: str, files: dict[str, bytes | pl.DataFrame], **parents: Artifact) -> Artifact:
    spec = Spec(kind=kind, config={}, parents={r: a.ref for r, a in parents.items()}, code="c" * 64)
    with store.publish(spec) as draft:
        for name, content in files.items():
            if isinstance(content, bytes):
                (draft.folder / name).write_bytes(content)
            else:
                content.write_parquet(draft.folder / name)
        draft.counts["rows"] = 3
    assert draft.artifact is not None
    return draft.artifact


def ledger(*rows: tuple[str, ...]) -> pl.DataFrame:
    return pl.DataFrame([dict(zip(LEDGER, row, strict=True)) for row in rows], schema=dict.fromkeys(LEDGER, pl.String))


@pytest.fixture
def chain(store: Store) -> dict[str, Artifact]:
    """A small chain with the files and columns of the real one."""
    raw = made(store, "raw_dataset", {"rows.jsonl": b'{"text":"a"}\n' * 100})
    base = made(store, "base_model", {"model.safetensors": bytes(range(256)), "config.json": b"{}"})
    splits = {
        f"{split}.parquet": pl.DataFrame({"row_id": ids, "origin": [f"rows.jsonl:{i}" for i, _ in enumerate(ids, 1)]})
        for split, ids in {"train": [KEPT, CUT], "validation": ["r0e" + "5" * 14], "holdout": [HELD]}.items()
    }
    near = (DROPPED, "rows.jsonl:9", "dropped", "near_duplicate", "near duplicate", json.dumps({"kept": KEPT}), "a")
    found = [
        (KEPT, "pii", "note", '{"kind": "email"}'),
        (DROPPED, "quality", "note", "{}"),
        (KEPT + "-2", "pii", "note", "{}"),
    ]
    flags = pl.DataFrame(
        [
            {"row_id": i, "origin": "rows.jsonl:1", "filter": f, "action": a, "reason": "seen", "evidence": e}
            for i, f, a, e in found
        ]
    )
    files = {**splits, "ledger.parquet": ledger(near), "flags.parquet": flags}
    curated = made(store, "curated_dataset", files, raw=raw)
    rows = pl.DataFrame(
        {
            "row_id": [KEPT, "r0e" + "5" * 14], "split": ["train", "validation"],
            "shard": ["train-00000.parquet", "validation-00000.parquet"], "window": [2, 0], "start": [17, 0],
            "tokens": [40, 9], "trained_tokens": [12, 3],
        }
    )  # fmt: skip
    over = (CUT, "rows.jsonl:2", "dropped", "pack", "overlong", "{}", "b")
    shards = made(
        store, "packed_shards",
        {"train-00000.parquet": rows, "rows.parquet": rows, "ledger.parquet": ledger(over)}, curated=curated,
    )  # fmt: skip
    checkpoints = made(store, "checkpoints", {"completion.json": b"{}"}, shards=shards, base=base)
    adapter = made(
        store, "adapter", {"adapter_model.safetensors": b"weights"}, checkpoints=checkpoints, base=base, shards=shards
    )
    report = made(store, "eval_report", {"verdicts.json": b"{}"}, adapter=adapter, base=base, curated=curated)
    model = made(
        store,
        "registered_model",
        {"model_card.md": b"# Card"},
        adapter=adapter,
        report=report,
        base=base,
        curated=curated,
    )
    return {
        "raw": raw, "base": base, "curated": curated, "shards": shards, "checkpoints": checkpoints, "adapter": adapter,
        "report": report, "model": model,
    }  # fmt: skip


def test_a_row_is_seen_by_the_adapters_that_started_from_one_that_saw_it(
    store: Store, catalog: Catalog, chain: dict[str, Artifact]
) -> None:
    other = made(store, "packed_shards", {"train-00000.parquet": b"rows"}, curated=chain["curated"], raw=chain["raw"])
    parents = {"base": chain["base"], "shards": other, "start": chain["adapter"]}
    later = made(store, "adapter", {"adapter_model.safetensors": b"later"}, **parents)
    found = {s.adapter: s.trained for s in lineage.adapters_that_saw(store, catalog, KEPT).adapters}
    assert found == {chain["adapter"].ref: True, later.ref: True}


def test_everything_is_hashed_ancestors_first(store: Store, chain: dict[str, Artifact]) -> None:
    heard: list[Message] = []
    checked = lineage.verify(store, chain["model"].ref, listener=heard.append)
    assert len(checked) == 8 and checked[-1].ref == chain["model"].ref
    assert {c.ref for c in checked} == {a.ref for a in chain.values()}
    place = [c.ref for c in checked].index
    for artifact in chain.values():
        assert all(place(parent) < place(artifact.ref) for parent in artifact.manifest.parents.values())
    assert all(c.ok and c.files == len(chain_of.manifest.files) for c in checked for chain_of in [by_ref(chain, c)])
    assert heard[-1].done == heard[-1].total == sum(c.size for c in checked)


def by_ref(chain: dict[str, Artifact], checked: lineage.Checked) -> Artifact:
    return next(a for a in chain.values() if a.ref == checked.ref)


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ("raw", "rows.jsonl"), ("base", "model.safetensors"), ("curated", "train.parquet"), ("curated", "ledger.parquet"),
        ("shards", "train-00000.parquet"), ("checkpoints", "completion.json"), ("adapter", "adapter_model.safetensors"),
        ("report", "verdicts.json"), ("model", "model_card.md"),
    ],
)  # fmt: skip
def test_a_flipped_byte_anywhere_is_named(store: Store, chain: dict[str, Artifact], who: str, name: str) -> None:
    path = chain[who].file(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError) as error:
        lineage.verify(store, chain["model"].ref)
    assert error.value.what == f"{chain[who].ref.kind} {chain[who].ref.digest[:12]}: file {name} was changed"
    assert str(path.parent) in error.value.why and error.value.cure


def test_cut_missing_and_extra_files_are_named(store: Store, chain: dict[str, Artifact]) -> None:
    path = chain["raw"].file("rows.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match=r"raw_dataset .*rows\.jsonl is cut short"):
        lineage.verify(store, chain["model"].ref)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"raw_dataset .*rows\.jsonl is missing"):
        lineage.verify(store, chain["model"].ref)
    path.write_bytes(content)
    (path.parent / "more.jsonl").touch()
    with pytest.raises(IntegrityError, match=r"raw_dataset .*more\.jsonl is not in the manifest"):
        lineage.verify(store, chain["model"].ref)


@pytest.mark.parametrize("walk", [lineage.verify, lineage.tree])
def test_a_broken_link_is_named_with_its_child(store: Store, chain: dict[str, Artifact], walk) -> None:
    folder = chain["raw"].folder
    kept = folder.with_name("kept")
    folder.rename(kept)
    with pytest.raises(IntegrityError, match=r"raw_dataset .* recorded by curated_dataset .* as raw: no artifact at"):
        walk(store, chain["model"].ref)
    made(store, "raw_dataset", {"rows.jsonl": b"other"})
    with pytest.raises(IntegrityError, match=r"raw_dataset .* recorded by curated_dataset .* as raw: .* has digest"):
        walk(store, chain["model"].ref)
    shutil.rmtree(folder)
    kept.rename(folder)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows":3', b'"rows":4'))
    with pytest.raises(IntegrityError, match=r"raw_dataset .*manifest\.json was changed"):
        walk(store, chain["model"].ref)


def test_tree(store: Store, chain: dict[str, Artifact]) -> None:
    root = lineage.tree(store, chain["model"].ref)
    assert (root.kind, root.digest) == ("registered_model", chain["model"].ref.digest)
    assert sorted(root.parents) == ["adapter", "base", "curated", "report"]
    raw = root.parents["adapter"].parents["shards"].parents["curated"].parents["raw"]
    assert raw.digest == chain["raw"].ref.digest and raw.counts == {"rows": 3} and raw.size == 1300
    assert raw is root.parents["curated"].parents["raw"]
    assert json.dumps(dataclasses.asdict(root))


def registered(catalog: Catalog, chain: dict[str, Artifact]) -> None:
    digests = {
        f"{field}_digest": chain[role].ref.digest
        for field, role in {"base": "base", "dataset": "curated", "adapter": "adapter", "report": "report"}.items()
    }
    model = catalog.register(
        NewModel(
            tenant="demo", name="router", recipe_sha256="e" * 64, run_id="run", code="c" * 64, lora_rank=8, **digests
        )
    )
    catalog.add_report(model.id, model.base_digest, "5" * 64, True, model.report_digest)
    for stage in ("dev", "staging", "production"):
        catalog.transition(model.id, stage, actor="ann", approved_by="policy:demo", reason="test")
    catalog.set_pool("local", model.base_digest)
    catalog.deploy("local", model.id)
    catalog.set_head("demo/router", "adapter", chain["adapter"])


def test_a_kept_row_finds_its_adapters(store: Store, catalog: Catalog, chain: dict[str, Artifact]) -> None:
    registered(catalog, chain)
    found = lineage.adapters_that_saw(store, catalog, KEPT)
    assert found.origins == ("rows.jsonl:1",)
    assert found.splits == ((chain["curated"].ref, "train"),)
    assert found.places == (
        lineage.Place(
            shards=chain["shards"].ref, split="train", shard="train-00000.parquet", window=2, start=17, tokens=40,
            trained_tokens=12,
        ),
    )  # fmt: skip
    assert found.flags == (
        lineage.Flagged(
            artifact=chain["curated"].ref, filter="pii", action="note", reason="seen", evidence='{"kind": "email"}'
        ),
    )
    assert found.adapters == (
        lineage.Sighting(
            adapter=chain["adapter"].ref, recipe_keys=("demo/router",), trained=True,
            versions=("demo/router@1 (production)",), pools=("local",),
        ),
    )  # fmt: skip
    assert lineage.adapters_that_saw(store, catalog, KEPT[:8]) == found, "a prefix will do"
    text = lineage.told(found)
    for part in (KEPT, "rows.jsonl:1", "window 2, tokens 17-57", "12 trained on", "demo/router@1", "deployed in local"):
        assert part in text


def test_a_row_that_nobody_was_trained_on(store: Store, catalog: Catalog, chain: dict[str, Artifact]) -> None:
    dropped = lineage.adapters_that_saw(store, catalog, DROPPED)
    assert (dropped.splits, dropped.places, dropped.adapters) == ((), (), ())
    entry = dropped.ledger[0]
    assert (entry.action, entry.reason, json.loads(entry.evidence)) == ("dropped", "near duplicate", {"kept": KEPT})
    assert "no adapter was trained on it" in lineage.told(dropped)
    assert f"flagged in curated_dataset {chain['curated'].ref.digest[:12]}: quality, seen (note)" in lineage.told(
        dropped
    )
    overlong = lineage.adapters_that_saw(store, catalog, CUT)
    assert overlong.ledger[0].artifact == chain["shards"].ref and overlong.adapters == ()
    held = lineage.adapters_that_saw(store, catalog, HELD)
    assert held.splits == ((chain["curated"].ref, "holdout"),) and held.adapters == ()
    validation = lineage.adapters_that_saw(store, catalog, "r0e")
    assert [s.trained for s in validation.adapters] == [False]
    assert "measured its validation loss" in lineage.told(validation)


def test_what_is_no_row(store: Store, catalog: Catalog, chain: dict[str, Artifact]) -> None:
    with pytest.raises(NotFoundError, match="no row rffff"):
        lineage.adapters_that_saw(store, catalog, "rffff")
    with pytest.raises(UserError, match="fits 5 rows"):
        lineage.adapters_that_saw(store, catalog, "r0")


def test_a_changed_ledger_is_not_believed(store: Store, catalog: Catalog, chain: dict[str, Artifact]) -> None:
    path: Path = chain["curated"].file("ledger.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"ledger\.parquet was changed"):
        lineage.adapters_that_saw(store, catalog, KEPT)
