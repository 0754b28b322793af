"""base_model: whole safetensors snapshots only, pinned for training, live for judging."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import fsspec
import pytest

from ft_pipeline.acquire import base_model
from ft_pipeline.acquire.artifact import control_tokens, digests_of
from ft_pipeline.errors import DataError, DriftError, IntegrityError, NotFoundError, StorageError
from ft_pipeline.recipe import BaseModel
from ft_pipeline.store.artifacts import open_store
from ft_pipeline_tests.acquire.hub_server import running_hub

TENSOR = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
WEIGHTS = len(TENSOR).to_bytes(8, "little") + TENSOR + b"\0" * 16
TOKENIZER = {
    "added_tokens": [
        {"id": 0, "content": "<|end|>", "special": True},
        {"id": 1, "content": "  ", "special": False},
        {"id": 2, "content": "<|user|>", "special": True},
    ]
}
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": json.dumps(TOKENIZER).encode(),
    "tokenizer_config.json": b'{"chat_template": "{{ messages }}", "eos_token": "<|end|>"}',
    "README.md": b"a model",
    "training_args.bin": b"pickle",
    "modeling_x.py": b"import os",
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "base"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def hub(home):
    with running_hub() as server:
        yield server


def acquire(home, store, uri, **keys):
    return base_model.acquire(BaseModel(uri=str(uri)), settings=home, store=store, **keys)


def test_a_folder_becomes_a_snapshot_without_code_and_pickles(home, store, folder):
    base = acquire(home, store, folder)
    assert set(base.manifest.files) == {*FILES, "digests.json"} - {"training_args.bin", "modeling_x.py"}
    assert (base.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert set(digests_of(base)) == {"weights", "tokenizer", "chat_template", "config", "docs"}
    assert base_model.resolve_revision(BaseModel(uri=str(folder)), settings=home) == base.manifest.config["content"]


@pytest.mark.parametrize(
    ("name", "content", "changed"),
    [
        ("README.md", b"other words", {"docs"}),
        ("tokenizer_config.json", b'{"chat_template": "{{ m }}", "eos_token": "<|end|>"}', {"chat_template"}),
        ("tokenizer_config.json", b'{"chat_template": "{{ messages }}", "eos_token": "x"}', {"tokenizer"}),
        ("chat_template.jinja", b"{{ x }}", {"chat_template"}),
        ("model.safetensors", WEIGHTS[:-1] + b"\1", {"weights"}),
        ("config.json", b"{}", {"config"}),
    ],
)
def test_each_file_class_has_its_own_digest(home, store, folder, name, content, changed):
    before = digests_of(acquire(home, store, folder))
    (folder / name).write_bytes(content)
    after = digests_of(acquire(home, store, folder))
    assert {c for c in before if before[c] != after[c]} == changed


def test_control_tokens_are_the_special_added_tokens(home, store, folder):
    assert control_tokens(store, acquire(home, store, folder).ref) == ("<|end|>", "<|user|>")


def test_control_tokens_come_from_a_store_in_a_bucket_without_the_weights(home, folder, s3_bucket, s3_endpoint):
    remote = open_store(replace(home, store_uri=f"{s3_bucket}/store", s3_endpoint=s3_endpoint))
    ref = acquire(home, remote, folder).ref
    shutil.rmtree(home.work / "cache")
    assert control_tokens(remote, ref) == ("<|end|>", "<|user|>")
    assert {p.name for p in (home.work / "cache").rglob("*") if p.is_file()} == {"tokenizer.json"}


def test_a_changed_tokenizer_is_not_read(home, store, folder):
    base = acquire(home, store, folder)
    base.file("tokenizer.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        control_tokens(store, base.ref)


@pytest.mark.parametrize(
    ("remove", "add", "words"),
    [
        ("config.json", {}, "config.json missing"),
        ("tokenizer.json", {}, "tokenizer.json missing"),
        ("model.safetensors", {}, "as pickle"),
        ("model.safetensors", {"model.safetensors": WEIGHTS[:-3]}, "its header promises"),
        ("model.safetensors", {"model.safetensors": b"junk"}, "not a safetensors file"),
        (
            "README.md",
            {"model.safetensors.index.json": b'{"weight_map": {"w": "model-2.safetensors"}}'},
            "names model-2.safetensors",
        ),
    ],
)
def test_what_is_no_whole_safetensors_snapshot_is_refused(home, store, folder, remove, add, words):
    (folder / remove).unlink()
    for name, content in add.items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        acquire(home, store, folder)
    assert caught.value.cure
    assert not list(store.all("base_model"))


def test_a_missing_demo_base_names_the_command_that_builds_it(home, store):
    with pytest.raises(NotFoundError) as caught:
        acquire(home, store, "home://bases/tiny-docs")
    assert "ft-pipeline base build-tiny" in str(caught.value)
    assert "home://bases/tiny-docs" in str(caught.value)


def test_a_pinned_folder_outlives_a_change_and_its_own_removal(home, store, catalog, folder):
    source = BaseModel(uri=str(folder))
    first = base_model.pinned_revision("ann/x", source, settings=home, catalog=catalog)
    pinned = acquire(home, store, folder, revision=first)
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"\1")
    assert base_model.pinned_revision("ann/x", source, settings=home, catalog=catalog) == first
    assert acquire(home, store, folder, revision=first).ref == pinned.ref
    live = base_model.resolve_revision(source, settings=home)
    assert live != first
    assert acquire(home, store, folder, revision=live).ref != pinned.ref
    shutil.rmtree(folder)
    assert acquire(home, store, folder, revision=first).ref == pinned.ref


def test_a_pin_that_nobody_holds_is_drift(home, store, folder):
    with pytest.raises(DriftError, match="pinned to 000000000000"):
        acquire(home, store, folder, revision="0" * 64)


def test_hub_model_branch_is_pinned_and_the_live_one_moves(home, store, catalog, hub):
    where = replace(home, hf_endpoint=hub.endpoint)
    source = BaseModel(uri="hf://ann/tiny")
    first = hub.repo("models", "ann/tiny").push(FILES)
    pinned = base_model.pinned_revision("ann/x", source, settings=where, catalog=catalog)
    assert pinned == first
    base = base_model.acquire(source, settings=where, store=store, revision=pinned)
    assert (base.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.downloads("modeling_x.py") == []
    second = hub.repo("models", "ann/tiny").push({**FILES, "README.md": b"new"})
    assert base_model.pinned_revision("ann/x", source, settings=where, catalog=catalog) == first
    assert base_model.resolve_revision(source, settings=where) == second
    offline = replace(home, hf_endpoint="http://127.0.0.1:9")
    assert base_model.acquire(source, settings=offline, store=store, revision=pinned).ref == base.ref
    with pytest.raises(StorageError):
        base_model.resolve_revision(source, settings=offline)


def test_bytes_that_are_not_the_hubs_are_refused(home, store, hub):
    hub.repo("models", "ann/tiny").push(FILES)
    hub.lie["model.safetensors"] = WEIGHTS[:-1] + b"\7"
    with pytest.raises(DataError, match="the source says"):
        acquire(replace(home, hf_endpoint=hub.endpoint), store, "hf://ann/tiny")
    assert not list(store.all("base_model"))


def test_bucket_base_is_the_same_as_the_folder(home, store, folder, s3_bucket, s3_endpoint):
    where = replace(home, s3_endpoint=s3_endpoint)
    files = fsspec.filesystem("s3", client_kwargs={"endpoint_url": s3_endpoint})
    for name, content in FILES.items():
        files.pipe_file(f"{s3_bucket}/base/{name}", content)
    assert acquire(where, store, f"{s3_bucket}/base").ref == acquire(home, store, folder).ref
