"""Promotion, approval, rollback and archive from Dagster's launchpad: they move stages, name the person, and refuse as the command line does."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from ft_pipeline import definitions, settings
from ft_pipeline.partitions import MODEL_TAG, REGISTERED_MODEL, TENANT_TAG
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline_tests import lines

LINE = "acme/router"
OPS = {name: f"{name}_version" for name in ("promote", "approve", "rollback", "archive")}


@pytest.fixture
def make(home, store, catalog, monkeypatch):
    monkeypatch.setenv("FT_MLFLOW", "off")
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    lines.recipe_file(home)

    def version(seed: int, *, auto_promote: bool = False):
        made = lines.publish_line(store, catalog, base=lines.plain_base(store), seed=seed, auto_promote=auto_promote)
        candidate = Candidate(
            recipe=find_recipe(settings.load(), LINE), adapter=made["adapter"].ref, report=made["eval_report"].ref,
            base=made["base_model"].ref, run_id="r",
        )  # fmt: skip
        return register(candidate, store=store, catalog=catalog, settings=home).model

    return version


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def launched(house, make, instance, monkeypatch):
    """Launches a job of the code location as the launchpad does."""
    from dataclasses import replace

    where = replace(house, settings=settings.load())
    made = definitions.build(where)

    def launch(job: str, **config: Any) -> Any:
        said = {"model": f"{LINE}@1", "actor": "ann", "reason": "it is time", **config}
        return made.resolve_job_def(job).execute_in_process(
            {"ops": {OPS[job]: {"config": said}}}, instance=instance, raise_on_error=False
        )

    return launch


def failure(ended: Any) -> str:
    (event,) = [e for e in ended.all_events if e.event_type_value == "STEP_FAILURE"]
    data = event.step_failure_data
    return f"{data.user_failure_data.description if data.user_failure_data else ''} {data.error}"


def test_ann_asks_bob_approves_in_the_launchpad(launched, make, catalog, instance):
    make(1)
    ended = launched("promote", stage="production")
    assert ended.success and catalog.model(f"{LINE}@1").stage == "staging"
    tags = instance.get_run_by_id(ended.run_id).tags
    assert (tags[TENANT_TAG], tags[MODEL_TAG]) == ("acme", f"{LINE}@1")
    same = launched("approve", actor="Ann")
    assert not same.success and "cannot approve it" in failure(same)
    assert launched("approve", actor="bob", reason="seen").success
    moved = catalog.history(f"{LINE}@1")[-1]
    assert (moved.to_stage, moved.actor, moved.approved_by) == ("production", "dagster:ann", "dagster:bob")
    seen = instance.fetch_observations(REGISTERED_MODEL, limit=5).records
    told = [{k: v.text for k, v in r.asset_observation.metadata.items()} for r in reversed(seen)]
    assert told[0]["asked by"] == "dagster:ann" and "approve" in told[0]["waits for"]
    assert told[1]["moved"] == "staging > production" and told[1]["approved by"] == "dagster:bob"


def test_the_launchpad_and_the_command_line_are_one_person(launched, make, typed, catalog, monkeypatch):
    make(1)
    monkeypatch.setenv("FT_ACTOR", "ann")
    assert typed("promote", f"{LINE}@1", "--reason", "better").code in (0, 3)
    ended = launched("approve")
    assert not ended.success and catalog.model(f"{LINE}@1").stage == "staging"


def test_rollback_and_archive_move_stages_and_end_with_a_seal(launched, make, catalog):
    make(1, auto_promote=True), make(2, auto_promote=True)
    assert launched("rollback", model=LINE).success
    assert [v.stage for v in catalog.models()] == ["production", "archived"]
    assert launched("archive").success
    assert [v.stage for v in catalog.models()] == ["archived", "archived"]
    assert catalog.history(LINE)[-1].actor == "dagster:ann"
    assert catalog.seals()[-1]["journal_seq"] == catalog.journal()[-1].seq


@pytest.mark.parametrize(
    ("job", "config", "said"),
    [
        ("promote", {"model": f"{LINE}@7"}, "no model acme/router@7"),
        ("promote", {"stage": "prod"}, "'prod' is not a stage"),
        ("promote", {"actor": " "}, "actor is empty"),
        ("approve", {}, "nobody asked"),
        ("rollback", {}, "never in production"),
    ],
)
def test_it_refuses_with_the_same_words_and_is_not_retried(launched, make, catalog, job, config, said):
    make(1)
    ended = launched(job, **config)
    assert not ended.success and said in failure(ended)
    assert catalog.model(f"{LINE}@1").stage == "staging"


def test_a_misspelt_field_is_named_by_the_launchpad(launched, make):
    make(1)
    with pytest.raises(dg.DagsterInvalidConfigError, match="staeg"):
        launched("promote", staeg="production")
