"""/v1/files: what comes in as rows and what is refused, labels, limits, isolation, deletion."""

from __future__ import annotations

import gzip
import json
import time

import pytest
import zstandard
from fastapi.testclient import TestClient

from ft_pipeline.store.blobs import Blobs
from ft_pipeline.store.fingerprint import sha256_bytes
from ft_pipeline.web.app import build_api
from ft_pipeline.web.arrivals import arriving
from ft_pipeline.web.intake import Label, label_of, take_in
from ft_pipeline.web.platform import Caller
from ft_pipeline_tests.web import rows


def send(client, content: bytes, name: str = "rows.jsonl", **fields: str):
    return client.post("/v1/files", data={"purpose": "fine-tune", **fields}, files={"file": (name, content)})


def sent(client, content: bytes, name: str = "rows.jsonl", **fields: str) -> dict:
    answer = send(client, content, name, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def validated(client, file_id: str) -> dict:
    """The file when its validation has ended."""
    until = time.monotonic() + 60
    while (found := client.get(f"/v1/files/{file_id}").json())["status"] == "uploaded":
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def test_a_file_is_stored_validated_listed_read_and_deleted(as_tenant, platform):
    acme = as_tenant("acme")
    made = sent(acme, rows.chats(30))
    assert made["status"] == "processed"
    assert made["platform"]["sha256"] == sha256_bytes(rows.chats(30))
    report = made["platform"]["report"]
    assert (report["rows"], report["usable_rows"], report["layouts"]) == (30, 30, {"chat": 30})
    assert report["roles"] == {"user": 30, "assistant": 30}
    assert report["tokens"]["total"] > 100
    assert "near duplicates" in report["not_checked"]
    assert acme.get(f"/v1/files/{made['id']}/report").json()["report"] == report
    answer = acme.get(f"/v1/files/{made['id']}/content")
    assert answer.content == rows.chats(30)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert [file["id"] for file in acme.get("/v1/files").json()["data"]] == [made["id"]]
    assert acme.delete(f"/v1/files/{made['id']}").json() == {"id": made["id"], "object": "file", "deleted": True}
    for path in ("", "/content", "/report"):
        assert acme.get(f"/v1/files/{made['id']}{path}").status_code == 404
    assert [line.action for line in platform.records.audit_lines(tenant="acme")][:2] == ["file.delete", "file.add"]
    assert not list((platform.settings.work / "arrivals").iterdir())


NO_ROWS = {
    "empty": b"",
    "blank": b"\xef\xbb\xbf\n\n",
    "a zip archive": rows.zipped(),
    "Excel": rows.zipped("xl/workbook.xml"),
    "PyTorch": rows.zipped("archive/data.pkl"),
    "a tar archive\n": rows.tarred(),
    "tar archive inside gz": gzip.compress(rows.tarred()),
    "packed file inside gz": gzip.compress(gzip.compress(rows.chats())),
    "middle": gzip.compress(rows.chats())[:-30],
    "empty file inside gz": gzip.compress(b""),
    "inside zst": b"\x28\xb5\x2f\xfd\x00\x00",
    "cannot be unpacked": b"\x28\xb5\x2f\xfd" + b"\xff" * 20,
    "Python pickle": rows.pickled(),
    "HTML": b"<!DOCTYPE html><html></html>",
    "a program": b"\x7fELF\x02\x01",
    "binary": b"\x00\x01\x02\x03",
    "CSV": b"prompt,completion\na,b\n",
    "UTF-16 text\n": "\ufeff".encode("utf-16-le") + rows.chats().decode().encode("utf-16-le"),
    "UTF-16 text without a mark": rows.chats().decode().encode("utf-16-le"),
    "cut off": rows.parquet([rows.chat()])[:-20],
}


def test_what_is_no_rows_is_refused_by_its_content_and_leaves_nothing(as_tenant, platform):
    acme = as_tenant()
    bombs = {"unpack to more": rows.gzip_bomb(), "to more than": rows.zstd_bomb()}
    for seems, content in {**NO_ROWS, **bombs}.items():
        answer = send(acme, content, "rows.jsonl")
        assert answer.status_code == 400, seems
        assert answer.json()["error"]["code"] == "invalid_file"
        assert seems in answer.json()["error"]["message"]
    assert acme.get("/v1/files").json()["data"] == []
    assert not list(Blobs(platform.store).all())
    assert not list((platform.settings.work / "arrivals").iterdir())


@pytest.mark.parametrize(
    "content",
    [gzip.compress(rows.chats()), zstandard.compress(rows.chats()), rows.parquet([rows.chat(n) for n in range(20)])],
    ids=["gzip", "zstandard", "parquet"],
)
def test_packed_rows_and_parquet_are_validated_behind_the_answer_whatever_their_name(as_tenant, platform, content):
    acme = as_tenant()
    made = sent(acme, content, "report.pdf")
    assert made["status"] == "uploaded"
    found = validated(acme, made["id"])
    assert found["status"] == "processed"
    assert found["platform"]["report"]["usable_rows"] == 20


def test_rows_are_rejected_one_by_one_with_their_lines(as_tenant):
    deep = b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    content = b"\xef\xbb\xbf" + rows.jsonl(
        *(rows.chat(number) for number in range(12)),
        rows.chat(3),
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": 1, "messages": 2}',
        b"{not json",
        b'{"text": NaN}',
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": "and?"}]},
        {"messages": [{"role": "user", "content": "nul \x00 here"}, {"role": "assistant", "content": "x"}]},
        b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}',
        {"a": 1},
        [1, 2],
        deep,
    )
    made = sent(as_tenant(), content)
    report = made["platform"]["report"]
    reasons = {entry["reason"]: (entry["rows"], entry["examples"][0]["line"]) for entry in report["rejected"]}
    assert report["usable_rows"] == 13
    assert reasons["invalid_utf8"] == (2, 14)
    assert reasons["duplicate_key"] == (1, 15)
    assert reasons["not_json"][1] == 16
    assert reasons["unknown_role"] == (1, 18)
    assert reasons["no_final_assistant"] == (1, 19)
    assert reasons["nul_character"] == (1, 20)
    assert reasons["unknown_layout"] == (1, 22)
    assert reasons["not_an_object"] == (1, 23)
    assert report["duplicates"] == {"equal_rows": 1, "share": 0.0769}


