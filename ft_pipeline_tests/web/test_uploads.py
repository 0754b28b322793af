"""Uploads in parts, the official client over a real server, a killed server, and the collector of bytes that nobody uses."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
import uvicorn

from ft_pipeline.settings import child_environment
from ft_pipeline.store.blobs import Blobs
from ft_pipeline.store.manifest import Spec
from ft_pipeline.store.platform.garbage import collect_blobs
from ft_pipeline.store.platform.rows import NewJob
from ft_pipeline.store.platform.tables import uploads
from ft_pipeline.web.app import build_api
from ft_pipeline.web.arrivals import sweep
from ft_pipeline_tests import tiny
from ft_pipeline_tests.web import rows


@contextmanager
def running(platform) -> Iterator[str]:
    """The API on a port of this machine."""
    server = uvicorn.Server(uvicorn.Config(build_api(platform), port=0, log_level="warning"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def official(platform, key) -> Iterator[openai.OpenAI]:
    """The official client, which validates strictly, of tenant acme."""
    with running(platform) as url, openai.OpenAI(
        base_url=f"{url}/v1", api_key=key("acme", file_bytes=8 << 20), _strict_response_validation=True, max_retries=0
    ) as client:  # fmt: skip
        yield client


def test_the_official_client_brings_reads_and_deletes_files(official, platform):
    made = official.files.create(file=("chats.jsonl", rows.chats(20)), purpose="fine-tune")
    assert (made.status, made.bytes, made.filename) == ("processed", len(rows.chats(20)), "chats.jsonl")
    packed = official.files.create(file=("c.jsonl.gz", gzip.compress(rows.chats(25))), purpose="fine-tune")
    assert official.files.wait_for_processing(packed.id, poll_interval=0.1).status == "processed"
    assert official.files.retrieve(packed.id).platform["report"]["usable_rows"] == 25
    assert [file.id for file in official.files.list(limit=1)] == [packed.id, made.id]
    assert official.files.content(made.id).read() == rows.chats(20)
    later = official.files.create(
        file=rows.chats(30), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert later.expires_at == later.created_at + 7200
    assert official.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        official.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="zip archive"):
        official.files.create(file=("rows.jsonl", rows.zipped()), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        official.files.create(file=("rows.jsonl", rows.chats()), purpose="assistants")
    with pytest.raises(openai.APIStatusError) as refused:
        official.files.create(file=("big.jsonl", b"{" * (40 << 20)), purpose="fine-tune")
    assert refused.value.status_code == 413


def test_the_official_client_sends_a_file_in_parts(official, tmp_path):
    content = rows.chats(4000)
    path = tmp_path / "chats.jsonl"
    path.write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    made = official.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=200_000, md5=md5
    )
    assert made.status == "completed"
    assert made.file is not None
    assert official.files.content(made.file.id).read() == content
    assert official.files.wait_for_processing(made.file.id, poll_interval=0.1).status == "processed"


def begin(client, content: bytes) -> str:
    body = {"bytes": len(content), "filename": "../a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    made = client.post("/v1/uploads", json=body)
    assert made.status_code == 200, made.text
    return made.json()["id"]


def part(client, upload: str, data: bytes):
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": ("blob", data)})


def test_parts_come_in_any_order_again_and_are_joined_as_named(as_tenant, platform):
    acme, content = as_tenant(), rows.chats(40)
    upload = begin(acme, content)
    second, lost, first = (
        part(acme, upload, data).json()["id"] for data in (content[999:], content[:7], content[:999])
    )
    listed = acme.get(f"/v1/uploads/{upload}").json()["platform"]["parts"]
    assert [(entry["id"], entry["bytes"]) for entry in listed] == [
        (second, len(content) - 999),
        (lost, 7),
        (first, 999),
    ]

    def complete(parts: list[str], **body: str):
        return acme.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts, **body})

    for parts, body in (
        ([second], {}),
        ([first, first], {}),
        ([first, "part_x"], {}),
        ([first, second], {"md5": "0" * 32}),
    ):
        assert complete(parts, **body).status_code == 400
    made = complete([first, second], md5=hashlib.md5(content).hexdigest()).json()
    assert (made["status"], made["file"]["status"], made["file"]["filename"]) == ("completed", "processed", "a.jsonl")
    assert acme.get(f"/v1/files/{made['file']['id']}/content").content == content
    assert complete([first, second]).json()["file"]["id"] == made["file"]["id"]
    assert len(acme.get("/v1/files").json()["data"]) == 1
    assert part(acme, upload, b"more").status_code == 400
    assert platform.store.bucket.list(".uploads") == []


def test_what_an_upload_may_not(as_tenant, platform):
    acme, content = as_tenant(storage_bytes=10_000), rows.chats(40)
    upload = begin(acme, content)
    other = as_tenant("other")
    for answer in (
        other.get(f"/v1/uploads/{upload}"),
        part(other, upload, b"x"),
        other.post(f"/v1/uploads/{upload}/cancel"),
    ):
        assert answer.status_code == 404
    assert part(acme, upload, content + b"x").status_code == 413
    body = {"bytes": 9000, "filename": "b", "mime_type": "x", "purpose": "fine-tune"}
    assert acme.post("/v1/uploads", json=body).status_code == 429
    for wrong in ({"bytes": 0}, {"purpose": "vision"}, {"path": "/etc"}):
        assert acme.post("/v1/uploads", json={**body, **wrong}).status_code == 400
    assert acme.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    assert acme.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    assert part(acme, upload, b"x").status_code == 400
    assert acme.post("/v1/uploads", json=body).status_code == 200
    archive = rows.zipped()
    upload = begin(other, archive)
    done = part(other, upload, archive).json()["id"]
    refused = other.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [done]})
    assert (refused.status_code, "zip archive" in refused.text) == (400, True)


def test_an_upload_ends_after_a_day_and_its_parts_go(as_tenant, platform):
    acme = as_tenant()
    upload = begin(acme, rows.chats())
    part(acme, upload, b"x")
    with platform.records.write() as db:
        db.execute(uploads.update().values(expires_at="2020-01-01T00:00:00.000000+00:00"))
    assert acme.get(f"/v1/uploads/{upload}").json()["status"] == "expired"
    assert part(acme, upload, b"x").status_code == 400
    blobs = Blobs(platform.store)
    assert collect_blobs(platform.records, platform.records, blobs).uploads == 1
    assert platform.store.bucket.list(".uploads") == []
    assert acme.get(f"/v1/uploads/{upload}").json()["status"] == "expired"


def test_bytes_stay_while_a_file_or_a_job_uses_them(as_tenant, platform):
    acme, other, blobs = as_tenant("acme"), as_tenant("other"), Blobs(platform.store)
    own, shared, waiting, mixed = (rows.chats(count) for count in (11, 12, 13, 14))
    ids = [
        acme.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": content}).json()["id"]
        for content in (own, shared, waiting, mixed)
    ]
    other.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": shared})
    new = NewJob(
        id="ftjob-" + "a" * 24, tenant="acme", line="acme/x", tier=10,
        recipe=json.dumps({"mix": [{"uri": f"blob://{hashlib.sha256(mixed).hexdigest()}"}]}), recipe_sha256="0" * 64, request={},
        placement={}, estimate={}, base_model="b", training_file=ids[2], created_by="k",
    )  # fmt: skip
    platform.records.submit(new, admit=lambda _counts: None)
    for file_id in ids:
        acme.delete(f"/v1/files/{file_id}")
    assert collect_blobs(platform.records, platform.records, blobs, dry_run=True).blobs == 1
    assert len(list(blobs.all())) == 4
    found = collect_blobs(platform.records, platform.records, blobs)
    assert (found.blobs, found.bytes, found.kept) == (1, len(own), 3)
    platform.records.wish(new.id, "cancel")
    assert collect_blobs(platform.records, platform.records, blobs).blobs == 2
    [left] = blobs.all()
    assert left == hashlib.sha256(shared).hexdigest()


def test_collecting_while_files_come_and_go_takes_nothing_that_is_used(as_tenant, platform):
    acme, blobs, stop = as_tenant(), Blobs(platform.store), threading.Event()

    def collect() -> None:
        while not stop.is_set():
            collect_blobs(platform.records, platform.records, blobs)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for count in [11, 12] * 8:
            content = rows.chats(count)
            made = acme.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": content}).json()
            assert acme.get(f"/v1/files/{made['id']}/content").content == content
            acme.delete(f"/v1/files/{made['id']}")
    finally:
        stop.set()
        collector.join()


SERVER = """
import sys, uvicorn
from ft_pipeline import settings
from ft_pipeline.web.app import build_api
from ft_pipeline.web.platform import open_platform
uvicorn.run(build_api(open_platform(settings.load())), port=int(sys.argv[1]), log_level="warning")
"""


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_an_upload_leaves_no_file_and_the_next_one_sweeps(platform, key, home):
    token = key("acme")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], env=child_environment(home))
    arrivals = home.work / "arrivals"
    connection = _connected(port)
    try:
        connection.putrequest("POST", "/v1/files")
        for name, value in {
            "Authorization": f"Bearer {token}", "Content-Type": "multipart/form-data; boundary=x", "Content-Length": "50000000",
        }.items():  # fmt: skip
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + rows.chats(40_000)
        )
        until = time.monotonic() + 30
        while not any(path.stat().st_size for path in arrivals.iterdir()) and time.monotonic() < until:
            time.sleep(0.05)
        assert sweep(home.work) == 0, "what is being written is not swept"
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        connection.close()
    assert len(list(arrivals.iterdir())) == 1
    assert platform.records.find_files(tenant="acme", limit=10) == []
    assert not list(Blobs(platform.store).all())
    with running(platform):
        until = time.monotonic() + 30
        while list(arrivals.iterdir()) and time.monotonic() < until:
            time.sleep(0.05)
    assert not list(arrivals.iterdir())


def _connected(port: int) -> http.client.HTTPConnection:
    until = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.connect()
        except OSError:
            connection.close()
            assert time.monotonic() < until
            time.sleep(0.1)
        else:
            return connection


def test_a_report_counts_with_a_tokenizer_of_the_store(as_tenant, platform, tmp_path):
    acme = as_tenant()
    made = acme.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": rows.chats(30)}).json()

    def told(**body: str):
        return acme.post("/v1/datasets/validate", json={"file_id": made["id"], **body})

    assert told(base_model="tiny-docs").json()["report"]["tokens"]["method"].startswith("estimated")
    folder = tiny.tokenizer_folder(tmp_path / "base")
    with platform.store.publish(Spec(kind="base_model", config={"content": "0"}, parents={}, code="tiny")) as draft:
        shutil.copyfile(folder / "tokenizer.json", draft.folder / "tokenizer.json")
        draft.execution["location"] = "home://bases/tiny-docs"
    answer = told(base_model="tiny-docs").json()
    assert (answer["valid"], answer["report"]["rows"]) == (True, 30)
    tokens = answer["report"]["tokens"]
    from tokenizers import Tokenizer

    count = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = sum(
        len(count.encode(turn["content"], add_special_tokens=False).ids)
        for n in range(30)
        for turn in rows.chat(n)["messages"]
    )
    assert (tokens["total"], tokens["counted_rows"]) == (expected, 30)
    assert told(base_model="gpt-4o").json()["error"]["type"] == "invalid_request_error"
    assert as_tenant("other").post("/v1/datasets/validate", json={"file_id": made["id"]}).status_code == 404
