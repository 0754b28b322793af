"""A platform in a temporary home, a client of its API, and keys of any tenant."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from ft_pipeline.errors import NotFoundError
from ft_pipeline.settings import Settings
from ft_pipeline.store.platform.keys import NewKey
from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.web.app import build_api
from ft_pipeline.web.keys import digest_of, new_key, open_pepper
from ft_pipeline.web.platform import ROLES, Platform, open_platform

KeyMaker = Callable[..., str]


@pytest.fixture
def platform(home: Settings) -> Iterator[Platform]:
    """An empty platform on SQLite."""
    opened = open_platform(home)
    yield opened
    opened.records.close()
    opened.catalog.close()


@pytest.fixture
def client(platform: Platform) -> Iterator[TestClient]:
    """A client without a key; an exception that no handler turns into an answer is raised in the test."""
    with TestClient(build_api(platform)) as opened:
        yield opened


@pytest.fixture
def key(platform: Platform) -> KeyMaker:
    """`key("acme", ["submit"], concurrent_jobs=1)`: a new key of a tenant, which is made with these limits when there is none."""

    def make(tenant: str = "acme", roles: object = ROLES, *, name: str = "ci", **limits: object) -> str:
        try:
            platform.records.tenant(tenant)
        except NotFoundError:
            platform.records.add_tenant(tenant, actor="tester", limits=Limits(**limits))
        prefix, text = new_key()
        digest = digest_of(text, open_pepper(platform.settings))
        new = NewKey(prefix=prefix, hmac_sha256=digest, tenant=tenant, name=name, roles=tuple(roles))
        platform.records.add_key(new, actor="tester")
        return text

    return make


@pytest.fixture
def as_tenant(client: TestClient, key: KeyMaker) -> Callable[..., TestClient]:
    """`as_tenant("acme", ["submit"])`: a client of the same application that sends a key of the tenant."""

    def make(tenant: str = "acme", roles: object = ROLES, **limits: object) -> TestClient:
        made = TestClient(client.app)
        made.headers["Authorization"] = f"Bearer {key(tenant, roles, **limits)}"
        return made

    return make