def test_a_file_without_one_usable_row_is_an_error_that_says_why(as_tenant):
    made = sent(as_tenant(), rows.jsonl({"a": 1}, {"b": 2}))
    assert made["status"] == "error"
    assert "line 1: unknown_layout" in made["status_details"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("../../../etc/passwd", "passwd"),
        ("/etc/shadow", "shadow"),
        ("C:\\Windows\\win.ini", "win.ini"),
        ("..", "file"),
        ("", "file"),
        ("a\x00b\x1b[31m\r\n.jsonl", "ab[31m .jsonl"),
        ("evil\u202egnp.jsonl", "evilgnp.jsonl"),
        ("x" * 10_000 + ".jsonl", "x" * 194 + ".jsonl"),
        ("\ud800.jsonl", "jsonl"),
        ("Zu\u0308rich \U0001f600.jsonl", "Z\u00fcrich \U0001f600.jsonl"),
    ],
)
def test_a_name_is_a_label(said, shown):
    assert label_of(said) == shown


def test_names_and_ids_never_touch_a_path(as_tenant, platform):
    acme = as_tenant()
    made = sent(acme, rows.chats(), "../../../../etc/" + "n" * 10_000 + ".jsonl")
    assert made["filename"] == "n" * 194 + ".jsonl"
    for file_id in (
        "..%2f..%2fetc%2fpasswd",
        "file-%00",
        "file-" + "0" * 24,
        "%F0%9F%98%80",
        "' OR 1=1 --",
        "x" * 5000,
    ):
        for path in ("", "/content", "/report"):
            assert acme.get(f"/v1/files/{file_id}{path}").status_code == 404
        assert acme.delete(f"/v1/files/{file_id}").status_code == 404
    assert acme.get("/v1/files", params={"after": "file-\x00"}).status_code == 404
    assert acme.get("/v1/files", params={"purpose": "\x00"}).json()["data"] == []


def test_two_tenants_with_the_same_bytes_have_their_own_file_over_one_blob(as_tenant, platform):
    acme, other = as_tenant("acme"), as_tenant("other")
    first, second = sent(acme, rows.chats()), sent(other, rows.chats())
    assert first["id"] != second["id"]
    assert len(list(Blobs(platform.store).all())) == 1
    foreign = [other.get(f"/v1/files/{first['id']}{path}") for path in ("", "/content", "/report")]
    assert {answer.status_code for answer in [*foreign, other.delete(f"/v1/files/{first['id']}")]} == {404}
    unknown = other.get("/v1/files/file-" + "0" * 24).json()["error"]["message"]
    assert foreign[0].json()["error"]["message"].replace(first["id"], "file-" + "0" * 24) == unknown
    assert [file["id"] for file in other.get("/v1/files").json()["data"]] == [second["id"]]
    acme.delete(f"/v1/files/{first['id']}")
    assert other.get(f"/v1/files/{second['id']}/content").content == rows.chats()


def test_limits_of_a_tenant(as_tenant, platform):
    small = as_tenant("small", file_bytes=2000, storage_bytes=3000)
    assert len(rows.chats(10)) < 2000 < len(rows.chats(40))
    answer = send(small, rows.chats(40))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    first = sent(small, rows.chats(12))
    answer = send(small, rows.chats(13))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "storage_quota_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    small.delete(f"/v1/files/{first['id']}")
    assert send(small, rows.chats(13)).status_code == 200
    assert not list((platform.settings.work / "arrivals").iterdir())


