"""A queued job says what it waits for."""

from __future__ import annotations

import json

from ft_pipeline import recipe
from ft_pipeline_tests import road
from ft_pipeline_tests.jobs.stub import new_job


def test_each_job_says_what_it_waits_for(platform, client, key) -> None:
    """A free place with how many go before it, the tenant's own limit, another job of its line; nothing once it runs."""
    acme, other = key("acme", concurrent_jobs=1), key("other")
    document = json.dumps(recipe.identity(recipe.parse(road.document(), origin="test")))

    def submit(tenant: str, name: str) -> str:
        made = new_job(tenant, line=f"{tenant}/{name}", recipe=document)
        return platform.records.submit(made, admit=lambda _counts: None)[0].id

    def waits(job_id: str, of: str) -> str | None:
        found = client.get(f"/v1/fine_tuning/jobs/{job_id}", headers={"Authorization": f"Bearer {of}"}).json()
        return found["platform"]["waiting_for"]

    runs = submit("acme", "a")
    platform.records.move(runs, "provisioning")
    limited, free, behind = submit("acme", "b"), submit("other", "c"), submit("other", "c")
    assert waits(runs, acme) is None
    assert waits(limited, acme) == "one of its tenant's jobs to end: 1 may run at once (concurrent_jobs)"
    assert waits(free, other) == "a free place: 1 jobs run, 0 go before it"
    assert waits(behind, other) == f"{free} to end: one job at a time trains other/c"
