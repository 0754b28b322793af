"""A platform with everything that runs: API on a port, the Dagster daemon, the embedded server. For the real clients, Python's and Node's."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline import settings
from ft_pipeline.store.platform.keys import NewKey
from ft_pipeline.web.app import build_api
from ft_pipeline.web.keys import digest_of, new_key, open_pepper
from ft_pipeline.web.platform import ROLES, Platform, open_platform
from ft_pipeline_tests import bump_end_to_end, road
from ft_pipeline_tests.web.served import served

OFFER = 'bases: {tiny: {uri: "home://bases/tiny", size: tiny}}\npolicies: [dev]\n'
SECTIONS: dict[str, Any] = {name: road.document()[name] for name in ("curate", "encode", "gate")}
"""A gate and splits that 300 rows can pass."""
HYPER = {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 8}


@dataclass(frozen=True)
class Whole:
    """Where it answers."""

    address: str
    platform: Platform

    def key(self, roles: tuple[str, ...] = ROLES, name: str = "ci") -> str:
        """A new key of tenant acme."""
        prefix, text = new_key()
        digest = digest_of(text, open_pepper(self.platform.settings))
        new = NewKey(prefix=prefix, hmac_sha256=digest, tenant="acme", name=name, roles=roles)
        self.platform.records.add_key(new, actor="tester")
        return text


@contextmanager
def whole(home: Path, setenv: Callable[[str, str], None]) -> Iterator[Whole]:
    """Everything, over a new home; all of it has ended afterwards."""
    road.build(home)
    (home / "offer.yaml").write_text(OFFER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setenv("FT_OFFER", str(home / "offer.yaml"))
    setenv("FT_SERVE_PORT", str(port))
    with bump_end_to_end.running(home, setenv):
        platform = open_platform(settings.load())
        platform.records.add_tenant("acme", actor="tester")
        with served(build_api(platform, with_server=True)) as address:
            yield Whole(address, platform)


def rows(count: int = 300) -> bytes:
    """Rows that the tiny base learns something from."""
    return "".join(f"{json.dumps(row)}\n" for row in road.clean_rows(count)).encode()
