"""Whoever owns the database drops the triggers and edits: every column of every table is named by `verify` and stops a deployment."""

from __future__ import annotations

import re
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from ft_pipeline.cli.trace import audit
from ft_pipeline.errors import IntegrityError
from ft_pipeline.register.artifact import seal, verify_seals
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline.serve.deploy import deploy
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.store.catalog import open_catalog
from ft_pipeline.store.catalog_tables import metadata
from ft_pipeline.store.migrations.rules_0002 import JOURNALED
from ft_pipeline_tests import lines

LINE = "acme/router"
TAKEN_DOWN = ("takedowns", "takedown_models")


@pytest.fixture
def registered(home, store, catalog, monkeypatch):
    """A signed version in production, a pin, a pool with another version of it, and a takedown."""
    from ft_pipeline import settings

    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    made = lines.publish_line(store, catalog, base=lines.plain_base(store))
    candidate = Candidate(
        recipe=find_recipe(settings.load(), LINE), adapter=made["adapter"].ref, report=made["eval_report"].ref,
        base=made["base_model"].ref, run_id="run-1",
    )  # fmt: skip
    model = register(candidate, store=store, catalog=catalog, settings=home).model
    catalog.pin(LINE, "hf://a/b", "c" * 40)
    catalog.add_takedown(
        ["r" + "0" * 16], [model.id], event="requested", actor="ann", reason="asked", sign=lambda _: "{}"
    )
    deploy(model, catalog=catalog, store=store, settings=home)
    return model


def edit(catalog, *statements: str) -> None:
    """As the owner of the database: no trigger, no foreign key, no check stands in the way."""
    catalog.engine.dispose()
    db = sqlite3.connect(catalog.engine.url.database)
    db.executescript("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;")
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


@contextmanager
def undone(catalog):
    """Afterwards the catalog is as it was."""
    before = sqlite3.connect(":memory:")
    _copy(catalog, before)
    yield
    _copy(catalog, before, back=True)


def _copy(catalog, memory: sqlite3.Connection, *, back: bool = False) -> None:
    catalog.engine.dispose()
    file = sqlite3.connect(catalog.engine.url.database)
    (memory if back else file).backup(file if back else memory)
    file.close()


def other(column: sa.Column) -> str:
    """SQL of a value that the column does not have."""
    if not isinstance(column.type, sa.Text):
        return f"COALESCE({column.name}, 0) + 1000"
    return f"CASE WHEN length({column.name}) = 64 THEN '{'e' * 64}' ELSE COALESCE({column.name}, '') || 'x' END"


def rows_of(catalog, table: str) -> list[tuple]:
    """The primary keys of a table."""
    with catalog.read() as db:
        return [tuple(row) for row in db.execute(sa.select(*metadata.tables[table].primary_key))]


def the_edited(table: str) -> str:
    first = ", ".join(c.name for c in metadata.tables[table].primary_key)
    return f"({first}) = (SELECT {first} FROM {table} ORDER BY {first} LIMIT 1)"


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_an_edited_cell_of_any_column_is_named_and_nothing_is_deployed(house, registered, table):
    for column in metadata.tables[table].c:
        with undone(house.catalog):
            edit(house.catalog, f"UPDATE {table} SET {column.name} = {other(column)} WHERE {the_edited(table)}")
            named = "line \\d of the catalog's journal" if table == "journal" else f"table {table}\\b"
            with pytest.raises(IntegrityError, match=named):
                audit(house, registered.label)
            if table not in ("artifacts", "edges"):  # an index over the manifests, which `catalog rebuild` makes anew
                with pytest.raises(IntegrityError):
                    deploy(registered, catalog=house.catalog, store=house.store, settings=house.settings)
    assert audit(house, registered.label).lines > 10


def test_a_row_that_was_taken_away_is_missed(catalog, registered):
    for table in (*JOURNALED, *TAKEN_DOWN):
        with undone(catalog):
            edit(catalog, f"DELETE FROM {table} WHERE {the_edited(table)}")
            with pytest.raises(IntegrityError, match=f"table {table}, row .*is missing"):
                catalog.verify_rows()


