"""Jobs as Dagster runs: what the sensor asks for, and what an ended run says of itself, read from its real events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from ft_pipeline import automation, resources, runs
from ft_pipeline.errors import GateRefused, Interrupted, StorageError, TrainingFailed
from ft_pipeline.jobs.dispatch import Ending, RunState
from ft_pipeline.jobs.listener import NotWanted
from ft_pipeline.store.platform.open import Records, open_records
from ft_pipeline_tests import road
from ft_pipeline_tests.jobs.stub import submit

GATES = [{"gate": "holdout", "verdict": "FAIL", "reason": "worse"}]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def records(home) -> Iterator[Records]:
    opened = open_records(home)
    yield opened
    opened.close()


def quiet() -> None:
    """A step that does what it should."""


def raising(error: BaseException) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def refusing() -> None:
    """As the door of register refuses."""
    try:
        raise GateRefused("the base has moved since", why="The report is on another base.")
    except GateRefused as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def ended(
    instance: dg.DagsterInstance, *, train: Callable[[], Any] = quiet, passed: bool = True,
    register: Callable[[], Any] = quiet, deploy: Callable[[], Any] = quiet,
) -> Ending:  # fmt: skip
    """The ending of a real run of stand-ins with the assets, checks and metadata of the doors."""

    @dg.asset(check_specs=[dg.AssetCheckSpec("complete", asset="checkpoints", blocking=True)])
    def checkpoints() -> dg.MaterializeResult:
        train()
        done = dg.AssetCheckResult(check_name="complete", passed=True, metadata={"trained_tokens": 1234})
        return dg.MaterializeResult(check_results=[done])

    @dg.asset(deps=[checkpoints], check_specs=[dg.AssetCheckSpec("gate", asset="eval_report", blocking=True)])
    def eval_report() -> dg.MaterializeResult:
        facts = {
            "verdict": dg.MetadataValue.text("PASS" if passed else "FAIL"),
            "gates": dg.MetadataValue.table([dg.TableRecord(row) for row in GATES]),
            "digest": dg.MetadataValue.text("d" * 64),
        }
        said = dg.AssetCheckResult(check_name="gate", passed=passed, description="holdout: worse", metadata=facts)
        return dg.MaterializeResult(check_results=[said])

    @dg.asset(deps=[eval_report])
    def registered_model() -> dg.MaterializeResult:
        register()
        return dg.MaterializeResult(metadata={"model": "acme/router@3", "stage": "dev"})

    @dg.asset(deps=[registered_model])
    def deployment() -> None:
        deploy()

    made = [checkpoints, eval_report, registered_model, deployment]
    result = dg.materialize(made, instance=instance, raise_on_error=False)
    return runs.DagsterRuns(instance).ending(RunState(run_id=result.run_id, phase="ended"))


def test_a_model_with_its_stage_and_its_gates(instance) -> None:
    assert ended(instance) == Ending(
        outcome="complete", model="acme/router@3", trained_tokens=1234,
        promotion={
            "blocked": False, "verdict": "PASS", "reason": "holdout: worse", "gates": GATES, "report": "d" * 64,
            "stage": "dev",
        },
    )  # fmt: skip


def test_a_gate_that_fails_blocks_the_promotion_and_nothing_else(instance) -> None:
    found = ended(instance, passed=False)
    assert (found.outcome, found.model, found.trained_tokens) == ("blocked", None, 1234)
    assert found.promotion == {
        "blocked": True, "verdict": "FAIL", "reason": "holdout: worse", "gates": GATES, "report": "d" * 64,
    }  # fmt: skip


def test_a_refusing_register_blocks_with_its_own_reason(instance) -> None:
    found = ended(instance, register=refusing)
    assert (found.outcome, found.promotion["blocked"], found.promotion["verdict"]) == ("blocked", True, "PASS")
    assert found.promotion["reason"].startswith("the base has moved since")


def test_a_deployment_that_fails_takes_no_model_away(instance) -> None:
    found = ended(instance, deploy=raising(StorageError("the pool does not answer")))
    assert (found.outcome, found.model) == ("complete", "acme/router@3")
    assert found.promotion["deployment"] == "the pool does not answer"


def test_a_training_that_failed_speaks_in_words(instance) -> None:
    found = ended(instance, train=raising(TrainingFailed("step 3: loss nan", cure="a lower learning rate")))
    assert found == Ending(
        outcome="failed",
        error={"code": "training_failed", "message": "step 3: loss nan\nCure: a lower learning rate", "param": None},
    )


def test_an_error_keeps_the_servers_paths_to_itself(instance) -> None:
    told = "log is /srv/ft/work/runs/3f/log.txt; see https://example.org/a/b.html and s3://bucket/a/b"
    found = ended(instance, train=raising(TrainingFailed("crashed", cure=told)))
    assert (
        found.error["message"] == "crashed\nCure: log is log.txt; see https://example.org/a/b.html and s3://bucket/a/b"
    )


def test_a_bug_is_called_one_and_shows_no_trace(instance) -> None:
    found = ended(instance, train=raising(ZeroDivisionError("division by zero")))
    assert found.outcome == "failed"
    assert found.error["code"] == "internal_error"
    assert found.error["message"] == "an error of the platform, not of the job: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "error", [Interrupted("it was stopped"), StorageError("the bucket does not answer"), NotWanted("late")]
)
def test_what_passes_by_itself_goes_on_later(instance, error: BaseException) -> None:
    assert ended(instance, train=raising(error)).outcome == "stopped"


def test_a_run_that_vanished_goes_on_later(instance) -> None:
    run = instance.create_run_for_job(fine_tune(), status=dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(run, "its worker was lost")
    assert runs.DagsterRuns(instance).ending(RunState(run_id=run.run_id, phase="ended")).outcome == "stopped"


def test_a_cancelled_run_was_cancelled(instance) -> None:
    run = instance.create_run_for_job(fine_tune(), status=dg.DagsterRunStatus.CANCELED)
    assert runs.DagsterRuns(instance).ending(RunState(run_id=run.run_id, phase="ended")).outcome == "cancelled"


def fine_tune() -> dg.JobDefinition:
    from ft_pipeline import definitions

    return definitions.build().resolve_job_def("fine_tune")


def looked(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """One tick of the sensor."""
    sensor = runs.queue_sensor(automation.fine_tune)
    answer = sensor(dg.build_sensor_context(instance=instance))
    return list(answer.run_requests or [])


def test_the_sensor_asks_for_one_run_with_the_tags_of_the_job(home, records, instance) -> None:
    job = submit(records, "acme", line="acme/router", recipe_sha256="a" * 64)
    (request,) = looked(instance)
    assert (request.run_key, request.partition_key) == (f"{job.id}#1", "acme/router")
    assert request.tags == {
        "ft/job_id": job.id, "ft/tenant": "acme", "ft/recipe_sha256": "a" * 64, "dagster/max_retries": "0",
    }  # fmt: skip
    assert "acme/router" in instance.get_dynamic_partitions("recipes")
    assert looked(instance) == []


def test_a_run_is_found_by_its_key_and_followed(home, records, instance) -> None:
    """The row knows the run that Dagster made of its launch, and follows it when somebody ends it in Dagster."""
    job = submit(records, "acme")
    looked(instance)
    tags = {"dagster/run_key": f"{job.id}#1"}
    run = instance.create_run_for_job(fine_tune(), tags=tags, status=dg.DagsterRunStatus.STARTED)
    looked(instance)
    assert records.job(job.id).run_id == run.run_id
    instance.report_run_canceled(run)
    looked(instance)
    assert records.job(job.id).status == "cancelled"


def test_dagsters_own_limit_of_runs_is_the_platforms(home, records, tmp_path) -> None:
    (tmp_path / "dagster.yaml").write_text("concurrency:\n  runs: {max_concurrent_runs: 3}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert runs.rules_of(home, records, instance).places == 3


def opened_in_a_run(home, tags: dict[str, str]) -> resources.House:
    """The house that a step of a run with these tags gets."""
    seen = []

    @dg.op(required_resource_keys={"house"})
    def look(context) -> None:
        seen.append(context.resources.house)

    @dg.job(resource_defs=resources.build())
    def job() -> None:
        look()

    with dg.DagsterInstance.ephemeral() as instance:
        job.execute_in_process(instance=instance, tags=tags)
    return seen[0]


def test_the_run_of_a_job_uses_the_recipe_and_the_placement_of_its_row(home, records, monkeypatch, tmp_path) -> None:
    import json

    placement = tmp_path / "placement.yaml"
    placement.write_text("checkpoint_steps: 77\nkeep_best: true\n")
    monkeypatch.setenv("FT_PLACEMENT", str(placement))
    document = road.document(name="elsewhere", finetune__epochs=9)
    job = submit(
        records, "acme", line="acme/elsewhere", recipe=json.dumps(document), placement={"checkpoint_steps": 5, "threads": 1}
    )  # fmt: skip
    records.move(job.id, "provisioning")
    house = opened_in_a_run(home, {"ft/job_id": job.id, "dagster/run_key": f"{job.id}#1"})
    assert house.recipe("acme/elsewhere").finetune.epochs == 9
    assert (house.placement.checkpoint_steps, house.placement.keep_best, house.placement.threads) == (5, True, 1)
    house.listener(runs_message())
    assert records.job(job.id).status == "evaluating"


def runs_message() -> Any:
    from ft_pipeline.workers.messages import Message

    return Message(kind="progress", task="evaluate", done=1, total=2)


def test_a_run_of_a_person_is_as_it_was(home, records) -> None:
    from ft_pipeline.workers.messages import ignore

    house = opened_in_a_run(home, {"ft/job_id": "ftjob-0123456789abcdef"})
    assert (house.listener, house.given) == (ignore, {})


@pytest.mark.parametrize("key", ["#1", "#3"])
def test_a_run_that_comes_too_late_does_nothing(home, records, key: str) -> None:
    """Of a launch that was given up, or of a job that was cancelled meanwhile."""
    import json

    job = submit(records, "acme", line="acme/router", recipe=json.dumps(road.document()))
    records.move(job.id, "provisioning")
    records.move(job.id, "queued")
    records.move(job.id, "provisioning")
    with pytest.raises(NotWanted, match="not wanted any more"):
        opened_in_a_run(home, {"ft/job_id": job.id, "dagster/run_key": f"{job.id}{key}"})
