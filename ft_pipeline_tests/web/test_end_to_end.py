"""One base_url, the real client, the real daemon, the embedded server: upload, job, events, checkpoints, model, two keys, chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ft_pipeline_tests import bump_end_to_end, road
from ft_pipeline_tests.web.whole import HYPER, SECTIONS, Whole, rows, whole


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whole]:
    with whole(tmp_path / "home", monkeypatch.setenv) as found:
        yield found


def raw(running: Whole, method: str, path: str, key: str, **options: Any) -> httpx.Response:
    url, headers = f"{running.address}/v1{path}", {"Authorization": f"Bearer {key}"}
    return httpx.request(method, url, headers=headers, timeout=60, **options)


def streamed(running: Whole, job_id: str, key: str) -> list[dict[str, Any]]:
    """Every event of a job, as it came, until the stream says that the job has ended."""
    url = f"{running.address}/v1/fine_tuning/jobs/{job_id}/events?stream=true"
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.stream("GET", url, headers=headers, timeout=bump_end_to_end.PATIENCE_SECONDS) as lines:
        told = [line.removeprefix("data: ") for line in lines.iter_lines() if line.startswith("data: ")]
    assert told[-1] == "[DONE]"
    return [json.loads(line) for line in told[:-1]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_a_file_to_an_answer_through_one_base_url(running: Whole) -> None:
    key = running.key(("submit", "infer"))
    client = OpenAI(
        api_key=key, base_url=f"{running.address}/v1", timeout=120, max_retries=0, _strict_response_validation=True
    )
    file = client.files.create(file=("rows.jsonl", rows()), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id, poll_interval=0.2).status == "processed"

    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="router", seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPER}},
        extra_body={"platform": {"recipe": SECTIONS, "placement": {"checkpoint_steps": 10}}},
    )  # fmt: skip
    assert job.status == "queued"

    events = streamed(running, job.id, key)
    seen = [event["data"]["status"] for event in events if "status" in event["data"]]
    assert seen[:3] == ["queued", "provisioning", "running"]
    assert seen[-1] == "succeeded"
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model, job.error) == ("succeeded", "acme/router@1", None)
    assert job.trained_tokens and job.finished_at
    assert job.platform["step"] == job.platform["planned_steps"] > 10
    assert client.fine_tuning.jobs.list_events(job.id).data[0].message == events[-1]["message"]

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert {c.fine_tuning_job_id for c in checkpoints} == {job.id}
    assert checkpoints[0].step_number > checkpoints[-1].step_number > 0

    model = client.models.retrieve(job.fine_tuned_model)
    assert (model.owned_by, model.platform["job_id"], model.platform["training_file"]) == ("acme", job.id, file.id)
    assert (model.platform["base_model"], model.platform["eval_metrics"]["verdict"]) == ("tiny", "PASS")
    assert model.id in [found.id for found in client.models.list()]
    alias = raw(running, "GET", f"/fine-tuning/jobs/{job.id}", key).json()
    assert alias["base_model"] == f"tiny@sha256:{model.platform['base_model_sha']}"

    in_production(running, model.id)
    said = client.chat.completions.create(
        model="acme/router", messages=road.question(5)["messages"][:1], max_tokens=4, temperature=0
    )
    assert said.choices[0].message.content in ("yes", "no")
    assert said.usage.total_tokens > 0
    assert client.models.retrieve("acme/router:production").id == model.id
    shown_in_the_console(running, job.id, file.id)


def in_production(running: Whole, model: str) -> None:
    """One key asks, another one approves; where the policy has promoted it already there is nothing to approve."""
    asked = raw(
        running, "POST", f"/models/{model}/deploy", running.key(("approve",), "ann"), json={"stage": "production"}
    )
    assert asked.status_code in (200, 202), asked.text
    if asked.status_code == 202:
        ben = running.key(("approve",), "ben")
        asked = raw(running, "POST", f"/models/{model}/approve", ben, json={"reason": "looked at"})
    assert (asked.status_code, asked.json()["stage"]) == (200, "production"), asked.text
    assert len(asked.json()["serving_pools"]) == 1


def shown_in_the_console(running: Whole, job_id: str, file_id: str) -> None:
    """A person sees the same: curve, report, gates, lineage down to the raw bytes, who approved, what it cost."""
    with httpx.Client(base_url=running.address, follow_redirects=True, timeout=60) as browser:
        browser.post("/console/login", data={"key": running.key(name="cy")})
        expected = {
            f"/console/jobs/{job_id}": ["<polyline", "acme/router@1", "validation loss"],
            f"/console/files/{file_id}": ["Length of rows", "Usable"],
            "/console/models/acme/router@1": ["raw_dataset", "registered_model", "exact_match", "production"],
            "/console/reports/model/acme/router@1": ["Gate report: PASS"],
            f"/console/reports/job/{job_id}": ["Gate report: PASS"],
            "/console/usage": ["acme/router@1", "useful"],
            "/console/audit": ["job.submit"],
        }
        for path, words in expected.items():
            page = browser.get(path)
            assert page.status_code == 200, (path, page.text[:300])
            assert [word for word in words if word not in page.text] == [], path
