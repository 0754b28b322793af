"""The catalog on SQLite and PostgreSQL: names, stages, evidence, deployments, index. PostgreSQL starts once, five seconds."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ft_pipeline.errors import DriftError, GateRefused, IntegrityError, NotFoundError, StorageError, UserError
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, ModelVersion, NewModel
from ft_pipeline.store.catalog_database import open_database
from ft_pipeline.store.catalog_tables import metadata
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.store.platform.tables import metadata as platform

BASE, OTHER_BASE, DATA, SUITE, OTHER_SUITE = "a" * 64, "b" * 64, "d" * 64, "5" * 64, "6" * 64
PASS, FAIL = True, False


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'catalog.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    opened = Catalog(open_database(url).engine)
    yield opened
    opened.close()


def new(number: int = 1, **changes: object) -> NewModel:
    values = {
        "tenant": "demo", "name": "router", "base_digest": BASE, "dataset_digest": DATA, "adapter_digest": f"{number:064x}",
        "report_digest": f"{number + 1000:064x}", "recipe_sha256": "e" * 64, "run_id": "run", "code": "c" * 64,
        "lora_rank": 8, "lora_alpha": 16, "lora_modules": ("q_proj", "k_proj"),
    }  # fmt: skip
    return NewModel(**{**values, **changes})


def staged(catalog: Catalog, number: int = 1, *, to: str = "production", **changes: object) -> ModelVersion:
    """A version with a passed report, moved up to a stage."""
    model = catalog.register(new(number, **changes))
    catalog.add_report(model.id, BASE, SUITE, True, model.report_digest)
    for stage in ("dev", "staging", "production"):
        approved_by = "policy:demo" if stage == "production" else None
        catalog.transition(model.id, stage, actor="ann", approved_by=approved_by, reason="test")
        if stage == to:
            break
    return catalog.model_by_id(model.id)


def published(store: Store, kind: str, number: int = 0, **parents: Artifact) -> Artifact:
    spec = Spec(kind=kind, config={"n": number}, parents={r: a.ref for r, a in parents.items()}, code="c" * 64)
    with store.publish(spec) as draft:
        (draft.folder / "file").write_text(f"{kind} {number}")
        draft.counts["rows"] = number
    assert draft.artifact is not None
    return draft.artifact


def test_versions_count_per_line_and_registering_again_changes_nothing(catalog: Catalog) -> None:
    one = catalog.register(new(1))
    assert (one.version, one.stage, one.lora_modules) == (1, "none", ("k_proj", "q_proj"))
    assert catalog.register(new(2)).version == 2
    assert catalog.register(new(1)) == one
    assert catalog.register(new(1, name="other")).version == 1
    assert [m.label for m in catalog.models()] == ["demo/other@1", "demo/router@1", "demo/router@2"]
    assert catalog.models("nobody") == []


@pytest.mark.parametrize("value", ["A" * 64, "a" * 63, "a" * 65, "g" * 64, ""])
@pytest.mark.parametrize("field", ["base_digest", "adapter_digest", "recipe_sha256"])
def test_what_is_no_digest_is_refused(field: str, value: str) -> None:
    with pytest.raises(UserError, match=field):
        new(**{field: value})


def test_names(catalog: Catalog) -> None:
    staged(catalog, 1)
    catalog.register(new(2))
    assert catalog.model("demo/router").version == 1, "a bare name is what is in production"
    assert catalog.model("demo/router@latest").version == 2
    assert catalog.model("demo/router@2").stage == "none"
    assert catalog.model("demo/router:production").version == 1
    with pytest.raises(NotFoundError, match="did you mean demo/router"):
        catalog.model("demo/ruoter")
    with pytest.raises(NotFoundError, match="demo/router@"):
        catalog.model("demo/router@7")
    with pytest.raises(NotFoundError):
        catalog.model("demo/router:archived")
    for wrong in ("router", "demo/router@x", "demo/router:prod", "../etc/passwd", ""):
        with pytest.raises(UserError, match="does not name a model"):
            catalog.model(wrong)


def test_attested_once(catalog: Catalog) -> None:
    model = catalog.register(new())
    catalog.attest(model.id, "f" * 64)
    catalog.attest(model.id, "f" * 64)
    assert catalog.model("demo/router").registered_digest == "f" * 64
    with pytest.raises(DriftError, match="attested"):
        catalog.attest(model.id, "0" * 64)
    with pytest.raises(NotFoundError):
        catalog.attest(99, "f" * 64)


def test_the_road_to_production_and_back(catalog: Catalog) -> None:
    first, second = staged(catalog, 1), staged(catalog, 2, to="staging")
    catalog.set_pool("local", BASE)
    catalog.deploy("local", first.id)
    catalog.transition(second.id, "production", actor="ann", approved_by="bob", reason="better")
    assert [m.label for m in catalog.deployed("local")] == ["demo/router@2"], (
        "the new version takes the old one's place"
    )
    assert catalog.model("demo/router@1").stage == "archived"
    catalog.transition(first.id, "production", actor="ann", approved_by="bob", reason="rollback")
    assert [m.label for m in catalog.deployed("local")] == ["demo/router@1"]
    assert catalog.model("demo/router").version == 1
    moves = [(t.model[-1], t.from_stage, t.to_stage) for t in catalog.history("demo/router")]
    assert moves == [
        ("1", "none", "dev"), ("1", "dev", "staging"), ("1", "staging", "production"),
        ("2", "none", "dev"), ("2", "dev", "staging"),
        ("1", "production", "archived"), ("2", "staging", "production"),
        ("2", "production", "archived"), ("1", "archived", "production"),
    ]  # fmt: skip
    assert (
        [t.seq for t in catalog.history("demo/router@2")] == [4, 5, 7, 8] == [t.seq for t in catalog.history(second.id)]
    )
    assert catalog.verify_history() == 9


def test_a_move_out_of_order_says_what_may_be_next(catalog: Catalog) -> None:
    model = catalog.register(new())
    with pytest.raises(UserError, match="is in none: it cannot move to production") as error:
        catalog.transition(model.id, "production", actor="ann", approved_by="bob", reason="hurry")
    assert error.value.cure == "next may be: dev"
    catalog.transition(model.id, "dev", actor="ann", reason="new")
    for stage in ("dev", "none", "production"):
        with pytest.raises(UserError, match="is in dev"):
            catalog.transition(model.id, stage, actor="ann", approved_by="bob", reason="x")
    with pytest.raises(UserError, match="did you mean staging"):
        catalog.transition(model.id, "stagin", actor="ann", reason="x")
    with pytest.raises(UserError, match="nobody moves"):
        catalog.transition(model.id, "archived", actor="", reason="x")


def test_no_promotion_without_evidence(catalog: Catalog) -> None:
    model, other = catalog.register(new(1)), staged(catalog, 2)
    catalog.transition(model.id, "dev", actor="ann", reason="new")

    def staging(report_id: int | None = None) -> None:
        catalog.transition(model.id, "staging", actor="ann", reason="x", report_id=report_id)

    with pytest.raises(GateRefused, match="has no evaluation report"):
        staging()
    catalog.add_report(model.id, OTHER_BASE, SUITE, True, "1" * 64)
    with pytest.raises(GateRefused, match="has no evaluation report on its base"):
        staging()
    with pytest.raises(GateRefused, match="has no evaluation report"):
        staging(catalog.add_report(other.id, BASE, OTHER_SUITE, True, "2" * 64))
    passed = catalog.add_report(model.id, BASE, SUITE, True, "3" * 64)
    failed = catalog.add_report(model.id, BASE, SUITE, False, "4" * 64)
    for report in (None, passed, failed):
        with pytest.raises(GateRefused, match="did not pass"):
            staging(report)
    catalog.add_report(model.id, BASE, SUITE, True, "7" * 64)
    staging()


def test_a_rollback_goes_back_to_what_was_there(catalog: Catalog) -> None:
    model = staged(catalog, 1, to="staging")
    catalog.transition(model.id, "archived", actor="ann", reason="not needed")
    with pytest.raises(UserError, match="never in production"):
        catalog.transition(model.id, "production", actor="ann", approved_by="bob", reason="short cut")


def test_four_eyes(catalog: Catalog) -> None:
    model = staged(catalog, 1, to="staging")
    for approved_by in (None, "", "ann"):
        with pytest.raises(GateRefused, match="approved by"):
            catalog.transition(model.id, "production", actor="ann", approved_by=approved_by, reason="x")
    moved = catalog.transition(model.id, "production", actor="ann", approved_by="policy:demo", reason="x")
    assert (moved.actor, moved.approved_by) == ("ann", "policy:demo")


def test_the_same_report_again_is_the_same_row(catalog: Catalog) -> None:
    model = catalog.register(new())
    first = catalog.add_report(model.id, BASE, SUITE, True, "1" * 64)
    assert catalog.add_report(model.id, BASE, SUITE, True, "1" * 64) == first
    failed = catalog.add_report(model.id, BASE, SUITE, False, "2" * 64)
    assert catalog.add_report(model.id, BASE, SUITE, True, "1" * 64) > failed, "a pass after a failure is a new fact"


def test_only_what_passed_on_the_pools_base_is_deployed(catalog: Catalog) -> None:
    with pytest.raises(NotFoundError, match="no pool"):
        catalog.deploy("local", staged(catalog, 1).id)
    catalog.set_pool("local", BASE)
    catalog.set_pool("blue", OTHER_BASE)
    assert catalog.pools() == {"blue": OTHER_BASE, "local": BASE}
    live, staging = catalog.model("demo/router"), staged(catalog, 9, to="staging", name="other")
    with pytest.raises(GateRefused, match="is in staging"):
        catalog.deploy("local", staging.id)
    with pytest.raises(GateRefused, match="has no report on base"):
        catalog.deploy("blue", live.id)
    catalog.add_report(live.id, OTHER_BASE, OTHER_SUITE, True, "1" * 64)
    with pytest.raises(GateRefused, match="has no report on base"):
        catalog.deploy("blue", live.id)
    catalog.add_report(live.id, OTHER_BASE, SUITE, True, "2" * 64)
    catalog.deploy("blue", live.id)
    catalog.deploy("blue", live.id)
    assert catalog.pools_of(live.id) == ["blue"]
    catalog.add_report(live.id, BASE, SUITE, False, "3" * 64)
    with pytest.raises(GateRefused, match="has the failed report"):
        catalog.deploy("local", live.id)
    with pytest.raises(UserError, match="is deployed in blue: it cannot be archived"):
        catalog.transition(live.id, "archived", actor="ann", reason="old")
    catalog.undeploy("blue", live.id)
    catalog.transition(live.id, "archived", actor="ann", reason="old")


def test_a_pool_moves_to_a_base_only_with_all_its_versions(catalog: Catalog) -> None:
    model = staged(catalog, 1)
    catalog.set_pool("local", BASE)
    catalog.deploy("local", model.id)
    catalog.set_pool("local", BASE)
    catalog.add_report(model.id, OTHER_BASE, OTHER_SUITE, True, "1" * 64)
    with pytest.raises(GateRefused, match="has no report on base"):
        catalog.set_pool("local", OTHER_BASE)
    catalog.add_report(model.id, OTHER_BASE, SUITE, True, "2" * 64)
    catalog.set_pool("local", OTHER_BASE)
    assert catalog.pools() == {"local": OTHER_BASE}


def test_heads_index_and_pins(catalog: Catalog, store: Store) -> None:
    raw = published(store, "raw_dataset")
    curated = published(store, "curated_dataset", raw=raw)
    with pytest.raises(NotFoundError, match="has no curated_dataset yet"):
        catalog.head("demo/router", "curated_dataset")
    catalog.set_head("demo/router", "raw_dataset", raw, run_id="run-1")
    catalog.set_head("demo/router", "curated_dataset", curated)
    catalog.set_head("demo/router", "curated_dataset", curated)
    assert catalog.heads("demo/router") == {"curated_dataset": curated.ref, "raw_dataset": raw.ref}
    newer = published(store, "curated_dataset", 2, raw=raw)
    catalog.set_head("demo/router", "curated_dataset", newer)
    assert catalog.head("demo/router", "curated_dataset") == newer.ref
    assert set(catalog.children(raw.ref.digest)) == {curated.ref, newer.ref}
    assert catalog.ref(raw.ref.digest[:10]) == raw.ref
    assert catalog.recipe_keys() == ["demo/router"]
    with pytest.raises(NotFoundError):
        catalog.ref("f" * 10)
    with pytest.raises(NotFoundError):
        catalog.ref("%")
    with pytest.raises(UserError):
        catalog.ref("")
    assert catalog.pinned("demo/router", "hf://a/b") is None
    catalog.pin("demo/router", "hf://a/b", "1" * 40)
    catalog.pin("demo/router", "hf://a/b", "2" * 40)
    assert catalog.pinned("demo/router", "hf://a/b") == "2" * 40


def test_the_index_is_rebuilt_from_the_manifests(catalog: Catalog, store: Store) -> None:
    raw = published(store, "raw_dataset")
    curated = published(store, "curated_dataset", raw=raw)
    assert catalog.rebuild(store) == 2
    assert catalog.children(raw.ref.digest) == [curated.ref]
    gone = Ref(kind="adapter", fingerprint="1" * 64, digest="2" * 64)
    manifest = dataclasses.replace(curated.manifest, kind="adapter")
    catalog.index(manifest)
    assert len(catalog.children(raw.ref.digest)) == 2
    assert catalog.rebuild(store) == 2
    assert catalog.children(raw.ref.digest) == [curated.ref]
    assert catalog.children(gone.digest) == []


def test_writers_take_turns(catalog: Catalog, url: str) -> None:
    """Eight writers with their own connections: versions and history stay without gaps."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        mine = Catalog(open_database(url).engine)
        try:
            staged(mine, number)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [m.version for m in catalog.models()] == list(range(1, 9))
    assert [m.stage for m in catalog.models()].count("production") == 1
    assert catalog.verify_history() == 8 * 3 + 7


