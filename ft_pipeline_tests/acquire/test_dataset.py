"""raw_dataset from a file, a folder, an address, a bucket and the Hub: same bytes, same id; every mistake has a cure."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import fsspec
import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.acquire.artifact import raw_files, source_of
from ft_pipeline.errors import DataError, NotFoundError, StorageError, UserError
from ft_pipeline.recipe import Dataset
from ft_pipeline_tests.acquire.hub_server import running_hub

ROWS = b"".join(json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(2000))


@pytest.fixture
def hub(home, monkeypatch):
    monkeypatch.setattr("ft_pipeline.acquire.download.PAUSE_SECONDS", 0.01)
    with running_hub() as server:
        yield server


def acquire(home, store, uri, **keys):
    messages = keys.pop("messages", [])
    return dataset.acquire(Dataset(uri=str(uri), **keys), settings=home, store=store, listener=messages.append)


def test_a_file_is_named_by_its_content_not_by_its_place(home, store, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_bytes(ROWS)
    messages: list = []
    first = acquire(home, store, tmp_path / "a" / "rows.jsonl", messages=messages)
    second = acquire(home, store, tmp_path / "b" / "rows.jsonl")
    assert first.ref == second.ref
    assert raw_files(first)["rows.jsonl"].read_bytes() == ROWS
    assert str(tmp_path) not in json.dumps(source_of(first)) + json.dumps(dict(first.manifest.config))
    assert first.manifest.counts == {"files": 1, "bytes": len(ROWS)}
    last = [m for m in messages if m.kind == "progress"][-1]
    assert (last.done, last.total, last.unit) == (len(ROWS), len(ROWS), "B")


def test_one_changed_byte_is_another_dataset(home, store, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    first = acquire(home, store, path)
    path.write_bytes(ROWS.replace(b"row 7", b"row 8", 1))
    assert acquire(home, store, path).ref != first.ref


def test_a_folder_gives_its_row_files_and_leaves_the_rest(home, store, tmp_path):
    folder = tmp_path / "set"
    (folder / "part").mkdir(parents=True)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(ROWS, mtime=0))
    (folder / "part" / "b.jsonl").write_bytes(ROWS)
    (folder / "README.md").write_text("about")
    (folder / ".hidden.jsonl").write_text("{}")
    assert list(raw_files(acquire(home, store, folder))) == ["a.jsonl.gz", "part/b.jsonl"]


def test_home_uri(home, store):
    (home.home / "sets").mkdir(parents=True)
    (home.home / "sets" / "rows.jsonl").write_bytes(ROWS)
    assert acquire(home, store, "home://sets/rows.jsonl").manifest.counts["bytes"] == len(ROWS)


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("empty.jsonl", b"", DataError, "is empty"),
        ("rows.csv", b"a,b", DataError, "holds no row files"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", DataError, "git lfs pull"),
    ],
)
def test_files_that_hold_no_rows_are_refused_with_a_cure(home, store, tmp_path, name, content, error, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        acquire(home, store, tmp_path / name)
    assert caught.value.cure
    assert not list(store.all("raw_dataset"))


def test_a_folder_without_rows(home, store, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt"):
        acquire(home, store, tmp_path / "set")


def test_a_missing_file_names_the_nearest(home, store, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    with pytest.raises(NotFoundError) as caught:
        acquire(home, store, tmp_path / "trian.jsonl")
    assert "did you mean train.jsonl" in caught.value.cure
    with pytest.raises(NotFoundError, match="no file or folder") as caught:
        acquire(home, store, tmp_path / "no" / "where" / "x.jsonl")
    assert str(tmp_path) in caught.value.cure


def test_a_pinned_revision_is_kept(home, store, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    first = acquire(home, store, path)
    revision = first.manifest.config["content"]
    assert acquire(home, store, path, revision=revision).ref == first.ref
    path.unlink()
    assert acquire(home, store, path, revision=revision).ref == first.ref
    path.write_bytes(ROWS + ROWS)
    with pytest.raises(UserError, match="the recipe pins"):
        acquire(home, store, path, revision="0" * 64)


def test_a_download_goes_on_where_the_line_broke(home, store, hub):
    hub.repo("plain", "files").commits["0"] = {"rows.jsonl": ROWS}
    hub.cut_after["rows.jsonl"] = 10_000
    found = acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl?token=secret")
    assert raw_files(found)["rows.jsonl"].read_bytes() == ROWS
    ranges = hub.downloads("rows.jsonl")
    assert ranges[0] is None and int(ranges[1].removeprefix("bytes=").rstrip("-")) > 0 and len(ranges) == 2
    assert "secret" not in found.folder.joinpath("manifest.json").read_text()
    assert not list((home.work / "downloads").glob("*.whole"))


def test_a_killed_download_is_resumed_by_the_next_process(home, store, hub, monkeypatch):
    monkeypatch.setattr("ft_pipeline.acquire.download.ATTEMPTS", 1)
    hub.repo("plain", "files").commits["0"] = {"rows.jsonl": ROWS}
    hub.cut_after["rows.jsonl"] = 10_000
    with pytest.raises(StorageError, match="goes on where this one stopped"):
        acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl")
    found = acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl")
    assert raw_files(found)["rows.jsonl"].read_bytes() == ROWS
    assert hub.downloads("rows.jsonl")[-1] is not None


def test_a_file_that_changed_between_two_attempts_is_fetched_anew(home, store, hub, monkeypatch):
    monkeypatch.setattr("ft_pipeline.acquire.download.ATTEMPTS", 1)
    files = hub.repo("plain", "files").commits.setdefault("0", {"rows.jsonl": ROWS})
    hub.cut_after["rows.jsonl"] = 10_000
    with pytest.raises(StorageError):
        acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl")
    files["rows.jsonl"] = ROWS.replace(b"row", b"new")
    found = acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl")
    assert raw_files(found)["rows.jsonl"].read_bytes() == ROWS.replace(b"row", b"new")


def test_an_unchanged_address_is_not_fetched_again(home, store, hub):
    hub.repo("plain", "files").commits["0"] = {"rows.jsonl": ROWS}
    first = acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl")
    assert acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl").ref == first.ref
    assert len(hub.downloads("rows.jsonl")) == 1


def test_addresses_that_give_nothing(home, store, hub):
    with pytest.raises(NotFoundError, match="HTTP 404"):
        hub.repo("plain", "files").commits["0"] = {}
        acquire(home, store, f"{hub.endpoint}/plain/rows.jsonl")
    with pytest.raises(StorageError, match="does not answer"):
        acquire(home, store, "http://127.0.0.1:9/rows.jsonl")


def test_bucket_object_and_prefix(home, store, s3_bucket, s3_endpoint):
    where = replace(home, s3_endpoint=s3_endpoint)
    files = fsspec.filesystem("s3", client_kwargs={"endpoint_url": s3_endpoint})
    files.pipe_file(f"{s3_bucket}/set/a.jsonl", ROWS)
    files.pipe_file(f"{s3_bucket}/set/b/c.jsonl", ROWS)
    files.pipe_file(f"{s3_bucket}/set/readme.txt", b"x")
    one = acquire(where, store, f"{s3_bucket}/set/a.jsonl")
    assert raw_files(one)["a.jsonl"].read_bytes() == ROWS
    assert list(raw_files(acquire(where, store, f"{s3_bucket}/set/"))) == ["a.jsonl", "b/c.jsonl"]
    with pytest.raises(NotFoundError):
        acquire(where, store, f"{s3_bucket}/nothing")


def test_the_same_rows_from_disk_and_bucket_are_one_dataset(home, store, s3_bucket, s3_endpoint, tmp_path):
    where = replace(home, s3_endpoint=s3_endpoint)
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    fsspec.filesystem("s3", client_kwargs={"endpoint_url": s3_endpoint}).pipe_file(f"{s3_bucket}/a.jsonl", ROWS)
    assert acquire(home, store, tmp_path / "a.jsonl").ref == acquire(where, store, f"{s3_bucket}/a.jsonl").ref


def test_hub_dataset_branch_becomes_a_commit(home, store, hub):
    where = replace(home, hf_endpoint=hub.endpoint)
    commit = hub.repo("datasets", "ann/docs").push(
        {"data/train.jsonl": ROWS, "data/more.jsonl": ROWS, "README.md": b"x", "dataset_infos.json": b"{}"}
    )
    found = acquire(where, store, "hf://ann/docs")
    assert list(raw_files(found)) == ["data/more.jsonl", "data/train.jsonl"]
    assert found.manifest.config["revision"] == commit
    assert source_of(found)["uri"] == f"hf://datasets/ann/docs@{commit}"
    one = acquire(where, store, f"hf://datasets/ann/docs@{commit}/data/train.jsonl")
    assert list(raw_files(one)) == ["data/train.jsonl"]


def test_a_pinned_hub_dataset_needs_no_network(home, store, hub):
    where = replace(home, hf_endpoint=hub.endpoint)
    commit = hub.repo("datasets", "ann/docs").push({"train.jsonl": ROWS})
    first = acquire(where, store, "hf://ann/docs", revision=commit)
    offline = replace(home, hf_endpoint="http://127.0.0.1:9")
    assert acquire(offline, store, "hf://ann/docs", revision=commit).ref == first.ref
    with pytest.raises(StorageError, match="the Hub does not answer"):
        acquire(offline, store, "hf://ann/docs")


def test_hub_mistakes_are_told_apart(home, store, hub):
    where = replace(home, hf_endpoint=hub.endpoint)
    hub.repo("datasets", "ann/docs").push({"train.jsonl": ROWS})
    with pytest.raises(NotFoundError, match="no dataset ann/dcos"):
        acquire(where, store, "hf://ann/dcos")
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        acquire(where, store, "hf://ann/docs", revision="v9")
    with pytest.raises(NotFoundError, match=r"train\.jsonl"):
        acquire(where, store, "hf://ann/docs@main/other.jsonl")
    with pytest.raises(UserError, match="names no Hub repository"):
        acquire(where, store, "hf://docs")
    hub.gated.add("ann/docs")
    with pytest.raises(UserError, match="gated"):
        acquire(where, store, "hf://ann/docs")
