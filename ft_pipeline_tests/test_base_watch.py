"""The watch over base models and what it asks for: only what depends on a base that moved and stayed moved, and no training."""

from __future__ import annotations

import functools
import json

import dagster as dg
import pytest

from ft_pipeline import automation, definitions, settings
from ft_pipeline.acquire import watch
from ft_pipeline.partitions import ADAPTER, BASE_MODEL, BUMP_STATUS, CURATED_DATASET, EVAL_REPORT, REGISTERED_MODEL
from ft_pipeline.recipe import BaseModel
from ft_pipeline_tests import road

DATA_VERSION = {"dagster/data_version_is_user_provided": "true"}


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def clock(monkeypatch):
    """The time that the watch sees, in seconds."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(automation.time, "time", lambda: Clock.now)
    return Clock


@pytest.fixture
def world(home, monkeypatch, instance, clock):
    return World(home, monkeypatch, instance)


class World:
    """Bases as folders, recipes on them, and a history in which every asset of every recipe was made once."""

    def __init__(self, home, monkeypatch, instance) -> None:
        monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
        monkeypatch.setenv("FT_MLFLOW", "off")
        self.home, self.instance, self.cursor = home.home, instance, None
        self.evaluations = None

    def base(self, name: str, weights: bytes) -> None:
        folder = self.home / "bases" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": weights}.items():
            (folder / file).write_bytes(content)

    def recipe(self, name: str, base: str, **changes) -> str:
        road.write_recipe(self.home, name, name=name, base_model={"uri": f"home://bases/{base}"}, **changes)
        self.instance.add_dynamic_partitions("recipes", [f"acme/{name}"])
        return f"acme/{name}"

    def made(self, key: str, version: str, *assets: dg.AssetKey, **tags: str) -> None:
        """Materializations as a run reports them."""
        run = self.instance.create_run_for_job(
            automation_job(), tags={"dagster/partition": key, **tags}, status=dg.DagsterRunStatus.SUCCESS
        )
        for asset in assets:
            facts = {**DATA_VERSION, "dagster/data_version": version}
            event = dg.AssetMaterialization(asset, partition=key, tags=facts)
            report(self.instance, run.run_id, event)

    def tick(self) -> list[str]:
        """One look of the watch, carried out as the daemon does it. Returns the keys it recorded."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        answer = automation.base_model_watch(context)
        self.cursor = answer.cursor
        for event in answer.asset_events:
            self.instance.report_runless_asset_event(event)
        assert all(e.asset_key == BASE_MODEL for e in answer.asset_events)
        return sorted(e.partition for e in answer.asset_events)

    def asked(self) -> dict[str, set[str]]:
        """Asset -> the partitions that the conditions ask for."""
        cursor = self.evaluations.cursor if self.evaluations else None
        self.evaluations = dg.evaluate_automation_conditions(
            defs=built(), instance=self.instance, cursor=cursor,
            asset_selection=dg.AssetSelection.assets(*automation.CONDITIONS),
        )  # fmt: skip
        found = {}
        for key in (BASE_MODEL, EVAL_REPORT, REGISTERED_MODEL):
            if keys := self.evaluations.get_requested_partitions(key):
                found[key.to_user_string()] = set(keys)
        return found


@functools.cache
def built() -> dg.Definitions:
    return definitions.build()


def automation_job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def empty() -> None:
        nothing()

    return empty


def report(instance: dg.DagsterInstance, run_id: str, event: dg.AssetMaterialization) -> None:
    from dagster._core.events import DagsterEvent, StepMaterializationData

    made = DagsterEvent(
        event_type_value="ASSET_MATERIALIZATION", job_name="empty", event_specific_data=StepMaterializationData(event)
    )
    instance.report_dagster_event(made, run_id=run_id)


EVERYTHING = (ADAPTER, CURATED_DATASET, BASE_MODEL, EVAL_REPORT, REGISTERED_MODEL)


def settled(world: World, clock, *names: str) -> None:
    """Each recipe has run on its base, and the watch knows every base."""
    for name in names:
        source = BaseModel(uri=f"home://bases/{name.rsplit('-', 1)[0]}")
        world.made(f"acme/{name}", watch.live_version(source, settings.load()), *EVERYTHING)
    world.tick()
    clock.now += 61
    assert world.tick() == [] and world.asked() == {} and world.asked() == {}


