"""The seven holes of the first design, each tried past our code on SQLite and PostgreSQL; and two writers at once, in both orders."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ft_pipeline.errors import FtError
from ft_pipeline.store.catalog import Catalog, NewModel
from ft_pipeline.store.catalog_database import open_database

A, B, SUITE, OTHER_SUITE = "a" * 64, "b" * 64, "5" * 64, "6" * 64
DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)]


@pytest.fixture(params=DATABASES)
def catalog(request: pytest.FixtureRequest, tmp_path) -> Iterator[Catalog]:
    """Version 1 in production and deployed in `local` (base A), version 2 in staging, both passed on A with SUITE."""
    url = f"sqlite:///{tmp_path / 'c.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = Catalog(open_database(url).engine)
    for number, stages in enumerate((("dev", "staging", "production"), ("dev", "staging")), start=1):
        model = opened.register(
            NewModel(
                tenant="demo", name="router", base_digest=A, dataset_digest="d" * 64, adapter_digest=f"{number:064x}",
                report_digest="e" * 64, recipe_sha256="f" * 64, run_id="run", code="code", lora_rank=8,
            )
        )  # fmt: skip
        opened.add_report(model.id, A, SUITE, True, f"{number:064x}")
        for stage in stages:
            opened.transition(model.id, stage, actor="ann", approved_by="bob", reason="x")
    opened.set_pool("local", A)
    opened.deploy("local", 1)
    yield opened
    opened.close()


def refused(catalog: Catalog, *statements: str) -> str:
    """What the database says to SQL that is committed unless it objects."""
    with pytest.raises(FtError) as error, catalog.write() as db:
        for statement in statements:
            db.execute(sa.text(statement))
    return error.value.what


def to_archived(model: int) -> str:
    return moved(model, "production", "archived", "NULL", "NULL")


def moved(model: int, before: str, after: str, report: str, approved_by: str) -> str:
    """SQL of the next transition, rightly chained."""
    last = "FROM transitions ORDER BY seq DESC LIMIT 1"
    return (
        "INSERT INTO transitions (seq, model_id, from_stage, to_stage, report_id, actor, approved_by, reason, created_at,"
        f" previous_sha256, sha256) SELECT seq + 1, {model}, '{before}', '{after}', {report}, 'ann', {approved_by}, 'x', 'now',"
        f" sha256, '{model:064x}' {last}"
    )


def report(model: int, base: str, suite: str, passed: int) -> str:
    return (
        "INSERT INTO eval_reports (model_id, base_digest, suite_sha256, passed, report_digest, created_at)"
        f" VALUES ({model}, '{base}', '{suite}', {passed}, '{A}', 'now')"
    )


DEPLOY = "INSERT INTO deployments (pool_id, model_id, created_at) VALUES ('local', {}, 'now')"
MOVE_POOL = f"UPDATE pools SET base_digest = '{B}' WHERE id = 'local'"


def known_base(catalog: Catalog) -> None:
    """B is a base, and no version passed on it with its own suite."""
    catalog.set_pool("empty", B)


def test_hole_1_a_deployed_version_is_not_archived(catalog: Catalog) -> None:
    assert refused(catalog, to_archived(1)) == "a deployed version cannot be archived"


def test_hole_2_a_deployment_is_not_swapped(catalog: Catalog) -> None:
    assert "a deployment is never changed" in refused(catalog, "UPDATE deployments SET model_id = 2")


def test_hole_3_nothing_is_deployed_after_a_later_failing_report(catalog: Catalog) -> None:
    catalog.undeploy("local", 1)
    catalog.add_report(1, A, SUITE, False, "9" * 64)
    assert "whose newest report on the pool's base passed" in refused(catalog, DEPLOY.format(1))
    with pytest.raises(FtError, match="has the failed report"):
        catalog.deploy("local", 1)


def test_hole_4_a_pool_does_not_move_on_a_pass_of_another_suite(catalog: Catalog) -> None:
    known_base(catalog)
    catalog.add_report(1, B, OTHER_SUITE, True, "9" * 64)
    assert "no passing report on the new base" in refused(catalog, MOVE_POOL)
    with pytest.raises(FtError, match="has no report on base"):
        catalog.set_pool("local", B)


@pytest.mark.parametrize("table", ["base_models", "dataset_versions"])
def test_hole_5_a_base_and_a_dataset_are_never_changed(catalog: Catalog, table: str) -> None:
    assert f"{table} is append-only" in refused(catalog, f"UPDATE {table} SET created_at = 'then'")
    assert f"{table} is append-only" in refused(catalog, f"DELETE FROM {table}")


def test_hole_6_one_production_version_a_line(catalog: Catalog) -> None:
    promotion = moved(2, "staging", "production", "2", "'bob'")
    assert "another version of this model line is in production" in refused(catalog, promotion)
    catalog.transition(2, "production", actor="ann", approved_by="bob", reason="x")
    assert [m.stage for m in catalog.models()] == ["archived", "production"], "the old one went in the same step"


@pytest.mark.parametrize("passed", [2, -1])
def test_hole_7_passed_is_yes_or_no(catalog: Catalog, passed: int) -> None:
    assert "passed_or_not" in refused(catalog, report(1, A, SUITE, passed))


@pytest.mark.parametrize("digest", ["A" * 64, "a" * 63, "g" * 64, "' || '"])
def test_hole_7_a_digest_is_64_lower_case_hex_digits(catalog: Catalog, digest: str) -> None:
    assert "is_sha256" in refused(catalog, report(1, A, digest, 1))


def promote_2(catalog: Catalog) -> None:
    catalog.transition(2, "production", actor="ann", approved_by="bob", reason="x")


RACES = {
    "deploy and a pool that moves": (DEPLOY.format(1), MOVE_POOL, ["DELETE FROM deployments"]),
    "deploy and an archive": (DEPLOY.format(1), to_archived(1), ["DELETE FROM deployments"]),
    "two promotions": (
        moved(2, "staging", "production", "2", "'bob'"),
        moved(1, "archived", "production", "1", "'bob'").replace(f"{1:064x}", "7" * 64),
        ["DELETE FROM deployments", to_archived(1)],
    ),
    "two archives": (to_archived(1), to_archived(1).replace(f"{1:064x}", "8" * 64), ["DELETE FROM deployments"]),
}  # fmt: skip


@pytest.mark.parametrize("order", ["as written", "the other way round"])
@pytest.mark.parametrize("race", RACES)
def test_two_connections_at_once(catalog: Catalog, race: str, order: str) -> None:
    """SQL past our code on two connections: the second waits for the first to commit, sees it, and is refused."""
    known_base(catalog)
    one, two, before = RACES[race]
    with catalog.write() as db:
        for statement in before:
            db.execute(sa.text(statement))
    if order != "as written":
        one, two = two, one
    said: list[str] = []

    def second() -> None:
        try:
            with catalog.engine.connect().execution_options(ft_write=True) as db, db.begin():
                db.exec_driver_sql(two)
        except sa.exc.DBAPIError as error:
            said.append(str(error.orig))

    thread = threading.Thread(target=second)
    with catalog.engine.connect().execution_options(ft_write=True) as db, db.begin():
        db.exec_driver_sql(one)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "the second waits"
    thread.join()
    assert len(said) == 1 and "ft: " in said[0], "one of the two was refused"


def take_down(catalog: Catalog, event: str, models: list[int]) -> None:
    catalog.add_takedown(["r1"], models, event=event, actor="ann", reason="asked", sign=lambda _: "{}")


def test_what_was_made_from_a_forgotten_row_never_comes_back(catalog: Catalog) -> None:
    with pytest.raises(FtError, match="completed after it was requested"):
        take_down(catalog, "completed", [2])
    take_down(catalog, "requested", [1, 2])
    with pytest.raises(FtError, match="made from the row is deployed"):
        take_down(catalog, "completed", [1, 2])
    catalog.undeploy("local", 1)
    take_down(catalog, "completed", [1, 2])
    assert "taken down" in refused(catalog, DEPLOY.format(1))
    with pytest.raises(FtError, match="taken down"):
        promote_2(catalog)
    assert catalog.forgotten() == ("r1",) and catalog.verify_rows() >= 20


@pytest.mark.parametrize("table", ["journal", "seals", "takedowns", "takedown_models"])
def test_the_new_tables_only_grow(catalog: Catalog, table: str) -> None:
    take_down(catalog, "requested", [1])
    catalog.add_seal(lambda _: "{}")
    column = "model_id" if table == "takedown_models" else "created_at"
    assert f"{table} is append-only" in refused(catalog, f"UPDATE {table} SET {column} = {column}")
    assert f"{table} is append-only" in refused(catalog, f"DELETE FROM {table}")


def test_a_journal_line_out_of_order_is_refused(catalog: Catalog) -> None:
    forged = "INSERT INTO journal SELECT seq + 7, table_name, row_key, content, created_at, previous_sha256, sha256 FROM journal WHERE seq = 1"
    assert "hash chain" in refused(catalog, forged)


def test_the_owner_of_either_database_is_betrayed_by_the_journal(catalog: Catalog) -> None:
    off = {
        "sqlite": "DROP TRIGGER eval_reports_update_append_only",
        "postgresql": "ALTER TABLE eval_reports DISABLE TRIGGER ALL",
    }
    with catalog.write() as db:
        db.execute(sa.text(off[db.dialect.name]))
        db.execute(sa.text(f"UPDATE eval_reports SET suite_sha256 = '{OTHER_SUITE}' WHERE id = 2"))
    with pytest.raises(FtError, match=r"table eval_reports, row \[2\]: it was changed: suite_sha256 was '5"):
        catalog.deploy("local", 1)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_nobody_decides_on_an_old_snapshot(postgres_url: str, level: str) -> None:
    """Past the lock a snapshot from before it would still show the pool as it was."""
    catalog = Catalog(open_database(postgres_url).engine)
    db = catalog.engine.connect().execution_options(isolation_level=level)
    with db, pytest.raises(sa.exc.DBAPIError, match="isolation level read committed"):
        db.exec_driver_sql("DELETE FROM deployments")
    catalog.close()
