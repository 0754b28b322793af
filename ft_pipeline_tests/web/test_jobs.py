"""Jobs by the real `openai` client, strict, over a real socket: what it is shown, what it is refused, and that nobody sees another's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from ft_pipeline.settings import Settings
from ft_pipeline.store.platform.events import Point
from ft_pipeline.store.platform.queue import Observation, SavedCheckpoint
from ft_pipeline.web.app import build_api
from ft_pipeline.web.platform import Platform
from ft_pipeline_tests.web.offered import offer_tiny
from ft_pipeline_tests.web.rows import chats, jsonl
from ft_pipeline_tests.web.served import served

Client = Callable[..., OpenAI]


@pytest.fixture
def home(home: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return offer_tiny(home, monkeypatch)


@pytest.fixture
def address(platform: Platform) -> Iterator[str]:
    with served(build_api(platform)) as found:
        yield found


@pytest.fixture
def client(address: str, key: Callable[..., str]) -> Client:
    """`client("acme")`: OpenAI's client with a key of the tenant; it refuses every answer that is not as OpenAI's."""

    def make(tenant: str = "acme", roles: Any = ("submit", "approve", "audit", "infer"), **limits: Any) -> OpenAI:
        return OpenAI(
            api_key=key(tenant, roles, **limits),
            base_url=f"{address}/v1",
            max_retries=0,
            _strict_response_validation=True,
        )

    return make


def upload(client: OpenAI, rows: bytes = b"") -> str:
    return client.files.create(file=("rows.jsonl", rows or chats(40)), purpose="fine-tune").id


def submit(client: OpenAI, **changes: Any) -> Any:
    file_id = changes.pop("training_file", None) or upload(client)
    return client.fine_tuning.jobs.create(**{"model": "tiny", "training_file": file_id, **changes})


def go(platform: Platform, job_id: str, *statuses: str) -> None:
    """Moves a job as dispatcher and listener do."""
    for status in statuses:
        assert platform.records.move(job_id, status) is not None  # type: ignore[arg-type]


def raw(client: OpenAI, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {client.api_key}", **options.pop("headers", {})}
    return httpx.request(method, f"{str(client.base_url).rstrip('/')}{path}", headers=headers, timeout=30, **options)


def test_a_job_is_as_openai_describes_it_and_says_what_auto_became(client: Client) -> None:
    acme = client()
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": 4}}}
    job = submit(acme, method=method, seed=7, suffix="Support", metadata={"team": "a"})
    assert (job.status, job.model, job.organization_id, job.seed) == ("queued", "tiny", "acme", 7)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, 4)
    assert job.method.supervised.hyperparameters.n_epochs == 3
    assert job.metadata == {"team": "a"}
    extra = job.platform
    assert (extra["line"], extra["status"], extra["recipe"]["finetune"]["seed"]) == ("acme/support", "queued", 7)
    assert extra["estimate"]["steps"] > 0
    assert acme.fine_tuning.jobs.retrieve(job.id) == job


def test_preferences_and_reinforcement_by_openais_method(client: Client) -> None:
    acme = client()
    pair = {
        "input": {"messages": [{"role": "user", "content": "Which?"}]},
        "preferred_output": [{"role": "assistant", "content": "This."}],
        "non_preferred_output": [{"role": "assistant", "content": "That."}],
    }
    pairs = upload(acme, jsonl(*({**pair, "n": n} for n in range(30))))
    dpo: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    made = submit(acme, training_file=pairs, method=dpo)
    assert made.method.dpo.hyperparameters.beta == 0.2
    assert made.platform["recipe"]["finetune"]["preference"]["beta"] == 0.2
    grader = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.reference_answer}}"}  # fmt: skip
    sums = upload(acme, jsonl(*({"messages": [{"role": "user", "content": f"{n}+1?"}], "reference_answer": str(n + 1)} for n in range(30))))  # fmt: skip
    learned = submit(acme, training_file=sums, method={"type": "reinforcement", "reinforcement": {"grader": grader}})
    assert learned.method.reinforcement.grader.operation == "eq"
    assert [r["name"] for r in learned.platform["recipe"]["finetune"]["reinforce"]["rewards"]] == ["exact_answer"]
    python: Any = {"type": "reinforcement", "reinforcement": {"grader": {"type": "python", "name": "p", "source": "x"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        submit(acme, training_file=sums, method=python)
    assert refused.value.code == "unsupported_grader"


def test_lists_come_in_pages_newest_first(client: Client) -> None:
    acme = client()
    file_id = upload(acme)
    ids = [submit(acme, training_file=file_id, suffix=f"s{n}").id for n in range(5)]
    assert [job.id for job in acme.fine_tuning.jobs.list(limit=2)] == ids[::-1]
    first = acme.fine_tuning.jobs.list(limit=2)
    assert (len(first.data), first.has_more) == (2, True)
    assert [job.id for job in acme.fine_tuning.jobs.list(limit=2, after=ids[1])] == [ids[0]]


def test_cancel_pause_and_resume_at_once_while_a_job_waits_and_by_a_wish_while_it_runs(
    client: Client, platform: Platform
) -> None:
    acme = client()
    job = submit(acme)
    assert acme.fine_tuning.jobs.pause(job.id).platform["status"] == "paused"
    assert acme.fine_tuning.jobs.resume(job.id).platform["status"] == "queued"
    go(platform, job.id, "provisioning", "running")
    told = acme.fine_tuning.jobs.cancel(job.id)
    assert (told.status, told.platform["wish"]) == ("running", "cancel")
    go(platform, job.id, "cancelled")
    assert acme.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    for act in (acme.fine_tuning.jobs.cancel, acme.fine_tuning.jobs.pause, acme.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError):
            act(job.id)


def test_the_true_status_stands_beside_openais(client: Client, platform: Platform) -> None:
    acme = client()
    job = submit(acme)
    seen = []
    for status in ("provisioning", "running", "checkpointing", "preempted", "evaluating", "succeeded"):
        go(platform, job.id, status)
        now = acme.fine_tuning.jobs.retrieve(job.id)
        seen.append((now.status, now.platform["status"]))
    running = ("provisioning", "running", "checkpointing", "preempted", "evaluating")
    assert seen == [*(("running", status) for status in running), ("succeeded", "succeeded")]


def test_a_blocked_promotion_is_a_job_that_succeeded_without_a_model(client: Client, platform: Platform) -> None:
    acme = client()
    job = submit(acme)
    go(platform, job.id, "provisioning", "evaluating")
    blocked = {"blocked": True, "verdict": "FAIL", "reason": "docs-cloze fell", "gates": []}
    platform.records.move(job.id, "succeeded", promotion=blocked)
    found = acme.fine_tuning.jobs.retrieve(job.id)
    assert (found.status, found.fine_tuned_model, found.error) == ("succeeded", None, None)
    assert found.platform["promotion"] == blocked


def test_a_failed_job_says_why(client: Client, platform: Platform) -> None:
    acme = client()
    job = submit(acme)
    go(platform, job.id, "provisioning")
    platform.records.move(job.id, "failed", error={"code": "loss_is_nan", "message": "step 3", "param": None})
    found = acme.fine_tuning.jobs.retrieve(job.id)
    assert found.error and (found.status, found.error.code) == ("failed", "loss_is_nan")


def test_events_in_pages_and_checkpoints(client: Client, platform: Platform) -> None:
    acme = client()
    job = submit(acme)
    go(platform, job.id, "provisioning", "running", "checkpointing", "running")
    messages = [event.message for event in acme.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert len(messages) == 5
    assert messages[-1] == "the job is queued"
    saved = [SavedCheckpoint(step=step, place=f"s{step}", metrics={"train_loss": 1 / step}) for step in (10, 20)]
    for checkpoint in saved:
        seen = Observation(points={checkpoint.step: {"loss": 1 / checkpoint.step}}, checkpoints=[checkpoint])
        assert platform.records.observe(job.id, seen, attempt=1)
    found = list(acme.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [(c.step_number, c.metrics.train_loss) for c in found] == [(20, 0.05), (10, 0.1)]
    points = platform.records.points(job.id)
    assert [(p.attempt, p.step) for p in points] == [(1, 10), (1, 20)]
    assert all(isinstance(point, Point) for point in points)


def test_a_stream_of_events_begins_behind_the_last_one_seen_and_ends_with_the_job(
    client: Client, platform: Platform
) -> None:
    acme = client()
    job = submit(acme)
    first = acme.fine_tuning.jobs.list_events(job.id).data[0].id
    moves = ("provisioning", "running", "evaluating", "succeeded")

    def run() -> None:
        for status in moves:
            time.sleep(0.1)
            go(platform, job.id, status)

    running = threading.Thread(target=run)
    running.start()
    stream = raw(acme, "GET", f"/fine_tuning/jobs/{job.id}/events?stream=true", headers={"Last-Event-ID": first}).text
    running.join()
    blocks = [block.split("\n") for block in stream.strip().split("\n\n")]
    assert blocks[-1] == ["data: [DONE]"]
    told = [json.loads(block[2].removeprefix("data: "))["data"]["status"] for block in blocks[:-1]]
    assert told == list(moves)
    again = raw(acme, "GET", f"/fine_tuning/jobs/{job.id}/events?stream=true").text
    assert again.count("\nevent: message") == 5


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"model": "gpt-4o-mini"}, "invalid_recipe"),
        ({"model": "/models/llama"}, "invalid_recipe"),
        ({"training_file": "file-000000000000000000000000"}, "file_not_found"),
        ({"hyperparameters": {"n_epochs": 0}}, None),
        ({"hyperparameters": {"n_epochs": 3, "warmup": 2}}, None),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "unsupported_integration"),
        ({"extra_body": {"platform": {"recipe": {"finetune": {"learing_rate": 1e-3}}}}}, "invalid_recipe"),
        ({"extra_body": {"platform": {"recipe": {"mix": [{"name": "x", "uri": "/etc"}]}}}}, "invalid_recipe"),
        ({"extra_body": {"platform": {"recipe": {"gate": {"safety": {"uri": "home://no"}}}}}}, "invalid_recipe"),
        ({"extra_body": {"platform": {"recipe": {"finetune": {"preference": {"beta": 0.1}}}}}}, "invalid_recipe"),
        ({"extra_body": {"platform": {"recipe": {"name": float("1e400")}}}}, None),
        ({"extra_body": {"platform": {"placement": {"worker": "kubernetes"}}}}, "invalid_recipe"),
        ({"suffix": "***"}, "invalid_recipe"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_queued(client: Client, request_: dict[str, Any], code: str) -> None:
    acme = client()
    with pytest.raises((openai.BadRequestError, ValueError)) as refused:
        submit(acme, **request_)
    if isinstance(refused.value, openai.BadRequestError) and code:
        assert refused.value.code == code
        assert "Cure" in refused.value.message or "why" in refused.value.message
    assert acme.fine_tuning.jobs.list().data == []


def test_a_missing_suite_is_said_without_the_servers_paths(client: Client, platform: Platform) -> None:
    offer = platform.settings.offer
    offer.write_text(f"{offer.read_text()}suites: {{cloze: home://demo/cloze.jsonl}}\nbenchmark: cloze\n")
    with pytest.raises(openai.BadRequestError) as refused:
        submit(client())
    assert "gate.benchmarks cloze" in refused.value.message
    assert str(platform.settings.home) not in refused.value.message


def test_another_tenants_files_jobs_and_events_do_not_exist(client: Client) -> None:
    acme, other = client("acme"), client("other")
    file_id = upload(acme)
    job = submit(acme, training_file=file_id)
    with pytest.raises(openai.BadRequestError) as foreign:
        submit(other, training_file=file_id)
    with pytest.raises(openai.BadRequestError) as unknown:
        submit(other, training_file="file-" + "0" * 24)
    assert foreign.value.code == unknown.value.code == "file_not_found"
    jobs = other.fine_tuning.jobs
    for act in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as hidden:
            act(job.id)
        with pytest.raises(openai.NotFoundError) as missing:
            act("ftjob-" + "0" * 24)
        assert hidden.value.message.replace(job.id, "") == missing.value.message.replace("ftjob-" + "0" * 24, "")
    assert jobs.list().data == []
    with pytest.raises(openai.NotFoundError):
        jobs.list(after=job.id)
    assert raw(other, "GET", f"/fine_tuning/jobs/{job.id}/events?stream=true").status_code == 404
    assert raw(other, "GET", f"/fine-tuning/jobs/{job.id}").status_code == 404


def test_keys_without_a_role_and_no_keys(client: Client) -> None:
    reader = client("acme", ["audit"])
    job = submit(client("acme"))
    assert reader.fine_tuning.jobs.retrieve(job.id).id == job.id
    with pytest.raises(openai.PermissionDeniedError):
        reader.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.AuthenticationError):
        OpenAI(api_key="sk-ft-no", base_url=reader.base_url, max_retries=0).fine_tuning.jobs.list()


def test_a_quota_is_refused_and_the_client_does_not_try_again(client: Client) -> None:
    acme = client("small", queued_jobs=1)
    file_id = upload(acme)
    submit(acme, training_file=file_id)
    with pytest.raises(openai.RateLimitError) as refused:
        acme.with_options(max_retries=3).fine_tuning.jobs.create(model="tiny", training_file=file_id)
    assert refused.value.code == "job_quota_exceeded"
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_an_idempotency_key_is_one_job_however_often_and_at_once(client: Client, platform: Platform) -> None:
    acme = client(requests_a_minute=None)
    file_id = upload(acme)
    body: Any = {"model": "tiny", "training_file": file_id}
    key = {"Idempotency-Key": "one"}

    def post(_number: int) -> str:
        return acme.fine_tuning.jobs.create(**body, extra_headers=key).id

    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(post, range(40)))
    assert len(ids) == 1
    assert len(platform.records.find_jobs(tenant="acme")) == 1
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        acme.fine_tuning.jobs.create(**body, seed=1, extra_headers=key)
    assert refused.value.code == "idempotency_mismatch"
    with pytest.raises(openai.UnprocessableEntityError):
        raw(acme, "POST", "/fine-tuning/jobs", json={"base_model": "tiny", "training_file": file_id}, headers=key).status_code == 422 and acme.fine_tuning.jobs.create(**body, seed=2, extra_headers=key)  # fmt: skip
    with pytest.raises(openai.BadRequestError):
        acme.fine_tuning.jobs.create(**body, extra_headers={"Idempotency-Key": "k" * 300})


def test_a_dry_run_gives_recipe_steps_and_estimate_and_queues_nothing(client: Client) -> None:
    acme = client()
    body = {"model": "tiny", "training_file": upload(acme)}
    told = raw(acme, "POST", "/fine_tuning/jobs/plan", json=body).json()
    assert [step["asset"] for step in told["steps"]][:2] == ["raw_dataset", "pinned_base"]
    assert told["estimate"]["steps"] > 0
    assert told["recipe"]["finetune"]["epochs"] == told["hyperparameters"]["n_epochs"] == 3
    assert acme.fine_tuning.jobs.list().data == []
    alias = raw(acme, "POST", "/fine-tuning/jobs/plan", json={"base_model": "tiny", **body} | {"model": "x"})
    assert alias.status_code == 400


def test_the_specifications_routes_and_fields(client: Client, platform: Platform) -> None:
    acme = client()
    rows, held = upload(acme), upload(acme, chats(30))
    body = {
        "base_model": "tiny", "training_file": rows, "validation_file": held, "method": "lora",
        "hyperparameters": {
            "n_epochs": 1, "learning_rate_multiplier": 1.0, "batch_size": "auto", "lora_rank": 32, "lora_alpha": 64,
            "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
        "eval_config": {"run_mmlu_regression": False, "task_eval_file": held, "safety_scan": False},
    }  # fmt: skip
    said = raw(acme, "POST", "/fine-tuning/jobs", json=body)
    assert said.status_code == 200, said.text
    made = said.json()
    assert set(made) == {"job_id", "status", "created_at", "estimated_start", "base_model", "training_file_version"}
    assert (made["status"], made["base_model"]) == ("queued", "tiny")
    assert made["estimated_start"] - made["created_at"] in (60, 61)
    assert made["training_file_version"].startswith(f"{rows}@version:")
    job_id = made["job_id"]
    go(platform, job_id, "provisioning", "running")
    platform.records.progress(job_id, attempt=1, step=5, loss=1.5, tokens_per_second=99.0, checkpoint="store/ckpt")
    told = raw(acme, "GET", f"/fine-tuning/jobs/{job_id}").json()
    assert (told["status"], told["step"], told["loss"], told["tokens_per_sec"]) == ("running", 5, 1.5, 99.0)
    assert told["checkpoint_path"] == "store/ckpt"
    assert [job["job_id"] for job in raw(acme, "GET", "/fine-tuning/jobs?limit=1").json()["data"]] == [job_id]
    assert raw(acme, "POST", f"/fine-tuning/jobs/{job_id}/cancel").json()["status"] == "running"
    found = acme.fine_tuning.jobs.retrieve(job_id).platform["recipe"]
    assert (found["finetune"]["lora"]["rank"], [s["split"] for s in found["mix"]]) == (32, ["validation", "holdout"])


def test_what_was_done_is_in_the_audit_log(client: Client, platform: Platform) -> None:
    acme = client()
    job = submit(acme)
    acme.fine_tuning.jobs.pause(job.id)
    acme.fine_tuning.jobs.resume(job.id)
    acme.fine_tuning.jobs.cancel(job.id)
    actions = [line.action for line in platform.records.audit_lines(tenant="acme") if line.subject == job.id]
    assert actions[::-1] == ["job.submit", "job.pause", "job.resume", "job.cancel"]
