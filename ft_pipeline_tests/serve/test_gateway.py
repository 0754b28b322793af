"""The gateway in front of fake vLLM replicas: names, keys, paths, streams, what is counted, and what happens when a replica dies."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import httpx
import openai
import pytest

from ft_pipeline.errors import StorageError
from ft_pipeline.register import promotion
from ft_pipeline.serve.gateway import last_good
from ft_pipeline.serve.gateway.authority import Caller
from ft_pipeline.serve.gateway.counts import Counts
from ft_pipeline.serve.gateway.front import Front, GatewayLimits
from ft_pipeline.serve.gateway.reply import Gateway, Reply, Streamed
from ft_pipeline.serve.gateway.requests import Routed, read
from ft_pipeline.serve.gateway.targets import Target
from ft_pipeline.serve.gateway.upstream import Opened
from ft_pipeline_tests.serve.fleet_of import LINE, Keys, TestFleet
from ft_pipeline_tests.serve.load import Load

ACME = {"Authorization": "Bearer acme-key"}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def fleet(home, store, catalog, tmp_path, monkeypatch) -> Iterator[TestFleet]:
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    made = TestFleet(home, store, catalog, tmp_path)
    yield made
    made.close()


def chat(url: str, model: str = LINE, key: str = "acme-key", **more) -> httpx.Response:
    body = {"model": model, "messages": HI, "max_tokens": 4, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def said(answer: httpx.Response) -> str:
    """The first word: which weights answered."""
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"].split()[0]


def events(answer: httpx.Response) -> list[dict | str]:
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [d if d == "[DONE]" else json.loads(d) for d in data]


def eventually(true, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "not within the time"
        time.sleep(0.02)


def test_every_name_of_a_version_answers_with_its_weights(fleet):
    model = fleet.version(1)
    (one,) = fleet.pool()
    url = fleet.gateway().url
    for name in (LINE, f"{LINE}:production", f"{LINE}@1"):
        answer = chat(url, name)
        assert said(answer) == model.adapter_digest[:12]
        assert answer.json()["model"] == name and answer.headers["X-FT-Model"] == f"{LINE}@1"
        assert answer.json()["system_fingerprint"] == f"fp_{model.adapter_digest[:12]}"
    base = chat(url, f"{LINE}:base")
    assert said(base) == "base"
    assert [b["model"] for b in one.vllm.bodies] == [f"{LINE}@1"] * 3 + ["base"]
    assert {b["cache_salt"] for b in one.vllm.bodies} == {"tenant:acme"}


def test_the_official_client_works_whole_streamed_and_listed(fleet):
    fleet.version(1)
    fleet.pool()
    client = openai.OpenAI(base_url=f"{fleet.gateway().url}/v1", api_key="acme-key", max_retries=0)
    whole = client.chat.completions.create(model=LINE, messages=HI, max_tokens=3)
    assert whole.usage and whole.usage.completion_tokens == 3
    pieces = list(client.chat.completions.create(model=LINE, messages=HI, max_tokens=3, stream=True))
    assert "".join(p.choices[0].delta.content for p in pieces) == whole.choices[0].message.content
    assert client.completions.create(model=LINE, prompt="x", max_tokens=2).choices[0].text
    assert {LINE, f"{LINE}@1"} <= {m.id for m in client.models.list()}
    assert client.models.retrieve(f"{LINE}@1").owned_by == "acme"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("acme/other@1")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list()


def test_a_stream_has_usage_only_for_who_asked(fleet):
    fleet.version(1)
    fleet.pool()
    url = fleet.gateway().url
    plain = events(chat(url, stream=True))
    assert plain[-1] == "[DONE]" and not any("usage" in e for e in plain[:-1])
    assert [e["model"] for e in plain[:-1]] == [LINE] * 4
    asked = events(chat(url, stream=True, stream_options={"include_usage": True}))
    assert [e["usage"] for e in asked[:-2]] == [None] * 4
    assert asked[-2]["choices"] == [] and asked[-2]["usage"]["completion_tokens"] == 4
    eventually(lambda: fleet.ledger.rows == [("acme", f"{LINE}@1", 7, 4)] * 2)


def test_a_rollback_under_load_is_one_row_and_no_failed_request(fleet):
    first = fleet.version(1)
    fleet.version(2)
    one, two = fleet.pool(replicas=2, token_seconds=0.002)
    fleet.reconcile()
    url = fleet.gateway().url
    loads = len(one.vllm.loras) + len(two.vllm.loras)
    with Load(url, LINE, clients=4, max_tokens=4, headers=ACME) as load:
        eventually(lambda: len(load.asked) > 20)
        since = time.monotonic()
        promotion.rollback(fleet.catalog, LINE, actor="ann", reason="worse")
        until_new, last_old = load.until_all_new(since, f"fp_{first.adapter_digest[:12]}")
    assert load.failed == []
    assert until_new < 2 and last_old < 2, (until_new, last_old)
    assert loads == 2, "both held @2 and nothing else before; the gateway called no load or unload"


NOT_THERE = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/adapters"),
    ("POST", "/invocations"),
    ("POST", "/tokenize"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/chat/completions"),
    ("POST", "/v1%2Fchat%2Fcompletions"),
    ("POST", "/v1/chat/../load_lora_adapter"),
    ("POST", "//v1/chat/completions"),
    ("POST", "/v1/chat/completions/"),
    ("GET", "/v1/models/..%2F..%2Fmetrics"),
    ("GET", "/v1/models/%2e%2e/x"),
    ("GET", "/v1/models//etc/passwd"),
    ("GET", "/v1/models/acme%252Frouter@1"),
    ("DELETE", "/v1/models/acme/router@1"),
]


def test_what_is_not_on_the_list_does_not_exist(fleet):
    fleet.version(1)
    (one,) = fleet.pool()
    connection = http.client.HTTPConnection("127.0.0.1", fleet.gateway().port, timeout=10)
    for method, path in NOT_THERE:
        connection.request(method, path, body=b"{}", headers={**ACME, "Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 404, (method, path)
        assert json.loads(answer.read())["error"]["message"]
    connection.close()
    assert one.vllm.loras == {} and one.vllm.bodies == []


def test_a_name_reaches_only_versions_of_the_callers_tenant(fleet):
    fleet.version(1)
    fleet.version(2, line="globex/secret")
    staged = fleet.version(3, auto_promote=False)
    (one,) = fleet.pool()
    url = fleet.gateway().url
    names = (
        "globex/secret", "globex/secret@1", "acme/nothing", f"{LINE}@9", "../../etc/passwd", "/models/base", "base",
        "globex/../acme/router", f"{LINE}@1/../..", f"{LINE}@latest", f"{LINE}:archived", "a" * 5000, "acme/router\u0000",
    )  # fmt: skip
    for name in names:
        answer = chat(url, name)
        assert answer.status_code == 404, name
        assert answer.json()["error"]["code"] == "model_not_found"
        assert "globex/secret@1" not in answer.text or name == "globex/secret@1"
    assert chat(url, "globex/secret").text.replace("globex/secret", "acme/nothing") == chat(url, "acme/nothing").text
    assert one.vllm.bodies == []
    assert said(chat(url, f"{LINE}:staging")) == said(chat(url, staged.label)) == staged.adapter_digest[:12]
    assert said(chat(url, "globex/secret", key="globex-key"))
    listed = httpx.get(f"{url}/v1/models", headers=ACME).text
    assert "globex" not in listed and f"{LINE}@1" in listed


def test_who_has_no_good_key_gets_nothing(fleet):
    fleet.version(1)
    (one,) = fleet.pool()
    url = fleet.gateway().url
    assert chat(url, key="nobody").status_code == 401
    assert httpx.post(f"{url}/v1/chat/completions", json={"model": LINE, "messages": HI}).status_code == 401
    refused = chat(url, key="approver")
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "insufficient_permissions"
    assert one.vllm.bodies == []


OBEYED = [
    {"prompt_embeds": "gASV"},
    {"chat_template": "{{ x }}"},
    {"cache_salt": "tenant:globex"},
    {"priority": -9},
    {"n": 1000},
    {"stream_options": {"continuous_usage_stats": True}, "stream": True},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}
        ]
    },
    {"stream": "yes"},
]


def test_fields_that_vllm_would_obey_do_not_reach_it(fleet):
    fleet.version(1)
    (one,) = fleet.pool()
    url = fleet.gateway().url
    for more in OBEYED:
        answer = chat(url, **more)
        assert answer.status_code == 400, (more, answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert one.vllm.bodies == []


def test_a_tampered_adapter_is_refused_by_every_replica_and_the_gateway_says_so(fleet):
    model = fleet.version(1)
    fleet.pool(replicas=2)
    path = fleet.store.fetch(fleet.catalog.ref(model.adapter_digest)).folder / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    answer = chat(fleet.gateway().url)
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert answer.json()["error"]["code"] == "adapter_refused"
    assert f"{LINE}@1" in answer.json()["error"]["message"]


def test_the_clients_own_mistake_is_told_as_vllm_tells_it(fleet):
    fleet.version(1)
    fleet.pool(replicas=2)
    answer = chat(fleet.gateway().url, max_tokens=0)
    assert answer.status_code == 400 and "at least 1" in answer.json()["error"]["message"]


def test_a_replica_that_dies_in_a_stream_ends_it_cleanly_and_the_others_go_on(fleet):
    fleet.version(1)
    one, two = fleet.pool(replicas=2, token_seconds=0.02)
    fleet.reconcile()
    url = fleet.gateway().url
    one.vllm.dies_at_token = two.vllm.dies_at_token = 5
    got: list[list] = []

    def ask() -> None:
        got.append(events(chat(url, stream=True, max_tokens=12)))

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: one.vllm.running + two.vllm.running == 1)
    dying, living = (one, two) if one.vllm.running else (two, one)
    living.vllm.dies_at_token = None
    asking.join()
    assert [list(e) for e in got[0][:5]] == [list(got[0][0])] * 5
    assert got[0][-1]["error"]["code"] == "replica_lost" and "[DONE]" not in got[0]
    assert len(got[0]) == 6, "five pieces, then the error"
    assert len(dying.vllm.bodies) == 1 and living.vllm.bodies == [], "never a second try after the first byte"
    for _ in range(5):
        assert said(chat(url)), "others do not notice"
    eventually(lambda: ("acme", f"{LINE}@1", 7, 5) in fleet.ledger.rows)
    metrics = httpx.get(f"{url}/metrics").text
    assert 'outcome="error"} 1' in metrics


def test_a_dead_replica_is_passed_over_before_the_first_byte(fleet):
    fleet.version(1)
    one, two = fleet.pool(replicas=2)
    fleet.reconcile()
    url = fleet.gateway().url
    one.kill()
    one.dead()
    assert all(said(chat(url, stream=False)) for _ in range(6))
    two.kill()
    two.dead()
    answer = chat(url)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_replica"
    one.restart()
    assert said(chat(url)), "its resolver loads the adapter again; nobody had to tell it"


def test_a_request_that_kills_its_server_does_not_travel_through_the_fleet(fleet):
    fleet.version(1)
    replicas = fleet.pool(replicas=4)
    fleet.reconcile()
    for replica in replicas:
        replica.vllm.dies_at_token = 0
    assert chat(fleet.gateway().url).status_code == 503
    assert sum(len(r.vllm.bodies) for r in replicas) == 2


def test_a_client_that_leaves_frees_the_replica_and_pays_for_what_it_got(fleet):
    fleet.version(1)
    (one,) = fleet.pool(token_seconds=0.05)
    url = fleet.gateway().url
    body = {"model": LINE, "messages": HI, "max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=ACME) as answer:
        for seen, _line in enumerate(answer.iter_lines()):
            if seen > 6:
                break
    eventually(lambda: one.vllm.running == 0 and one.vllm.aborted == 1)
    eventually(lambda: len(fleet.ledger.rows) == 1)
    (row,) = fleet.ledger.rows
    assert row[:3] == ("acme", f"{LINE}@1", 7) and 3 <= row[3] < 20
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": False}, headers=ACME, timeout=0.5)
    eventually(lambda: one.vllm.running == 0 and one.vllm.aborted == 2)
    assert "ft_gateway_in_flight 0" in httpx.get(f"{url}/metrics").text


def test_limits_of_bodies_places_and_time(fleet):
    fleet.version(1)
    (one,) = fleet.pool(token_seconds=0.1)
    limits = GatewayLimits(max_body_bytes=2000, max_per_tenant=1, body_seconds=0.3, total_seconds=1.0)
    gateway = fleet.gateway(limits=limits)
    assert chat(gateway.url, messages=[{"role": "user", "content": "x" * 3000}]).status_code == 413
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as slow:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer acme-key\r\nContent-Length: 100\r\n\r\n{"
        slow.sendall(head.encode())
        assert b" 408 " in slow.recv(200)
    late = chat(gateway.url, max_tokens=100)
    assert late.status_code == 504
    broken = events(chat(gateway.url, max_tokens=100, stream=True))
    assert "took too long" in broken[-1]["error"]["message"]
    eventually(lambda: one.vllm.running == 0)
    asking = threading.Thread(target=chat, args=(gateway.url,), kwargs={"max_tokens": 100})
    asking.start()
    eventually(lambda: one.vllm.running == 1)
    full = chat(gateway.url, max_tokens=1)
    assert full.status_code == 429 and full.headers["Retry-After"] == "1"
    asking.join()


def test_metrics_name_tenants_so_they_need_a_key_or_this_machine(fleet):
    fleet.version(1)
    fleet.pool()
    url = fleet.gateway(metrics_key="scrape").url
    said(chat(url))
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/metrics", headers=ACME).status_code == 401
    text = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer scrape"}).text
    assert f'ft_completion_tokens_total{{tenant="acme",model="{LINE}@1"}} 4' in text
    assert httpx.get(f"{url}/health").json()["replicas"] == {"alive": 1, "known": 1}


def test_a_version_without_a_pool_and_a_full_model_of_its_own(fleet):
    model = fleet.version(1, full=True)
    fleet.pool()
    url = fleet.gateway().url
    answer = chat(url)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_pool"
    fleet.pool(
        name="whole", base=model.adapter_digest, kind="standalone", serves=model.label, base_name=model.label,
        base_root=f"/models/{model.adapter_digest}",
    )  # fmt: skip
    answer = chat(fleet.gateway().url)
    assert said(answer) == model.adapter_digest[:12]


def test_a_new_base_takes_the_traffic_of_a_line_when_its_version_is_promoted(fleet):
    fleet.version(1)
    (blue,) = fleet.pool(name="blue", token_seconds=0.05)
    (green,) = fleet.pool(name="green", base=fleet.base("newer"))
    fleet.reconcile()
    url = fleet.gateway().url
    got: list[str] = []
    asking = threading.Thread(target=lambda: got.append(said(chat(url, max_tokens=20))))
    asking.start()
    eventually(lambda: blue.vllm.running == 1)
    second = fleet.version(2, base="newer")
    assert said(chat(url)) == second.adapter_digest[:12]
    assert fleet.reconcile().healthy and blue.vllm.loras == {}
    asking.join()
    assert len(got) == 1, "what ran on the old pool was finished"
    assert len(green.vllm.bodies) == 1


def test_an_outage_of_the_database_does_not_end_inference_for_a_minute(fleet, monkeypatch):
    fleet.version(1)
    fleet.pool()
    url = fleet.gateway().url
    said(chat(url))

    def away(*_: object) -> None:
        raise StorageError("the catalog does not answer")

    monkeypatch.setattr(type(fleet.catalog), "model", away)
    assert said(chat(url)) and "ft_gateway_from_memory_total 1" in httpx.get(f"{url}/metrics").text
    new = chat(url, f"{LINE}@1")
    assert new.status_code == 503 and new.json()["error"]["code"] == "catalog", "never asked for before"
    monkeypatch.setattr(last_good, "STALE_SECONDS", -1.0)
    assert chat(url).status_code == 503


def test_a_drain_finishes_what_runs_and_tells_the_meter(fleet):
    fleet.version(1)
    (one,) = fleet.pool(token_seconds=0.05)
    gateway = fleet.gateway()
    got: list[list] = []
    asking = threading.Thread(target=lambda: got.append(events(chat(gateway.url, stream=True, max_tokens=20))))
    asking.start()
    eventually(lambda: one.vllm.running == 1)
    gateway.stop()
    asking.join()
    assert got[0][-1] == "[DONE]" and len(got[0]) == 21
    assert fleet.ledger.rows == [("acme", f"{LINE}@1", 7, 20)]
    with pytest.raises(httpx.ConnectError):
        chat(gateway.url)


def test_a_slow_reader_slows_its_own_answer_and_not_the_gateways_memory():
    pulled: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(1000):
            pulled.append(number)
            yield b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'

    target = Target(asked=LINE, label=f"{LINE}@1", upstream=f"{LINE}@1", weights="a" * 64, pools=())
    asked = read("/v1/chat/completions", json.dumps({"model": LINE, "messages": HI, "stream": True}).encode())
    everything = Gateway(None, None, Front(Keys({}), GatewayLimits()), Counts(None))  # type: ignore[arg-type]
    reply = Reply(everything, Routed(asked=asked, caller=Caller(tenant="acme"), target=target))
    answer = Streamed(reply, Opened("http://x", chunks(), AsyncExitStack()), AsyncExitStack())

    async def blocked() -> int:
        sent = asyncio.Event()

        async def send(message: dict) -> None:
            if message["type"] == "http.response.body":
                sent.set()
                await asyncio.sleep(60)  # the client reads nothing

        async def receive() -> dict:
            await asyncio.sleep(60)
            return {}

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        answering = asyncio.create_task(answer(scope, receive, send))  # type: ignore[arg-type]
        await sent.wait()
        await asyncio.sleep(0.1)
        held = len(pulled)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        return held

    assert asyncio.run(blocked()) == 1, "nothing is read from the replica that the client did not take"
