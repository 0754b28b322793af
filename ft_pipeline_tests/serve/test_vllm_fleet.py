"""Gateway and reconciler in front of a real vLLM server on this CPU. `make test-vllm` runs it, in the environment of vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from ft_pipeline.register import promotion
from ft_pipeline.serve.fleet import signals
from ft_pipeline.serve.fleet.inventory import Inventory
from ft_pipeline.serve.fleet.inventory import Pool as Entry
from ft_pipeline.serve.fleet.reconcile import Fleet
from ft_pipeline.serve.gateway.app import build_gateway
from ft_pipeline.serve.gateway.front import GatewayLimits
from ft_pipeline.serve.gateway.main import open_client
from ft_pipeline.serve.gateway.replicas import Replicas
from ft_pipeline.serve.gateway.targets import Names
from ft_pipeline.store.paths import vllm_adapter_folder
from ft_pipeline_tests.serve.fake_vllm import Listening
from ft_pipeline_tests.serve.fleet_of import KEYS, Keys, Ledger
from ft_pipeline_tests.serve.pool import Pool, Replica, new_pool, version

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
ROUTER, TRIAGE = "acme/router", "acme/triage"
PROMPT = "the module that reads archives is"


@dataclass
class Road:
    """Everything between a client and vLLM."""

    house: Pool
    replica: Replica
    fleet: Fleet
    gateway: Listening
    ledger: Ledger

    def ask(self, model: str, **more) -> httpx.Response:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **more}
        headers = {"Authorization": "Bearer acme-key"}
        return httpx.post(f"{self.gateway.url}/v1/completions", json=body, headers=headers, timeout=120)

    def text(self, model: str) -> str:
        answer = self.ask(model)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    def reconcile(self):
        return asyncio.run(self.fleet.reconcile())


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Iterator[Road]:
    house = new_pool(tmp_path_factory.mktemp("fleet") / "home")
    version(house, 1)
    version(house, 2, line=TRIAGE)
    replica = Replica(house).start()
    cache = vllm_adapter_folder(house.settings.work, "x").parent
    entry = Entry(
        name="main", base=house.base.ref.digest, replicas=(f"http://127.0.0.1:{replica.port}",), cache=str(cache)
    )
    inventory = Inventory(pools=(entry,))
    fleet = Fleet(settings=house.settings, catalog=house.catalog, store=house.store, inventory=inventory)
    ledger, limits = Ledger(), GatewayLimits()
    replicas = Replicas(inventory, open_client(limits))
    gateway = Listening(build_gateway(Names(house.catalog), replicas, Keys(KEYS), meter=ledger, limits=limits))
    yield Road(house, replica, fleet, gateway, ledger)
    gateway.stop()
    replica.stop()


def test_two_adapters_and_the_base_answer_at_once_each_with_its_own_weights(road):
    first = road.reconcile()
    assert first.healthy, first
    assert set(first.pools[0].replicas[0].adapters) == {f"{ROUTER}@1", f"{TRIAGE}@1"}
    assert [r.state for r in road.reconcile().pools[0].replicas] == ["ok"]
    names = (ROUTER, TRIAGE, f"{ROUTER}:base")
    alone = {name: road.text(name) for name in names}
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda name: (name, road.text(name)), names * 6))
    assert all(text == alone[name] for name, text in together)
    assert ("acme", f"{TRIAGE}@1") in {row[:2] for row in road.ledger.rows}


def test_a_stream_is_the_same_text_and_is_counted(road):
    answer = road.ask(ROUTER, stream=True)
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(line) for line in data[:-1]]
    assert not any("usage" in chunk for chunk in chunks) and {c["model"] for c in chunks} == {ROUTER}
    assert "".join(c["choices"][0]["text"] for c in chunks) == road.text(ROUTER)


def test_promotion_and_rollback_need_no_call_to_vllm(road):
    before = road.text(ROUTER)
    version(road.house, 3)
    after = road.text(ROUTER)
    assert after != before, "the resolver loaded @2 at the first request"
    promotion.rollback(road.house.catalog, ROUTER, actor="ann", reason="worse")
    assert road.text(ROUTER) == before
    report = road.reconcile()
    assert report.healthy and set(report.pools[0].replicas[0].adapters) == {f"{ROUTER}@1", f"{TRIAGE}@1"}


def test_what_vllm_would_obey_is_refused_and_what_it_refuses_is_told(road):
    for path in ("/v1/load_lora_adapter", "/adapters", "/invocations", "/tokenize"):
        assert httpx.post(f"{road.gateway.url}{path}", json={}).status_code == 404
    assert road.ask("globex/x").status_code == road.ask("../../etc/passwd").status_code == 404
    wrong = road.ask(ROUTER, max_tokens=100_000)
    assert wrong.status_code == 400 and "512" in wrong.json()["error"]["message"]


def test_load_is_read_from_vllms_own_metrics(road):
    load = signals.load_of("x", httpx.get(f"http://127.0.0.1:{road.replica.port}/metrics").text)
    assert load.slots == road.house.settings.vllm_slots and (load.running, load.waiting) == (0, 0)
    assert 0 <= load.cache_share <= 1


def test_after_a_restart_the_reconciler_fills_the_replica_again(road):
    before = road.text(TRIAGE)
    road.replica.stop()
    assert road.ask(TRIAGE).status_code == 503
    assert road.reconcile().pools[0].replicas[0].state == "down"
    road.replica.start()
    report = road.reconcile()
    assert report.healthy and len(report.pools[0].replicas[0].done) == 2, report
    assert road.text(TRIAGE) == before
