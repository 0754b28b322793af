"""The reconciler: replicas become what the catalog says, whatever happened to them; nothing that may still be read is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from ft_pipeline.errors import UserError
from ft_pipeline.register import promotion
from ft_pipeline.serve.fleet import collect
from ft_pipeline.serve.fleet.inventory import Pool, read_inventory
from ft_pipeline.serve.fleet.signals import Load, exposition, load_of, signal_of
from ft_pipeline_tests.serve.fleet_of import LINE, TestFleet


@pytest.fixture
def fleet(home, store, catalog, tmp_path, monkeypatch) -> Iterator[TestFleet]:
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    made = TestFleet(home, store, catalog, tmp_path)
    yield made
    made.close()


def names(replica) -> set[str]:
    return set(replica.vllm.loras)


def test_production_is_loaded_on_every_replica_and_a_second_pass_changes_nothing(fleet):
    fleet.version(1)
    fleet.version(2, line="acme/triage")
    fleet.version(3, line="acme/draft", auto_promote=False)
    one, two = fleet.pool(replicas=2)
    assert fleet.look().pools[0].refused == {f"{LINE}@1": "not deployed", "acme/triage@1": "not deployed"}
    report = fleet.reconcile()
    assert report.healthy
    assert names(one) == names(two) == {f"{LINE}@1", "acme/triage@1"}, "staging waits until it is asked for"
    assert [r.state for r in report.pools[0].replicas] == ["repaired", "repaired"]
    again = fleet.reconcile()
    assert [(r.state, r.done) for r in again.pools[0].replicas] == [("ok", ()), ("ok", ())]
    assert [v.label for v in fleet.catalog.deployed("fleet-main")] == [f"{LINE}@1", "acme/triage@1"]


def test_a_restarted_replica_and_a_new_one_are_filled(fleet):
    fleet.version(1)
    (one,) = fleet.pool()
    fleet.reconcile()
    one.kill()
    one.dead()
    report = fleet.reconcile()
    assert not report.healthy and report.pools[0].replicas[0].state == "down"
    one.restart()
    assert names(one) == set()
    assert fleet.look().pools[0].replicas[0].done == (f"load {LINE}@1 (missing)",)
    assert names(one) == set(), "a look changes nothing"
    assert fleet.reconcile().healthy and names(one) == {f"{LINE}@1"}


def test_wrong_weights_under_a_name_and_names_that_nobody_may_ask_for_are_repaired(fleet, tmp_path):
    model = fleet.version(1)
    (one,) = fleet.pool()
    fleet.reconcile()
    foreign = tmp_path / ("0" * 64)
    foreign.mkdir()
    one.vllm.loras = {f"{LINE}@1": str(foreign), "by-hand": str(foreign)}
    (replica,) = fleet.reconcile().pools[0].replicas
    assert replica.state == "repaired"
    assert replica.done == (
        f"unload {LINE}@1 (holds 000000000000, the catalog says {model.adapter_digest[:12]})",
        "unload by-hand (in no stage that may answer on this base)",
        f"load {LINE}@1 (again)",
    )
    assert replica.adapters == {f"{LINE}@1": model.adapter_digest}


def test_an_archived_version_leaves_and_one_in_staging_may_stay(fleet):
    fleet.version(1)
    (one,) = fleet.pool()
    fleet.reconcile()
    fleet.version(2)
    staged = fleet.version(3, auto_promote=False)
    httpx.post(f"{one.url}/tokenize", json={"model": staged.label, "prompt": "x"}).raise_for_status()
    assert fleet.reconcile().healthy
    assert names(one) == {f"{LINE}@2", f"{LINE}@3"}
    promotion.rollback(fleet.catalog, LINE, actor="ann", reason="worse")
    assert fleet.reconcile().healthy
    assert names(one) == {f"{LINE}@1", f"{LINE}@3"}


def test_a_tampered_adapter_is_reported_with_its_reason_and_the_others_are_served(fleet):
    model = fleet.version(1)
    fleet.version(2, line="acme/triage")
    (one,) = fleet.pool()
    path = fleet.store.fetch(fleet.catalog.ref(model.adapter_digest)).folder / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    report = fleet.reconcile()
    assert not report.healthy
    assert "adapter_model.safetensors" in report.pools[0].refused[f"{LINE}@1"]
    assert names(one) == {"acme/triage@1"}


def test_bytes_that_change_after_the_deployment_are_refused_by_the_replica_and_reported(fleet):
    model = fleet.version(1)
    (one,) = fleet.pool()
    fleet.reconcile()
    path = fleet.store.fetch(fleet.catalog.ref(model.adapter_digest)).folder / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    one.kill()
    one.dead()
    one.restart()
    (replica,) = fleet.reconcile().pools[0].replicas
    assert replica.state == "refused"
    assert "404 The model `acme/router@1` does not exist" in replica.failed[0]
    assert "adapter_model.safetensors" in replica.failed[0], "why, from our own look at the bytes"


def test_a_new_base_is_a_new_pool_and_the_old_one_drains(fleet):
    fleet.version(1)
    blue = fleet.pool(name="blue")
    green = fleet.pool(name="green", base=fleet.base("newer"))
    report = fleet.reconcile()
    assert [pool.idle for pool in report.pools] == [False, True]
    fleet.version(2, base="newer")
    report = fleet.reconcile()
    assert report.healthy and [pool.idle for pool in report.pools] == [True, False]
    assert names(blue[0]) == set() and names(green[0]) == {f"{LINE}@2"}


def test_a_draining_pool_loses_its_adapters_while_its_twin_serves(fleet):
    fleet.version(1)
    (old,) = fleet.pool(name="old")
    (new,) = fleet.pool(name="new")
    fleet.reconcile()
    fleet.pools[0] = Pool(name="old", base=fleet.base(), replicas=(old.url,), drain=True)
    assert fleet.reconcile().healthy
    assert fleet.catalog.deployed("fleet-old") == []
    assert [v.label for v in fleet.catalog.deployed("fleet-new")] == [f"{LINE}@1"]
    assert names(new) == {f"{LINE}@1"}


def test_a_standalone_replica_is_held_to_its_version_and_its_bytes(fleet):
    model = fleet.version(1, full=True)
    root = f"/models/{model.adapter_digest}"
    fleet.pool(
        name="whole",
        base=model.adapter_digest,
        kind="standalone",
        serves=model.label,
        base_name=model.label,
        base_root=root,
    )
    assert fleet.reconcile().healthy
    fleet.pool(
        name="wrong", base="1" * 64, kind="standalone", serves="acme/other@1", base_name="acme/other@1", base_root=root
    )
    (replica,) = fleet.reconcile().pools[1].replicas
    assert replica.state == "fault" and model.adapter_digest[:12] in replica.failed[0]


def test_folders_leave_only_when_every_replica_answered_and_named_them_by_nobody_for_long(fleet, monkeypatch):
    first = fleet.version(1)
    cache = fleet.cache(fleet.base())
    one, _two = fleet.pool(replicas=2, cache=str(cache))
    fleet.reconcile()
    second = fleet.version(2)
    fleet.reconcile()
    assert {p.name for p in cache.iterdir()} == {first.adapter_digest, second.adapter_digest}, "not yet"
    monkeypatch.setattr(collect, "UNNAMED_SECONDS", -1.0)
    one.kill()
    one.dead()
    fleet.reconcile()
    assert (cache / first.adapter_digest).is_dir(), "the replica that does not answer may name it"
    one.restart()
    assert fleet.reconcile().pools[0].removed == (first.adapter_digest,)
    assert {p.name for p in cache.iterdir()} == {second.adapter_digest}


def test_a_folder_that_somebody_deleted_is_written_again_before_vllm_reads_it(fleet):
    model = fleet.version(1)
    cache = fleet.cache(fleet.base())
    fleet.pool(cache=str(cache))
    fleet.reconcile()
    (cache / model.adapter_digest).rmdir()
    (replica,) = fleet.reconcile().pools[0].replicas
    assert replica.done == (f"unload {LINE}@1 (its folder is gone)", f"load {LINE}@1 (again)")
    assert replica.state == "repaired" and (cache / model.adapter_digest).is_dir()


def test_the_report_is_kept_and_read_by_people(fleet, monkeypatch, tmp_path, home):
    import yaml
    from click.testing import CliRunner

    from ft_pipeline.cli.main import cli

    fleet.version(1)
    (one,) = fleet.pool()
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump({"pools": [{"name": "main", "base": fleet.base(), "replicas": [one.url]}]}))
    monkeypatch.setenv("FT_FLEET", str(file))
    run = CliRunner().invoke
    assert run(cli, ["fleet", "status"]).exit_code == 1, "drifted"
    done = run(cli, ["fleet", "reconcile"])
    assert done.exit_code == 0, done.output
    assert f"load {LINE}@1" in done.output
    shown = run(cli, ["fleet", "status", "--json"])
    assert shown.exit_code == 0
    document = json.loads(shown.output)
    assert document["healthy"] and document["pools"][0]["replicas"][0]["adapters"].keys() == {f"{LINE}@1"}
    assert json.loads((home.home / "fleet" / "report.json").read_text())["acted"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pools: [{name: a, base: xyz}]", "base of pool a"),
        ("pools: [{name: a, base: '%s', colour: blue}]", "colour"),
        ("pools: [{name: a, base: '%s', replicas: ['http://x/path']}]", "http://host:port"),
        ("pools: [{name: a, base: '%s', kind: standalone}]", "serves"),
        ("pools: [{name: a, base: '%s', kind: standalone, serves: acme/router}]", "version"),
        ("pools: [{name: a, base: '%s', replicas: ['http://x:1', 'http://x:1']}]", "two pools"),
        ("pools: [{name: ../a, base: '%s'}]", "DNS label"),
        ("pools: {", "YAML"),
    ],
)
def test_a_wrong_inventory_is_refused_with_the_field(tmp_path, text, says):
    path = tmp_path / "fleet.yaml"
    path.write_text(text.replace("%s", "a" * 64))
    with pytest.raises(UserError, match=says):
        read_inventory(path)


def test_signals_of_vllms_own_metrics():
    pool = Pool(name="p", base="a" * 64, max_replicas=6)
    text = (
        'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 9.0\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\n'
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.7e+09\n'
    )
    load = load_of("http://one", text)
    assert (load.running, load.waiting, load.slots, load.active) == (3, 9, 2, {"a", "b", "c"})
    signal = signal_of(pool, [load])
    assert (signal.suggested, signal.why, signal.adapters_per_slot) == (4, "9 wait", 1.5)
    assert signal_of(pool, [Load(url="x", slots=2, active=frozenset("abcdefgh"))]).suggested == 4
    assert signal_of(pool, [Load(url="x", cache_share=0.9), Load(url="y")]).suggested == 3
    assert signal_of(pool, [Load(url="x", waiting=400)]).suggested == 6, "never above the pool's own bound"
    assert signal_of(pool, [Load(url=str(i)) for i in range(5)]).suggested == 1
    assert 'ft_fleet_suggested_replicas{pool="p"} 4' in exposition([signal], {"p": [load]})
