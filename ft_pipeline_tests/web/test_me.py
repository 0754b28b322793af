"""Who am I, and the audit log of one's own tenant."""

from __future__ import annotations

from ft_pipeline.web.platform import ROLES


def test_a_caller_learns_its_roles_limits_and_use(as_tenant):
    said = as_tenant("acme", ["submit"], concurrent_jobs=4, money_a_month=None).get("/v1/platform/me").json()
    assert (said["tenant"], said["tier"], said["key"]["roles"]) == ("acme", 10, ["submit"])
    assert (said["limits"]["concurrent_jobs"], said["limits"]["money_a_month"]) == (4, None)
    assert said["use"] == {"concurrent_jobs": 0, "queued_jobs": 0, "storage_bytes": 0, "jobs": {}}
    assert "hmac" not in str(said)


def test_the_log_is_for_auditors_and_ends_at_the_tenant(as_tenant, platform):
    ours, theirs = as_tenant("acme", ["audit"]), as_tenant("other", ["audit"])
    for number in range(3):
        platform.records.audit(actor="acme/ci", tenant="acme", action="job.submit", subject=f"ftjob-{number}")
    first = ours.get("/v1/platform/audit", params={"limit": 2}).json()
    assert [row["subject"] for row in first["data"]] == ["ftjob-2", "ftjob-1"] and first["has_more"]
    rest = ours.get("/v1/platform/audit", params={"after": first["last_id"]}).json()
    assert [row["action"] for row in rest["data"]] == ["job.submit", "key.create", "tenant.add"] and not rest[
        "has_more"
    ]
    assert {row["subject"] for row in theirs.get("/v1/platform/audit").json()["data"]} & {"acme", "ftjob-0"} == set()
    foreign = theirs.get("/v1/platform/audit", params={"after": first["last_id"]})
    unknown = theirs.get("/v1/platform/audit", params={"after": "999"})
    assert (foreign.status_code, unknown.status_code) == (404, 404)
    assert foreign.json()["error"]["code"] == unknown.json()["error"]["code"] == "not_found"
    for role in set(ROLES) - {"audit"}:
        assert as_tenant("acme", [role]).get("/v1/platform/audit").status_code == 403


def test_pages_are_asked_for_in_numbers(as_tenant):
    ours = as_tenant("acme", ["audit"])
    for params in ({"limit": 0}, {"limit": 101}, {"after": "x' OR 1=1"}, {"after": "9" * 19}, {"limit": "many"}):
        refused = ours.get("/v1/platform/audit", params=params)
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error"), params