def test_a_row_that_was_slipped_in_is_named(catalog, registered):
    for table in ("deployments", "pools", "eval_reports", "pins"):
        columns = metadata.tables[table].c
        key = next(iter(metadata.tables[table].primary_key))
        changed = [other(c) if c.name == key.name else c.name for c in columns]
        with undone(catalog):
            edit(catalog, f"INSERT INTO {table} SELECT {', '.join(changed)} FROM {table} LIMIT 1")
            with pytest.raises(IntegrityError, match=f"table {table}, row .*the journal does not know it"):
                catalog.verify_rows()


def test_a_journal_made_anew_is_betrayed_by_the_seals(home, store, catalog, registered):
    """The owner edits a row and re-hashes the whole chain: only the signature tells."""
    from ft_pipeline.store.catalog_journal import written

    rows = {name: rows_of(catalog, name) for name in (*JOURNALED, *TAKEN_DOWN)}
    seals = catalog.seals()
    edit(catalog, "DELETE FROM journal", "DELETE FROM seals", "UPDATE pools SET base_digest = digest FROM base_models")
    with catalog.write() as db:
        for name, keys in rows.items():
            for key in keys:
                written(db, metadata.tables[name], *key)
        db.execute(sa.insert(metadata.tables["seals"]), [s | {"journal_seq": min(s["journal_seq"], 5)} for s in seals])
    assert catalog.verify_rows() > 5, "the chain alone holds again"
    with pytest.raises(IntegrityError, match="catalog table seals, row 1"):
        verify_seals(catalog, home)
    with pytest.raises(IntegrityError, match="seals"):
        deploy(registered, catalog=catalog, store=store, settings=home)


def test_a_seal_of_another_key_or_one_that_is_gone_is_refused(home, catalog, registered, tmp_path):
    catalog.pin(LINE, "hf://a/b", "d" * 40)
    seal(catalog, home)
    assert verify_seals(catalog, home) >= 2
    edit(catalog, "DELETE FROM seals WHERE seq = 1")
    with pytest.raises(IntegrityError, match="seals"):
        verify_seals(catalog, home)
    home.signing_key.unlink()
    home.signing_key.with_suffix(".pub").unlink()
    with pytest.raises(IntegrityError, match="seals"):
        verify_seals(catalog, home)


def test_a_flipped_byte_of_any_file_is_named_and_nothing_is_deployed(house, registered):
    heads = house.catalog.heads(LINE) | {"registered_model": house.catalog.ref(registered.registered_digest)}
    for asset, ref in heads.items():
        artifact = house.store.fetch(ref)
        for name in (*artifact.manifest.files, "manifest.json"):
            with flipped(artifact.folder / name):
                with pytest.raises(
                    IntegrityError, match=re.escape(name) if name == "manifest.json" else f"{asset}.*{re.escape(name)}"
                ):
                    audit(house, registered.label)
                if name == "manifest.json" or asset in ("adapter", "registered_model"):  # what a deployment reads
                    with pytest.raises(IntegrityError):
                        deploy(
                            registered, catalog=house.catalog, store=open_store(house.settings), settings=house.settings
                        )
    assert audit(house, registered.label).signed_by


@contextmanager
def flipped(path: Path):
    """The last byte of a file is another one for a while."""
    before, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    yield
    path.write_bytes(before)
    path.chmod(mode)


def test_the_command_line_ends_with_4_and_names_it(registered, catalog, typed):
    edit(catalog, "UPDATE model_versions SET name = 'other'")
    ended = typed("verify", registered.label)
    assert (
        ended.code == 4
        and "catalog table model_versions, row [1]: it was changed: name was 'router' and is 'other'" in ended.err
    )


def test_a_catalog_from_before_the_journal_is_adopted(home, registered, catalog):
    new = ("takedown_models", "takedowns", "seals", "journal")
    edit(catalog, *(f"DROP TABLE {table}" for table in new), "UPDATE alembic_version SET version_num = '0001'")
    again = open_catalog(home)
    assert again.verify_rows() > 10
    again.pin(LINE, "hf://a/b", "e" * 40)
    assert again.verify_rows() > 11
    again.close()
