"""What the database refuses when somebody speaks SQL to it past our code, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ft_pipeline.errors import FtError
from ft_pipeline.store.catalog import Catalog, NewModel
from ft_pipeline.store.catalog_database import open_database

A, B, SUITE, OTHER_SUITE = "a" * 64, "b" * 64, "5" * 64, "6" * 64


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def catalog(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Model 1 in production and deployed in `local` (base A), model 2 in staging, model 3 in dev with a failed report."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('rules') / 'catalog.db'}"
    else:
        url = request.getfixturevalue("new_postgres_url")()
    opened = Catalog(open_database(url).engine)
    for number, stages in enumerate((("dev", "staging", "production"), ("dev", "staging"), ("dev",)), start=1):
        model = opened.register(
            NewModel(
                tenant="demo", name="router", base_digest=A, dataset_digest="d" * 64, adapter_digest=f"{number:064x}",
                report_digest="e" * 64, recipe_sha256="f" * 64, run_id="run", code="code", lora_rank=8,
            )
        )  # fmt: skip
        opened.add_report(model.id, A, SUITE, number < 3, "e" * 64)
        for stage in stages:
            opened.transition(model.id, stage, actor="ann", approved_by="bob", reason="x")
    opened.set_pool("local", A)
    opened.set_pool("empty", B)
    opened.deploy("local", 1)
    yield opened
    opened.close()


APPEND_ONLY = ("base_models", "dataset_versions", "model_versions", "eval_reports", "transitions")
LAST_REPORT = "(SELECT MAX(id) FROM eval_reports)"
COLUMN = {"base_models": "name", "dataset_versions": "created_at", "model_versions": "run_id", "eval_reports": "passed"}


def transition(**changes: object) -> str:
    """SQL of a transition of model 2 to production that would be fine but for model 1 being there."""
    last = "(SELECT MAX(seq) FROM transitions)"
    row = {
        "seq": f"{last} + 1", "model_id": 2, "from_stage": "'staging'", "to_stage": "'archived'", "report_id": "NULL",
        "actor": "'ann'", "approved_by": "NULL", "reason": "'x'", "created_at": "'now'",
        "previous_sha256": f"(SELECT sha256 FROM transitions WHERE seq = {last})", "sha256": f"'{'9' * 64}'",
        **changes,
    }  # fmt: skip
    return f"INSERT INTO transitions ({', '.join(row)}) VALUES ({', '.join(map(str, row.values()))})"


def report(**changes: object) -> str:
    row = {
        "model_id": 1, "base_digest": f"'{A}'", "suite_sha256": f"'{SUITE}'", "passed": 1, "report_digest": f"'{A}'",
        "created_at": "'now'", **changes,
    }  # fmt: skip
    return f"INSERT INTO eval_reports ({', '.join(row)}) VALUES ({', '.join(map(str, row.values()))})"


def ask(catalog: Catalog, *statements: str) -> None:
    """Runs the statements in one transaction that is never committed."""
    with catalog.write() as db:
        for statement in statements:
            db.execute(sa.text(statement))
        db.get_transaction().rollback()


def deploy(model: int, pool: str = "local") -> str:
    return f"INSERT INTO deployments (pool_id, model_id, created_at) VALUES ('{pool}', {model}, 'now')"


PRODUCTION = {"to_stage": "'production'", "approved_by": "'bob'", "report_id": 2}
VACATE = ["DELETE FROM deployments", transition(model_id=1, from_stage="'production'", sha256=f"'{'7' * 64}'")]
"""Model 1 leaves, so that nothing but the fault under test stands in the way of model 2."""
FAILED, DEPLOYABLE = "did not pass", "only a production version whose newest report"
REFUSED = {
    **{f"update {t}": (f"{t} is append-only", [f"UPDATE {t} SET {COLUMN.get(t, 'reason')} = {COLUMN.get(t, 'reason')}"])
       for t in APPEND_ONLY},
    **{f"delete {t}": (f"{t} is append-only", [f"DELETE FROM {t}"]) for t in APPEND_ONLY},
    "production with another there": ("another version", [transition(**PRODUCTION)]),
    "production without approval": ("approved_by_another", [*VACATE, transition(**PRODUCTION | {"approved_by": "NULL"})]),
    "production approved by the actor": (
        "approved_by_another", [*VACATE, transition(**PRODUCTION | {"approved_by": "'ann'"})],
    ),
    "production without a report": (FAILED, [*VACATE, transition(**PRODUCTION | {"report_id": "NULL"})]),
    "production on another's report": (FAILED, [*VACATE, transition(**PRODUCTION | {"report_id": 1})]),
    "staging on a failed report": (
        FAILED, [transition(model_id=3, from_stage="'dev'", to_stage="'staging'", report_id=3)],
    ),
    "staging after a later failure": (
        FAILED, [
            report(model_id=3), report(model_id=3, passed=0),
            transition(model_id=3, from_stage="'dev'", to_stage="'staging'", report_id=f"{LAST_REPORT} - 1"),
        ],
    ),
    "staging on a report of another base": (
        FAILED, [
            report(model_id=3, base_digest=f"'{B}'"),
            transition(model_id=3, from_stage="'dev'", to_stage="'staging'", report_id=LAST_REPORT),
        ],
    ),
    "a stage that is not the current one": ("not the current stage", [transition(from_stage="'dev'")]),
    "a leap": (
        "legal_transition", [
            *VACATE, report(model_id=3),
            transition(**PRODUCTION | {"model_id": 3, "from_stage": "'dev'", "report_id": LAST_REPORT}),
        ],
    ),
    "an unknown stage": ("legal_transition", [transition(to_stage="'gold'")]),
    "nobody acts": ("somebody_acted", [transition(actor="''")]),
    "a rollback to what was never there": (
        "was in production once", [
            *VACATE, transition(), transition(**PRODUCTION | {"from_stage": "'archived'", "sha256": f"'{'8' * 64}'"}),
        ],
    ),
    "archiving what is deployed": ("a deployed version", [transition(model_id=1, from_stage="'production'")]),
    "a gap in the chain": ("hash chain", [transition(seq=99)]),
    "a fork of the chain": ("hash chain", [transition(previous_sha256=f"'{'0' * 64}'")]),
    "deploying staging": (DEPLOYABLE, [deploy(2)]),
    "deploying where it did not pass": (DEPLOYABLE, [deploy(1, "empty")]),
    "deploying after a later failure": (DEPLOYABLE, ["DELETE FROM deployments", report(passed=0), deploy(1)]),
    "deploying on a pass of another suite": (
        DEPLOYABLE, [report(base_digest=f"'{B}'", suite_sha256=f"'{OTHER_SUITE}'"), deploy(1, "empty")],
    ),
    "swapping a deployment": ("never changed", ["UPDATE deployments SET model_id = 2"]),
    "moving a pool to a base nobody passed on": (
        "no passing report on the new base", [f"UPDATE pools SET base_digest = '{B}' WHERE id = 'local'"],
    ),
    "moving a pool on a pass of another suite": (
        "no passing report on the new base", [
            report(base_digest=f"'{B}'", suite_sha256=f"'{OTHER_SUITE}'"),
            f"UPDATE pools SET base_digest = '{B}' WHERE id = 'local'",
        ],
    ),
    "deleting a pool in use": ("a pool with deployments", ["DELETE FROM pools WHERE id = 'local'"]),
    "passed = 2": ("passed_or_not", [report(passed=2)]),
    "a digest in capitals": ("report_digest_is_sha256", [report(report_digest=f"'{'A' * 64}'")]),
    "a short digest": ("report_digest_is_sha256", [report(report_digest="'abc'")]),
    "a report of nobody": ("(?i)foreign key", [report(model_id=77)]),
    "a report on an unknown base": ("(?i)foreign key", [report(base_digest=f"'{'7' * 64}'")]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(catalog: Catalog, what: str) -> None:
    reason, statements = REFUSED[what]
    with pytest.raises(FtError, match=reason) as error:
        ask(catalog, *statements)
    assert error.value.cure
    assert catalog.verify_history() == 6
    assert [m.id for m in catalog.deployed("local")] == [1]


ALLOWED = {
    "archiving": [transition()],
    "deploying where it passed": [report(base_digest=f"'{B}'"), deploy(1, "empty")],
    "moving a pool where all passed": [
        report(base_digest=f"'{B}'"), f"UPDATE pools SET base_digest = '{B}' WHERE id = 'local'",
    ],
    "staging after a later pass": [
        report(model_id=3), transition(model_id=3, from_stage="'dev'", to_stage="'staging'", report_id=LAST_REPORT),
    ],
    "production once the place is free": [*VACATE, transition(**PRODUCTION)],
    "a rollback": [
        *VACATE,
        transition(**PRODUCTION | {"model_id": 1, "report_id": 1, "from_stage": "'archived'", "sha256": f"'{'8' * 64}'"}),
    ],
    "undeploying and archiving": VACATE,
}  # fmt: skip


@pytest.mark.parametrize("what", ALLOWED)
def test_allowed(catalog: Catalog, what: str) -> None:
    ask(catalog, *ALLOWED[what])


SQLITE_ONLY = {
    "replace of a version": "INSERT OR REPLACE INTO model_versions SELECT * FROM model_versions WHERE id = 1",
    "replace of a transition": "INSERT OR REPLACE INTO transitions SELECT * FROM transitions WHERE seq = 1",
    "replace of a report": "INSERT OR REPLACE INTO eval_reports SELECT * FROM eval_reports WHERE id = 3",
    "replace of a pool": f"INSERT OR REPLACE INTO pools (id, base_digest) VALUES ('local', '{B}')",
    "replace of a deployment": "UPDATE OR REPLACE deployments SET model_id = 2",
    "a blob as a digest": report(report_digest=f"x'{'61' * 64}'"),
}


@pytest.mark.parametrize("what", SQLITE_ONLY)
def test_refused_by_sqlite(catalog: Catalog, what: str) -> None:
    if catalog.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's own syntax")
    with pytest.raises(FtError):
        ask(catalog, SQLITE_ONLY[what])


@pytest.mark.slow
def test_truncate_is_refused_by_postgres(catalog: Catalog) -> None:
    if catalog.engine.dialect.name == "sqlite":
        pytest.skip("PostgreSQL's own syntax")
    for table in APPEND_ONLY:
        with pytest.raises(FtError, match="append-only"):
            ask(catalog, f"TRUNCATE {table} CASCADE")
