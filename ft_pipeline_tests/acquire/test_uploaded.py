"""raw_dataset from an uploaded file: `blob://SHA256` on a disk and in a bucket; its bytes say what it is, and are verified."""

from __future__ import annotations

import gzip
import json

import pytest

from ft_pipeline import settings as settings_module
from ft_pipeline.acquire.artifact import raw_files
from ft_pipeline.acquire.dataset import acquire
from ft_pipeline.errors import IntegrityError, NotFoundError, UserError
from ft_pipeline.recipe import Dataset
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.store.blobs import Blobs
from ft_pipeline.store.fingerprint import sha256_bytes

ROWS = b"".join(json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(50))


def put(store, content: bytes, tmp_path) -> str:
    path = tmp_path / "arrived"
    path.write_bytes(content)
    digest = sha256_bytes(content)
    Blobs(store).put(path, digest)
    return digest


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (ROWS, "rows.jsonl"),
        (gzip.compress(ROWS, mtime=0), "rows.json.gz"),
        (b"[" + ROWS.strip().replace(b"\n", b",") + b"]", "rows.json"),
    ],
)
def test_an_uploaded_file_becomes_a_raw_dataset_and_the_blob_is_not_needed_any_more(
    home, store, tmp_path, content, name
):
    digest = put(store, content, tmp_path)
    made = acquire(Dataset(uri=f"blob://{digest}", revision=digest), settings=home, store=store)
    assert raw_files(made)[name].read_bytes() == content
    Blobs(store).remove(digest)
    assert acquire(Dataset(uri=f"blob://{digest}"), settings=home, store=store).ref == made.ref


def test_what_is_wrong_with_an_address_is_said(home, store, tmp_path):
    digest = put(store, ROWS, tmp_path)
    for uri, error, words in [
        ("blob://" + "0" * 64, NotFoundError, "upload it again"),
        ("blob://../../etc/passwd", UserError, "names no blob"),
        (f"blob://{digest.upper()}", UserError, "names no blob"),
    ]:
        with pytest.raises(error, match=words):
            acquire(Dataset(uri=uri), settings=home, store=store)
    with pytest.raises(UserError, match="pins revision"):
        acquire(Dataset(uri=f"blob://{digest}", revision="1" * 64), settings=home, store=store)


def test_damaged_bytes_are_never_trained_on(home, store, tmp_path):
    digest = put(store, ROWS, tmp_path)
    [path] = (tmp_path / "home" / "store" / "blobs").rglob(digest)
    path.write_bytes(ROWS.replace(b"row 7", b"row 8", 1))
    with pytest.raises(IntegrityError, match="damaged"):
        acquire(Dataset(uri=f"blob://{digest}"), settings=home, store=store)
    assert not list(store.all("raw_dataset"))


def test_in_a_bucket(home, s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("FT_STORE", f"{s3_bucket}/store")
    settings = settings_module.load()
    store = open_store(settings)
    digest = put(store, ROWS, tmp_path)
    blobs = Blobs(store)
    assert list(blobs.all()) == [digest]
    assert b"".join(blobs.pieces(digest, start=5, stop=25)) == ROWS[5:25]
    with blobs.local(digest) as path:
        assert path.read_bytes() == ROWS
    made = acquire(Dataset(uri=f"blob://{digest}"), settings=settings, store=store)
    assert raw_files(made)["rows.jsonl"].read_bytes() == ROWS
    blobs.remove(digest)
    assert blobs.size(digest) is None
