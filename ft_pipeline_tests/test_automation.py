"""What starts work without a person: the recipe sync, the retraining schedules, and cron expressions that Dagster would refuse."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._utils.schedules import is_valid_cron_schedule
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline import automation, definitions, recipe
from ft_pipeline.cron import cron_fault
from ft_pipeline_tests import road


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def written(home, monkeypatch):
    """Writes recipes into a folder that FT_RECIPES names."""
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    return lambda stem, **changes: road.write_recipe(home.home, stem, **changes)


def tick(instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    """One evaluation of the sync; its requests are carried out as the daemon does it."""
    answer = automation.recipe_sync(dg.build_sensor_context(instance=instance))
    for request in getattr(answer, "dynamic_partitions_requests", None) or []:
        instance.add_dynamic_partitions("recipes", list(request.partition_keys))
    return answer


def test_every_recipe_becomes_a_partition_once(written, instance):
    written("router")
    tick(instance)
    there = instance.get_dynamic_partitions("recipes")
    assert {"acme/router", "demo/docs-router"} <= set(there)
    assert isinstance(tick(instance), dg.SkipReason)
    written("second", name="second")
    tick(instance)
    assert set(instance.get_dynamic_partitions("recipes")) - set(there) == {"acme/second"}


def test_a_broken_file_is_named_and_stops_no_other(written, instance):
    written("broken").write_text("tenant: [")
    written("odd", finetune__learing_rate=1)
    written("router")
    tick(instance)
    assert "acme/router" in instance.get_dynamic_partitions("recipes")
    said = tick(instance).skip_message
    assert "broken.yaml is not YAML" in said and "did you mean learning_rate?" in said


def test_two_files_of_one_model_line_are_one_recipe(written, instance):
    written("router", schedule="0 3 * * 1")
    written("router-copy", schedule="0 4 * * 1")
    found, refused = automation.known_recipes()
    assert [r.key for r in found].count("acme/router") == 1
    assert any("router-copy.yaml is a second recipe of acme/router" in line for line in refused)
    definitions.build().resolve_all_job_defs()


def test_the_retraining_schedule_asks_for_one_run_of_its_partition(instance):
    found = recipe.parse(road.document(schedule="0 3 * * 1"), origin="test")
    made = automation.retraining_schedule(found)
    repository = definitions.build().get_repository_def()
    instance.add_dynamic_partitions("recipes", [found.key])

    def ask(at: datetime) -> dg.RunRequest:
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=at, repository_def=repository)
        (request,) = made.evaluate_tick(context).run_requests
        return request

    assert made.cron_schedule == "0 3 * * 1"
    moment = datetime(2026, 11, 23, 3, tzinfo=UTC)
    first, again, later = ask(moment), ask(moment), ask(moment.replace(day=30))
    assert first.partition_key == "acme/router"
    assert first.run_key == again.run_key != later.run_key, "one run a moment, however often it is asked"
    assert first.tags["ft/tenant"] == "acme" and first.tags["ft/job_id"] == first.run_key
    assert first.tags["ft/recipe_sha256"] == recipe.recipe_sha256(found)


def test_only_recipes_with_a_schedule_get_one(written):
    written("router", schedule="0 3 * * 1")
    written("other", name="other")
    names = {s.name for s in automation.defs().schedules}
    assert "retrain_acme__router" in names and not any("other" in n for n in names)


name = st.from_regex(r"[a-z0-9_-]{0,6}[a-z0-9][a-z0-9_-]{0,6}", fullmatch=True)


@given(st.lists(st.tuples(name, name).map("/".join), min_size=2, max_size=2, unique=True))
def test_no_two_lines_share_the_name_of_a_schedule(keys):
    first, second = map(automation.schedule_name, keys)
    assert first != second and first.replace("_", "").isalnum()


field = st.one_of(
    st.just("*"),
    st.from_regex(r"\*/[1-9][0-9]?|[0-9]{1,2}(-[0-9]{1,2})?(/[1-9][0-9]?)?(,[0-9]{1,2})?", fullmatch=True),
    st.text(alphabet="0123456789*,-/LW#? ", max_size=4),
)


@given(st.tuples(field, field, field, field, field).map(" ".join))
def test_dagster_takes_every_schedule_that_a_recipe_may_have(expression):
    assert cron_fault(expression) is not None or is_valid_cron_schedule(expression)


@pytest.mark.parametrize("expression", ["0 3 * * 1", "*/15 * * * *", "0 0 1,15 * *", "30 6 * 1-6/2 0-5", "0 0 29 2 *"])
def test_common_schedules_are_accepted(expression):
    assert cron_fault(expression) is None


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("@weekly", "1 fields, not 5 (minute hour day month weekday)"),
        ("60 3 * * 1", "minute '60' is not *, a number from 0 to 59"),
        ("0 3 * * mon", "weekday 'mon' is not *, a number from 0 to 7"),
        ("0 3 5-2 * *", "day '5-2'"),
        ("0 0 30 2 *", "no month 2 has a day 30"),
    ],
)
def test_a_broken_schedule_is_refused_in_the_recipe(expression, fault):
    with pytest.raises(recipe.RecipeError) as error:
        recipe.parse(road.document(schedule=expression), origin="test")
    assert f"schedule {expression!r}: {fault}" in error.value.what
    assert len(error.value.what) < 200, "not the whole recipe"
