"""The store in a bucket (moto): files verified, manifest last and at most once, damage and refusals in words."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from ft_pipeline import lineage
from ft_pipeline import settings as settings_module
from ft_pipeline.errors import DriftError, IntegrityError, StorageError
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store, open_store
from ft_pipeline.store.files import Bucket
from ft_pipeline.store.manifest import Spec
from ft_pipeline.store.paths import MANIFEST


def spec_of(**config: object) -> Spec:
    return Spec(kind="raw_dataset", config=config, parents={}, code="c" * 64)


def published(store: Store, spec: Spec, content: bytes = b"rows") -> Artifact:
    with store.publish(spec) as draft:
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "rows").write_bytes(content)
        (draft.folder / "other").write_bytes(b"other")
    assert draft.artifact is not None
    return draft.artifact


@pytest.fixture
def bucket_store(home: Settings, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("FT_STORE", f"{s3_bucket}/ft")
    return open_store(settings_module.load())


def objects(store: Store) -> dict[str, bytes]:
    """Key below the root -> bytes, as another client sees them."""
    root = store.bucket.root.removeprefix("s3://")
    store.bucket.filesystem.invalidate_cache()
    return {k.removeprefix(f"{root}/"): store.bucket.filesystem.cat_file(k) for k in store.bucket.filesystem.find(root)}


def other_machine(store: Store, tmp_path: Path) -> Store:
    """The same bucket with an empty cache."""
    return Store(Bucket(store.bucket.root, store.bucket.s3_endpoint), tmp_path / "other-machine")


def test_published_is_found_on_another_machine(bucket_store: Store, tmp_path: Path) -> None:
    made = published(bucket_store, spec_of(x=1))
    found = other_machine(bucket_store, tmp_path).find(spec_of(x=1))
    assert found is not None and found.ref == made.ref
    assert found.file("deep/rows").read_bytes() == b"rows"
    assert [m.digest for m in bucket_store.all()] == [made.ref.digest]
    assert published(bucket_store, spec_of(x=1)).ref == made.ref
    more = [published(bucket_store, spec_of(x=n)).ref for n in (2, 3)]
    assert {m.ref for m in bucket_store.all()} == {made.ref, *more}


def test_the_digest_is_that_of_a_local_store(bucket_store: Store, home: Settings) -> None:
    local = Store(Bucket(str(home.home / "local")), home.work)
    assert published(local, spec_of(x=1)).ref == published(bucket_store, spec_of(x=1)).ref


def test_damage_in_the_bucket_is_named(bucket_store: Store, tmp_path: Path) -> None:
    made = published(bucket_store, spec_of(x=1))
    place = bucket_store.bucket.path(bucket_store.location(made.manifest, "deep/rows"))
    bucket_store.bucket.filesystem.pipe_file(place, b"rowz")
    with pytest.raises(IntegrityError, match="deep/rows was changed"):
        other_machine(bucket_store, tmp_path).find(spec_of(x=1))
    with pytest.raises(IntegrityError, match=r"raw_dataset.*deep/rows was changed"):
        lineage.verify(bucket_store, made.ref)  # although the cache is whole
    bucket_store.bucket.filesystem.rm_file(place)
    with pytest.raises(IntegrityError, match="deep/rows is missing"):
        other_machine(bucket_store, tmp_path).find(spec_of(x=1))
    with pytest.raises(IntegrityError, match="deep/rows is missing"):
        lineage.verify(bucket_store, made.ref)


def test_a_damaged_cache_is_downloaded_again(bucket_store: Store) -> None:
    made = published(bucket_store, spec_of(x=1))
    made.file("deep/rows").write_bytes(b"rowz")
    assert bucket_store.fetch(made.ref).file("deep/rows").read_bytes() == b"rows"
    shutil.rmtree(made.folder)
    assert bucket_store.fetch(made.ref).file("other").read_bytes() == b"other"
    assert bucket_store.fetch_file(made.ref, "deep/rows").read_bytes() == b"rows"


@pytest.fixture
def weak_endpoint(s3_endpoint: str) -> Iterator[str]:
    """The same server behind one that drops If-None-Match, as rclone's S3 server does."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def weak(environ: dict[str, Any], start_response: Any) -> Any:
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, weak, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_conditional_put_is_probed(bucket_store: Store, weak_endpoint: str) -> None:
    root, endpoint = bucket_store.bucket.root, bucket_store.bucket.s3_endpoint
    assert Bucket(root, endpoint).creates_exclusively
    assert Bucket(root, endpoint).creates_exclusively
    assert not Bucket(root, weak_endpoint).creates_exclusively