def test_an_endless_body_is_cut_at_the_limit_and_not_read_to_its_end(as_tenant):
    small = as_tenant("small", file_bytes=3 << 20)
    told = 0

    def body():
        nonlocal told
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while told < 64 << 20:
            told += 1 << 20
            yield b" " * (1 << 20)

    answer = small.post("/v1/files", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


FORM = "multipart/form-data; boundary=x"
BODIES = [
        (b"", FORM, "middle"),
        (b"{}", "application/json", "application/json"),
        (b"--y\r\n", FORM, "no whole"),
        (b"--x--\r\n", "multipart/form-data", "no whole"),
        (b"x", "multipart/form-data; boundary=" + "b" * 500, "no whole"),
        (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"a', FORM, "middle"),
        (b'--x\r\nContent-Disposition: form-data; name="owner"\r\n\r\nroot\r\n--x--\r\n', FORM, "unknown field"),
        (b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"p" * 5000 + b"\r\n--x--\r\n", FORM, "1024"),
        (b"--x\r\n" + b"A: b\r\n" * 5000 + b"\r\n\r\n--x--\r\n", FORM, "no whole"),
        (b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n' * 50 + b"--x--\r\n", FORM, "parts"),
        (b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--\r\n', FORM, "missing"),
    ]  # fmt: skip


def test_malformed_bodies(as_tenant):
    acme = as_tenant()
    for body, kind, words in BODIES:
        answer = acme.post("/v1/files", content=body, headers={"Content-Type": kind})
        assert answer.status_code in (400, 413), words
        assert words in answer.json()["error"]["message"]


def test_purposes_and_expiry(as_tenant, platform):
    acme = as_tenant()
    answer = send(acme, rows.chats(), purpose="assistants")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")
    assert "fine-tune" in answer.json()["error"]["message"]
    assert acme.post("/v1/files", files={"file": ("a", rows.chats())}).status_code == 400
    for seconds in ("10", "x", "99999999999"):
        answer = send(acme, rows.chats(), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds})
        assert answer.status_code == 400
    made = sent(acme, rows.chats(), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    assert made["expires_at"] - made["created_at"] == pytest.approx(3600, abs=2)


def test_pages(as_tenant):
    acme = as_tenant()
    made = [sent(acme, rows.chats(11 + number))["id"] for number in range(5)]
    page = acme.get("/v1/files", params={"limit": 2}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (made[:2:-1], True)
    page = acme.get("/v1/files", params={"limit": 10, "after": page["last_id"]}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (made[2::-1], False)
    page = acme.get("/v1/files", params={"order": "asc", "after": made[1], "purpose": "fine-tune"}).json()
    assert [file["id"] for file in page["data"]] == made[2:]
    assert all(file["platform"]["report"] is None for file in page["data"])
    assert acme.get("/v1/files", params={"limit": 0}).status_code == 400


def test_roles(as_tenant):
    made = sent(as_tenant("acme"), rows.chats())
    auditor, asker = as_tenant("acme", ["audit"]), as_tenant("acme", ["infer"])
    assert auditor.get(f"/v1/files/{made['id']}").status_code == 200
    assert send(auditor, rows.chats()).status_code == 403
    assert auditor.delete(f"/v1/files/{made['id']}").status_code == 403
    assert asker.get("/v1/files").status_code == 403


def test_a_validation_that_was_interrupted_is_made_again_and_a_lost_blob_is_said(platform, key):
    """No application runs here at first: rows wait as a process that was killed leaves them."""
    caller = Caller(tenant="acme", key="k", name="ci", roles=frozenset(["submit"]))
    headers = {"Authorization": f"Bearer {key('acme')}"}
    ids = []
    for count in (11, 12):
        with arriving(platform.settings.work, lambda _size: None) as arrival:
            arrival.write(gzip.compress(rows.chats(count), mtime=0))
            arrival.finish()
            made = take_in(platform, caller, arrival, label=Label(filename="a", purpose="fine-tune"))
        ids.append(made.id)
    Blobs(platform.store).remove(made.blob_sha256)
    with TestClient(build_api(platform), headers=headers) as client:
        kept, lost = (validated(client, file_id) for file_id in ids)
        assert kept["status"] == "processed"
        assert (lost["status"], "not in the store" in lost["status_details"]) == ("error", True)
        assert client.get(f"/v1/files/{lost['id']}/content").status_code == 503


def test_a_file_of_the_store_says_nothing_of_others(as_tenant, platform):
    """The digest of somebody else's blob in a request names nothing."""
    sent(as_tenant("acme"), rows.chats())
    [digest] = Blobs(platform.store).all()
    assert as_tenant("other").get(f"/v1/files/{digest}").status_code == 404
    assert json.loads(as_tenant("other").get("/v1/files").text)["data"] == []
