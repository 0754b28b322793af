"""What the store promises: whole artifacts or none, the same inputs once, every changed byte named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ft_pipeline import settings as settings_module
from ft_pipeline.errors import DriftError, IntegrityError, NotFoundError, StorageError, UserError
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store, open_store
from ft_pipeline.store.files import Bucket
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.store.paths import MANIFEST

CODE = "c" * 64


def spec_of(kind: str = "raw_dataset", parents: dict[str, Ref] | None = None, **config: object) -> Spec:
    return Spec(kind=kind, config=config, parents=parents or {}, code=CODE)


def published(store: Store, spec: Spec, **files: bytes) -> Artifact:
    with store.publish(spec) as draft:
        for name, content in (files or {"rows.jsonl": b'{"a":1}\n', "deep__b.bin": bytes(range(256))}).items():
            path = draft.folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        draft.counts["rows"] = 1
        draft.execution["seconds"] = time.perf_counter()
    assert draft.artifact is not None
    return draft.artifact


def drafts(store: Store) -> list[Path]:
    folder = Path(store.bucket.root) / ".drafts"
    return [p for p in folder.iterdir() if p.is_dir()] if folder.exists() else []


def test_published_is_found_again(store: Store) -> None:
    spec = spec_of(x=1)
    assert store.find(spec) is None
    made = published(store, spec)
    found = store.find(spec)
    assert found is not None and found.ref == made.ref
    assert found.file("deep/b.bin").read_bytes() == bytes(range(256))
    assert [m.digest for m in store.all()] == [made.ref.digest]
    assert not drafts(store)


def test_time_and_machine_do_not_change_the_digest(store: Store, tmp_path: Path) -> None:
    here = published(store, spec_of(x=1))
    there = published(Store(Bucket(str(tmp_path / "elsewhere")), tmp_path), spec_of(x=1))
    assert here.ref == there.ref
    assert here.manifest.execution != there.manifest.execution


def test_other_bytes_of_the_same_spec_are_drift(store: Store) -> None:
    made = published(store, spec_of(x=1), rows=b"one")
    with pytest.raises(DriftError, match="rows"):
        published(store, spec_of(x=1), rows=b"two")
    assert store.fetch(made.ref).file("rows").read_bytes() == b"one"


def test_an_error_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.publish(spec_of(x=1)) as draft:
        (draft.folder / "half").write_bytes(b"x")
        raise RuntimeError
    assert store.find(spec_of(x=1)) is None
    assert not drafts(store)


@pytest.mark.parametrize("name", ["rows.jsonl", "deep/b.bin", MANIFEST])
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_named(store: Store, name: str, where: float, bit: int) -> None:
    spec = spec_of(x=1)
    made = store.find(spec) or published(store, spec)
    path = made.folder / name
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[int(where * len(whole))] ^= 1 << bit
    path.write_bytes(broken)
    try:
        with pytest.raises((IntegrityError, NotFoundError), match=name):
            store.find(spec)
    finally:
        path.write_bytes(whole)
    assert store.find(spec) is not None


def test_every_cut_of_a_manifest_is_refused(store: Store) -> None:
    spec = spec_of(x=1)
    path = published(store, spec).folder / MANIFEST
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError, match=MANIFEST):
            store.find(spec)
    path.write_bytes(whole + b"\n")
    with pytest.raises(IntegrityError, match=MANIFEST):
        store.find(spec)


def test_missing_cut_and_extra_files_are_named(store: Store) -> None:
    spec = spec_of(x=1)
    made = published(store, spec)
    rows = made.file("rows.jsonl")
    content = rows.read_bytes()
    rows.unlink()
    with pytest.raises(IntegrityError, match=r"rows\.jsonl is missing"):
        store.find(spec)
    rows.write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match=r"rows\.jsonl has 7 bytes, the manifest says 8"):
        store.find(spec)
    rows.write_bytes(content)
    (made.folder / "adapter_model.bin").write_bytes(b"evil")
    with pytest.raises(IntegrityError, match=r"adapter_model\.bin is not in the manifest"):
        store.find(spec)


def test_a_byte_changed_back_in_time_is_seen(store: Store) -> None:
    """`cp -p` and `touch` restore size and mtime: the memo of hashes must not believe them."""
    spec = spec_of(x=1)
    path = published(store, spec).file("rows.jsonl")
    old = time.time() - 100
    os.utime(path, (old, old))
    time.sleep(2.1)  # past FRESH_SECONDS, so that the hash is remembered
    assert store.find(spec) is not None
    path.write_bytes(b'{"a":2}\n')
    os.utime(path, (old, old))
    with pytest.raises(IntegrityError, match=r"rows\.jsonl"):
        store.find(spec)


def test_a_moved_artifact_is_refused(store: Store) -> None:
    made = published(store, spec_of(x=1))
    other = spec_of(x=2)
    shutil.copytree(made.folder, made.folder.parent / other.fingerprint)
    with pytest.raises(IntegrityError, match="moved"):
        store.find(other)


def test_a_replaced_parent_is_refused(store: Store) -> None:
    made = published(store, spec_of(x=1), rows=b"one")
    shutil.rmtree(made.folder)
    published(store, spec_of(x=1), rows=b"two")
    with pytest.raises(IntegrityError, match="its child recorded"):
        store.fetch(made.ref)


def test_links_and_reserved_names_are_refused(store: Store) -> None:
    with pytest.raises(DriftError, match="link"), store.publish(spec_of(x=1)) as draft:
        (draft.folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(DriftError, match=MANIFEST), store.publish(spec_of(x=1)) as draft:
        (draft.folder / MANIFEST).write_text("{}")
    with pytest.raises(DriftError, match="every file"), store.publish(spec_of(x=1)):
        pass


def test_a_folder_without_manifest_gives_way(store: Store) -> None:
    spec = spec_of(x=1)
    made = published(store, spec)
    (made.folder / MANIFEST).unlink()
    assert store.find(spec) is None
    assert published(store, spec).ref == made.ref


def test_killed_while_writing_leaves_no_artifact(home: Settings, store: Store) -> None:
    """kill -9 between the files and the manifest: no artifact, and the next publish succeeds."""
    script = (
        "import os, signal\n"
        "from ft_pipeline import settings\n"
        "from ft_pipeline.store.artifacts import open_store\n"
        "from ft_pipeline.store.manifest import Spec\n"
        f"spec = Spec(kind='raw_dataset', config={{'x': 1}}, parents={{}}, code='{CODE}')\n"
        "with open_store(settings.load()).publish(spec) as draft:\n"
        "    (draft.folder / 'rows').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    left = drafts(store)
    assert len(left) == 1
    assert store.find(spec_of(x=1)) is None
    assert published(store, spec_of(x=1), rows=b"whole").file("rows").read_bytes() == b"whole"
    assert drafts(store) == left
    for path in [*left[0].rglob("*"), left[0]]:
        os.utime(path, (1, 1))
    published(store, spec_of(x=2))
    assert drafts(store) == []


def test_concurrent_publishers_make_one_artifact(store: Store) -> None:
    spec, refs, barrier = spec_of(x=1), [], threading.Barrier(8)

    def publish() -> None:
        with store.publish(spec) as draft:
            (draft.folder / "rows").write_bytes(b"same" * 1000)
            barrier.wait()
        assert draft.artifact is not None
        refs.append(draft.artifact.ref)

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 8 and len(set(refs)) == 1
    assert len(list(store.all())) == 1
    assert not drafts(store)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("writer", ["python", "polars"])
def test_full_disk(home: Settings, small_disk: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.setenv("FT_STORE", str(small_disk / "store"))
    store = open_store(settings_module.load())
    kept = published(store, spec_of(x=1))
    with pytest.raises(StorageError, match="no space left") as error, store.publish(spec_of(x=2)) as draft:
        if writer == "python":
            (draft.folder / "big").write_bytes(os.urandom(3 << 20))
        else:
            import polars as pl

            pl.DataFrame({"a": [os.urandom(1000).hex() for _ in range(4000)]}).write_parquet(draft.folder / "big")
    assert "free space" in error.value.cure
    assert store.fetch(kept.ref).ref == kept.ref
    assert store.find(spec_of(x=2)) is None
    assert published(store, spec_of(x=2), rows=b"small").file("rows").read_bytes() == b"small"


def test_a_file_in_the_way_is_told(home: Settings, store: Store) -> None:
    Path(store.bucket.root).parent.mkdir(parents=True)
    Path(store.bucket.root).write_text("a file where the store should be")
    with pytest.raises(StorageError, match="a folder is needed"):
        published(store, spec_of(x=1))


def test_a_store_is_a_folder_or_s3(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("file:///tmp/x", "/tmp/x", "../../../../../../../tmp/x"):
        monkeypatch.setenv("FT_STORE", uri)
        assert Path(open_store(settings_module.load()).bucket.root).resolve() == Path("/tmp/x")
    monkeypatch.setenv("FT_STORE", "gs://bucket")
    with pytest.raises(UserError, match="gs://bucket"):
        open_store(settings_module.load())
