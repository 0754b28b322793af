"""The catalog's database: SQLite or PostgreSQL, migrated on open, one writer at a time, errors in words."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ft_pipeline.errors import GateRefused, StorageError, UserError
from ft_pipeline.store import migrations
from ft_pipeline.store.migrations.rules_0001 import LOCK

BUSY_MILLISECONDS = 30_000


@dataclass(frozen=True)
class Database:
    """Connections to a migrated catalog. `read()` and `write()` yield a connection in a transaction."""

    engine: sa.Engine

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one state of the catalog."""
        with clear_database_errors(self.engine), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """As `read()`; several queries see the same state on PostgreSQL too."""
        with clear_database_errors(self.engine), self.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A connection that is the only writer; committed when the block ends, rolled back on an error."""
        with clear_database_errors(self.engine), self.engine.connect() as connection:
            connection = connection.execution_options(ft_write=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
                yield connection

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """The catalog at a SQLAlchemy URL, its tables made or brought up to date. Raises StorageError, UserError."""
    engine = _engine(url)
    if engine.dialect.name == "sqlite" and engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    database = Database(engine)
    try:
        if _revision(database) != migrations.HEAD:
            _migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds, so that text order is time order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@contextmanager
def clear_database_errors(engine: sa.Engine) -> Iterator[None]:
    """Turns what the database says into a UserError: a refused rule as GateRefused, everything else as StorageError."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        said = str(error.orig).splitlines()[0] if str(error.orig) else type(error.orig).__name__
        if "ft: " in said:
            raise GateRefused(
                said.split("ft: ", 1)[1],
                why="The database refuses it whoever asks: these rules hold for every client.",
                cure="`ft-pipeline models` shows stages; bring the missing evidence first",
            ) from None
        raise StorageError(
            f"the catalog {engine.url.render_as_string(hide_password=True)} refused: {said}",
            why="Nothing of this step was written.",
            cure=_cure(engine, said),
        ) from error


def _cure(engine: sa.Engine, said: str) -> str:
    if "locked" in said:
        return f"another process has been writing for {BUSY_MILLISECONDS // 1000} s; let it end, then try again"
    if "disk" in said or "full" in said:
        return "free space, then run the same command again"
    if engine.dialect.name == "sqlite":
        return f"check that {engine.url.database} is a catalog you may write, or point FT_CATALOG elsewhere"
    return "check FT_CATALOG: is the server up, the user known, the database there?"


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):  # SQLAlchemy 2.1 would ask for psycopg 3
            parsed = parsed.set(drivername="postgresql+psycopg2")
        engine = sa.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (sa.exc.ArgumentError, ImportError) as error:
        raise UserError(
            f"FT_CATALOG is not a database URL: {error}", cure="use sqlite:////folder/catalog.db or postgresql://..."
        ) from None
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise UserError(f"FT_CATALOG names {engine.dialect.name}", cure="use SQLite or PostgreSQL")
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Pragmas are per connection. Without recursive_triggers, INSERT OR REPLACE deletes rows past the triggers."""
    connection.isolation_level = None
    for pragma in (f"busy_timeout={BUSY_MILLISECONDS}", "foreign_keys=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer takes the write lock at once: upgrading a read lock later fails without waiting (SQLITE_BUSY)."""
    writes = connection.get_execution_options().get("ft_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _revision(database: Database) -> str | None:
    """The revision the database is at, None when it is empty. Costs one query; alembic is not imported for it."""
    with database.read() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(database: Database) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with _first(database.engine), database.write() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StorageError(
                f"the catalog {database.engine.url.render_as_string()} cannot be brought up to date: {error}",
                why="It was probably written by a newer ft-pipeline.",
                cure="install that version, or point FT_CATALOG at another database",
            ) from None


@contextmanager
def _first(engine: sa.Engine) -> Iterator[None]:
    """One process at a time makes a SQLite catalog: switching to WAL, which stays in the file, does not wait for locks."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        yield
        return
    with Path(f"{engine.url.database}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        raw = engine.raw_connection()
        try:
            if raw.cursor().execute("PRAGMA journal_mode").fetchone() != ("wal",):
                raw.cursor().execute("PRAGMA journal_mode=WAL")
        finally:
            raw.close()
        yield