class Racing(Bucket):
    """A bucket in which somebody else publishes just before our manifest arrives."""

    rivals: ClassVar[list[Callable[[], object]]] = []

    def create(self, path: str, content: bytes) -> None:
        while path.endswith(MANIFEST) and self.rivals:
            self.rivals.pop()()
        super().create(path, content)


def test_a_race_has_one_whole_winner(bucket_store: Store, tmp_path: Path) -> None:
    """Same bytes: both get the artifact. Other bytes: the loser is told, the winner's files are untouched."""
    loser = Store(Racing(bucket_store.bucket.root, bucket_store.bucket.s3_endpoint), tmp_path / "loser")
    Racing.rivals.append(lambda: published(bucket_store, spec_of(x=1)))
    assert published(loser, spec_of(x=1)).file("deep/rows").read_bytes() == b"rows"
    Racing.rivals.append(lambda: published(bucket_store, spec_of(x=2), b"winner"))
    with pytest.raises(DriftError, match="deep/rows"):
        published(loser, spec_of(x=2), b"loser")
    found = other_machine(bucket_store, tmp_path).find(spec_of(x=2))
    assert found is not None and found.file("deep/rows").read_bytes() == b"winner"


def test_a_race_on_a_weak_server_leaves_a_whole_artifact(
    bucket_store: Store, weak_endpoint: str, tmp_path: Path
) -> None:
    """Without conditional puts the last writer wins; nothing of the two is mixed."""
    last = Store(Racing(bucket_store.bucket.root, weak_endpoint), tmp_path / "last")
    Racing.rivals.append(lambda: published(bucket_store, spec_of(x=2), b"first"))
    made = published(last, spec_of(x=2), b"last")
    found = other_machine(bucket_store, tmp_path).find(spec_of(x=2))
    assert found is not None and found.ref == made.ref
    assert found.file("deep/rows").read_bytes() == b"last"


class Dying(Bucket):
    """A bucket whose client dies before the manifest."""

    def create(self, path: str, content: bytes) -> None:
        raise KeyboardInterrupt


def test_dying_between_files_and_manifest_leaves_no_artifact(bucket_store: Store, tmp_path: Path) -> None:
    dying = Store(Dying(bucket_store.bucket.root, bucket_store.bucket.s3_endpoint), tmp_path / "dying")
    with pytest.raises(KeyboardInterrupt):
        published(dying, spec_of(x=1), b"other bytes than next time")
    assert objects(bucket_store) and not [k for k in objects(bucket_store) if k.endswith(MANIFEST)]
    assert bucket_store.find(spec_of(x=1)) is None
    made = published(bucket_store, spec_of(x=1))
    assert bucket_store.fetch(made.ref).file("deep/rows").read_bytes() == b"rows"


def test_no_bucket_and_no_credentials_are_told(
    bucket_store: Store, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="no such bucket"):
        published(Store(Bucket("s3://absent-bucket/ft", s3_endpoint), tmp_path), spec_of(x=1))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match="no answer from S3"):
        published(Store(Bucket(bucket_store.bucket.root, s3_endpoint), tmp_path), spec_of(x=1))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.slow
def test_no_server_is_told(s3_bucket: str, tmp_path: Path) -> None:
    """After the retries of the S3 client, about nine seconds."""
    with pytest.raises(StorageError, match="no answer from S3"):
        published(Store(Bucket(s3_bucket, "http://127.0.0.1:9"), tmp_path), spec_of(x=1))