def test_opening_at_once_makes_one_catalog(url: str) -> None:
    opened: list[Catalog] = []
    threads = [threading.Thread(target=lambda: opened.append(Catalog(open_database(url).engine))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for catalog in opened:
        assert catalog.models() == []
        catalog.close()


def test_opening_again_is_fast(catalog: Catalog, url: str) -> None:
    started = time.perf_counter()
    open_database(url).close()
    assert time.perf_counter() - started < 0.1


def test_the_tables_are_what_the_migrations_make(catalog: Catalog) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with catalog.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), [metadata, platform]) == []


def test_a_newer_catalog_is_refused(catalog: Catalog, url: str) -> None:
    with catalog.write() as db:
        db.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="cannot be brought up to date"):
        open_database(url)


def test_changed_history_is_seen(catalog: Catalog) -> None:
    """The owner of a database can drop the triggers; the chain tells."""
    staged(catalog, 1)
    with catalog.write() as db:
        drop = "DROP TRIGGER transitions_update_append_only"
        db.execute(sa.text(drop if db.dialect.name == "sqlite" else f"{drop} ON transitions"))
        db.execute(sa.text("UPDATE transitions SET approved_by = 'ceo' WHERE seq = 3"))
    with pytest.raises(IntegrityError, match=r"transition 3 of demo/router@1"):
        catalog.verify_history()