def test_a_moved_base_is_recorded_for_its_recipes_once_and_judged_not_trained(world, clock):
    for base in ("llama", "qwen"):
        world.base(base, b"A")
    names = ["llama-1", "llama-2", "qwen-1"]
    for name in names:
        world.recipe(name, name.split("-")[0])
    never_ran = world.recipe("llama-new", "llama")
    settled(world, clock, *names)
    world.base("llama", b"B")
    assert world.tick() == [], "it has to stay so first"
    clock.now += 61
    assert world.tick() == ["acme/llama-1", "acme/llama-2"] and never_ran
    both = {"acme/llama-1", "acme/llama-2"}
    assert world.asked() == {"base_model": both, "eval_report": both}
    assert world.evaluations.get_num_requested(BUMP_STATUS) == 1, "auditors see it at once"
    assert world.asked() == {}, "once"
    clock.now += 600
    assert world.tick() == [] and world.asked() == {}


def test_there_and_back_again_within_the_debounce_is_nothing(world, clock):
    world.base("llama", b"A")
    world.recipe("llama-1", "llama")
    settled(world, clock, "llama-1")
    for content in (b"B", b"A"):
        world.base("llama", content)
        clock.now += 30
        assert world.tick() == []
    clock.now += 61
    assert world.tick() == [] and world.asked() == {}


def test_a_lost_cursor_records_nothing_twice(world, clock):
    world.base("llama", b"A")
    world.recipe("llama-1", "llama")
    settled(world, clock, "llama-1")
    world.base("llama", b"B")
    old = world.cursor
    world.tick()
    clock.now += 61
    assert world.tick() == ["acme/llama-1"]
    for cursor in (old, None):
        world.cursor = cursor
        for _ in range(3):
            assert world.tick() == []
            clock.now += 61


def test_a_base_that_does_not_answer_stops_no_other_and_is_not_forgotten(world, clock):
    for base in ("llama", "qwen"):
        world.base(base, b"A")
    for name in ("llama-1", "qwen-1"):
        world.recipe(name, name.split("-")[0])
    settled(world, clock, "llama-1", "qwen-1")
    (world.home / "bases" / "llama" / "model.safetensors").rename(world.home / "away")
    (world.home / "bases" / "llama").rename(world.home / "gone")
    world.base("qwen", b"B")
    world.tick()
    clock.now += 61
    assert world.tick() == ["acme/qwen-1"]
    assert "home://bases/llama" in json.loads(world.cursor)


def test_a_folder_is_not_hashed_while_nothing_moves(world, clock, monkeypatch):
    world.base("llama", b"A")
    world.recipe("llama-1", "llama")
    settled(world, clock, "llama-1")
    hashed = []
    monkeypatch.setattr(automation.watch, "known_sha256", lambda path: hashed.append(path) or "x")
    clock.now += 600
    world.tick()
    assert hashed == []


@pytest.mark.slow
def test_three_hundred_recipes_on_three_bases_and_only_the_dependants_are_asked(world, clock):
    names = [f"{base}-{n}" for n in range(100) for base in ("llama", "qwen", "phi")]
    for base in ("llama", "qwen", "phi"):
        world.base(base, b"A")
    for name in names:
        world.recipe(name, name.split("-")[0])
    settled(world, clock, *names)
    world.base("qwen", b"B")
    world.tick()
    clock.now += 61
    expected = {f"acme/qwen-{n}" for n in range(100)}
    assert set(world.tick()) == expected
    assert world.asked() == {"base_model": expected, "eval_report": expected}
    assert world.tick() == [] and world.asked() == {}


def test_a_report_that_a_person_asked_for_or_whose_check_did_not_pass_registers_nothing(world, clock):
    world.base("llama", b"A")
    world.recipe("llama-1", "llama")
    settled(world, clock, "llama-1")
    world.made("acme/llama-1", "report-2", EVAL_REPORT)
    assert world.asked() == {}
    world.made("acme/llama-1", "report-3", EVAL_REPORT, **{automation.TRIGGER_TAG: automation.BASE_CHANGED})
    assert world.asked() == {}, "its check has not passed"
