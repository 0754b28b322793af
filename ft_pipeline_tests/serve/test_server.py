"""The doors and the real server process, end to end: register, deploy, ask with the official client, swap while it runs."""

from __future__ import annotations

import socket
import time

import dagster as dg
import httpx
import openai
import pytest

from ft_pipeline.errors import UserError
from ft_pipeline.partitions import recipes
from ft_pipeline.register import promotion
from ft_pipeline.register.assets import registered_model
from ft_pipeline.serve import client
from ft_pipeline.serve.assets import deployment
from ft_pipeline_tests import lines
from ft_pipeline_tests.serve.load import Load

LINE = "acme/router"
pytestmark = pytest.mark.slow


@pytest.fixture
def road(house, monkeypatch):
    """Runs the two doors for a line whose artifacts are there, and returns the run's result."""
    lines.recipe_file(house.settings)
    monkeypatch.setattr("ft_pipeline.register.assets.registry.mirror", _no_mlflow)
    where = type(house.settings)(
        **{f: getattr(house.settings, f) for f in house.settings.__dataclass_fields__ if f != "recipe_folders"},
        recipe_folders=(house.settings.home / "recipes",),
    )
    house = type(house)(settings=where, store=house.store, catalog=house.catalog, worker=house.worker)
    instance = dg.DagsterInstance.ephemeral(str(house.settings.home))
    instance.add_dynamic_partitions(recipes.name, [LINE])

    def run(*assets):
        resources = {"house": dg.ResourceDefinition.hardcoded_resource(house)}
        return dg.materialize(
            list(assets or (registered_model, deployment)),
            partition_key=LINE, instance=instance, resources=resources, raise_on_error=False,
        )  # fmt: skip

    yield run
    instance.dispose()


def _no_mlflow(*_):
    from ft_pipeline.register.registry import Mirrored

    return Mirrored(ok=False, text="left out here: test_registry mirrors for real", seconds=0.0)


def metadata(result, node: str) -> dict:
    event = next(e for e in result.asset_materializations_for_node(node))
    return {name: value.value for name, value in event.metadata.items()}


def test_the_doors_say_what_is_registered_and_live(road, house):
    lines.publish_line(house.store, house.catalog, base=lines.plain_base(house.store))
    ended = road()
    assert ended.success
    said = metadata(ended, "registered_model")
    assert (said["model"], said["stage"]) == (f"{LINE}@1", "production")
    assert said["model card"].startswith(f"# {LINE}@1")
    live = metadata(ended, "deployment")
    assert live["live"] and f"{LINE}@1" in live["live now"]
    again = road()
    assert (said["reused"], metadata(again, "registered_model")["reused"]) == (False, True)
    assert metadata(again, "deployment")["digest"] == live["digest"]


def test_a_version_outside_production_changes_nothing(road, house):
    lines.publish_line(house.store, house.catalog, base=lines.plain_base(house.store), auto_promote=False)
    live = metadata(road(), "deployment")
    assert not live["live"]
    assert live["live now"] == "nothing answers yet"


def test_a_failed_gate_fails_the_door_with_its_reason(road, house):
    lines.publish_line(house.store, house.catalog, base=lines.plain_base(house.store), verdict="FAIL")
    ended = road(registered_model)
    assert not ended.success
    said = ended.failure_data_for_node("registered_model").error.cause.message + str(
        ended.failure_data_for_node("registered_model").user_failure_data
    )
    assert "arithmetic says FAIL" in said


@pytest.mark.parametrize("asset", ["adapter", "raw_dataset"])
def test_a_damaged_chain_is_not_deployed(road, house, asset):
    made = lines.publish_line(house.store, house.catalog, base=lines.plain_base(house.store))
    assert road(registered_model).success
    path = made[asset].file("adapter_model.safetensors") if asset == "adapter" else made[asset].folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert not road(deployment).success
    assert house.catalog.pools() == {}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.timeout(300)
def test_a_server_answers_the_official_client_and_follows_promotions(road, house, port, tmp_path):
    base = lines.tiny_base(house.store, tmp_path / "base")
    lines.publish_line(house.store, house.catalog, base=base, seed=1)
    assert road().success
    messages = [{"role": "user", "content": "which module is it?"}]
    with client.running_server(house.settings, port) as url:
        api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        first = api.chat.completions.create(model=LINE, messages=messages, max_tokens=16).choices[0].message.content
        parts = api.chat.completions.create(model=LINE, messages=messages, max_tokens=16, stream=True)
        assert "".join(p.choices[0].delta.content or "" for p in parts) == first
        assert (
            first
            != api.chat.completions.create(model=f"{LINE}:base", messages=messages, max_tokens=16)
            .choices[0]
            .message.content
        )
        assert "".join(client.answer(url, LINE, messages)).startswith(first)
        with pytest.raises(UserError, match="does not answer"):
            list(client.answer(url, "acme/nobody", messages))

        lines.publish_line(house.store, house.catalog, base=base, seed=2)
        with Load(url, LINE) as load:
            assert road().success
            second, first_version = (house.catalog.model(f"{LINE}@{n}") for n in (2, 1))
            load.until_all_new(time.monotonic(), f"fp_{second.adapter_digest[:12]}")
            promotion.rollback(house.catalog, LINE, actor="ann", reason="worse")
            since = time.monotonic()
            new, last_old = load.until_all_new(since, f"fp_{first_version.adapter_digest[:12]}")
        assert load.failed == [], "no request is dropped while versions change"
        assert len({a.text for a in load.asked}) == 2
        # bench_serve measures 0.3 s; a busy machine may take longer
        assert new < 5 and last_old < 5
        assert (
            api.chat.completions.create(model=LINE, messages=messages, max_tokens=16).choices[0].message.content
            == first
        )
        assert api.models.retrieve(LINE).platform["version"] == f"{LINE}@1"
        with client.running_server(house.settings, port) as found:
            assert found == url, "a running server is used, not a second one"
    with pytest.raises(UserError, match="did not answer"):
        list(client.answer(url, LINE, messages))


@pytest.mark.timeout(300)
def test_a_server_that_is_told_to_stop_finishes_its_answers(road, house, port, tmp_path):
    lines.publish_line(house.store, house.catalog, base=lines.tiny_base(house.store, tmp_path / "base"), seed=1)
    assert road().success
    child = client.start_server(house.settings, port)
    api = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        long = {"model": LINE, "messages": [{"role": "user", "content": "go on"}], "max_tokens": 400, "stream": True}
        left = api.chat.completions.create(**long)
        next(iter(left))
        left.close()
        _until_metric(port, "ft_rows_running 0")
        stream = iter(api.chat.completions.create(**long, stream_options={"include_usage": True}))
        next(stream)
        child.terminate()
        chunks = list(stream)
        assert chunks[-1].usage.completion_tokens > 0
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
    with pytest.raises(openai.APIConnectionError):
        api.models.list()


def _until_metric(port: int, line: str) -> None:
    """Until the server says so in its metrics, within ten seconds."""
    until = time.monotonic() + 10
    while line not in (said := httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text.splitlines()):
        assert time.monotonic() < until, said
        time.sleep(0.05)


def test_a_taken_port_says_so(house, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen"), client.running_server(house.settings, port):
            pass