def test_what_is_no_catalog_is_told(tmp_path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        open_database(f"sqlite:///{tmp_path / 'x.db'}")
    for wrong in ("mysql://host/db", "nonsense", "oracle://x"):
        with pytest.raises(UserError, match="FT_CATALOG"):
            open_database(wrong)
    with pytest.raises(StorageError, match="is the server up"):
        open_database("postgresql://nobody@127.0.0.1:9/none")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["deploy", "move"])
def test_two_connections_to_postgres_take_turns(postgres_url: str, first: str) -> None:
    """SQL past our code: deploying and moving the pool at once; the second waits, sees the first and is refused."""
    catalog = Catalog(open_database(postgres_url).engine)
    model = staged(catalog, 1)
    catalog.set_pool("local", BASE)
    catalog.add_report(model.id, OTHER_BASE, SUITE, False, "1" * 64)
    deploy = f"INSERT INTO deployments (pool_id, model_id, created_at) VALUES ('local', {model.id}, 'now')"
    move = f"UPDATE pools SET base_digest = '{OTHER_BASE}' WHERE id = 'local'"
    one, two = (deploy, move) if first == "deploy" else (move, deploy)
    refused: list[str] = []

    def second() -> None:
        try:
            with catalog.engine.begin() as connection:
                connection.exec_driver_sql(two)
        except sa.exc.IntegrityError as error:
            refused.append(str(error))

    thread = threading.Thread(target=second)
    with catalog.engine.begin() as connection:
        connection.exec_driver_sql(one)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "the second waits"
    thread.join()
    assert len(refused) == 1 and "ft: " in refused[0]
    catalog.close()
