"""Rows of files and uploads, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading

import pytest

from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.store.catalog_database import now, open_database
from ft_pipeline.store.platform.files import NewFile, dataset_uri
from ft_pipeline.store.platform.open import Records
from ft_pipeline.store.platform.tables import files
from ft_pipeline.store.platform.uploads import NewUpload, Part

FUTURE, PAST = "2100-01-01T00:00:00.000000+00:00", "2020-01-01T00:00:00.000000+00:00"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def records(request: pytest.FixtureRequest, tmp_path):
    url = (
        f"sqlite:///{tmp_path / 'catalog.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )
    opened = Records(open_database(url).engine)
    for tenant in ("acme", "other"):
        opened.add_tenant(tenant, actor="tester")
    yield opened
    opened.close()


def file(number: int, tenant: str = "acme", **changes: object) -> NewFile:
    values = {
        "id": f"file-{number:024x}", "tenant": tenant, "blob_sha256": f"{number:064x}", "bytes": 100, "filename": "a.jsonl",
        "purpose": "fine-tune",
    }  # fmt: skip
    return NewFile(**{**values, **changes})


def anything(_stored: int) -> None:
    """Room for everything."""


def test_names_order_isolation_and_expiry(records):
    made = [records.add_file(file(number), actor="acme/ci", room=anything) for number in range(3)]
    records.add_file(file(9, "other"), actor="other/ci", room=anything)
    assert [row.id for row in records.find_files(tenant="acme", limit=9)] == [row.id for row in reversed(made)]
    page = records.find_files(tenant="acme", after=made[0].id, limit=1, ascending=True)
    assert [row.id for row in page] == [made[1].id]
    assert dataset_uri(made[0]) == f"blob://{0:064x}"
    for file_id in (f"file-{9:024x}", "file-\x00", "\ud800", "x" * 100, ""):
        with pytest.raises(NotFoundError):
            records.file(file_id, tenant="acme")
    assert records.announced_bytes("acme") == 300
    records.delete_file(made[0].id, tenant="acme", actor="acme/ci")
    assert records.announced_bytes("acme") == 200
    assert records.validated(made[1].id, "processed", report={"rows": 1, "told": "\ud800 \x00"})
    assert not records.validated(made[1].id, "error", report=None)
    assert records.file(made[1].id, tenant="acme").report["rows"] == 1
    assert records.verify_audit()[0] >= 5


def test_room_is_asked_inside_the_transaction(records):
    """Eight at once, room for three: three."""

    def room(stored: int) -> None:
        if stored + 100 > 300:
            raise UserError("full")

    refused = []

    def add(number: int) -> None:
        try:
            records.add_file(file(number), actor="acme/ci", room=room)
        except UserError:
            refused.append(number)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(refused), len(records.find_files(tenant="acme", limit=99))) == (5, 3)


def test_an_upload_becomes_one_file(records):
    new = NewUpload(
        id=f"upload_{1:024x}",
        tenant="acme",
        filename="a",
        purpose="fine-tune",
        mime_type="x",
        bytes=100,
        expires_at=FUTURE,
    )
    records.add_upload(new, actor="acme/ci", room=anything)
    assert records.announced_bytes("acme") == 100
    part = Part(id=f"part_{1:024x}", upload_id=new.id, bytes=60, sha256="0" * 64, created_at=now())
    records.add_part(part, tenant="acme", limit=100)
    with pytest.raises(UserError, match="120 bytes, 100"):
        records.add_part(Part(**{**{n: getattr(part, n) for n in Part.__dataclass_fields__}, "id": "p2"}), tenant="acme", limit=100)  # fmt: skip
    with pytest.raises(NotFoundError):
        records.add_part(part, tenant="other", limit=100)
    first = records.add_file(file(1), actor="acme/ci", room=anything, upload_id=new.id)
    assert records.add_file(file(2), actor="acme/ci", room=anything, upload_id=new.id) is None
    assert records.upload(new.id, tenant="acme").file_id == first.id
    assert records.announced_bytes("acme") == 100
    assert records.ended_uploads() == [new.id]
    records.forget_parts(new.id, lambda: None)
    assert records.ended_uploads() == []


def test_a_blob_is_released_only_when_nobody_names_it(records):
    shared = {"blob_sha256": "5" * 64}
    records.add_file(file(1, **shared), actor="a", room=anything)
    records.add_file(file(2, "other", **shared), actor="a", room=anything)
    taken: list[str] = []
    records.delete_file(f"file-{1:024x}", tenant="acme", actor="a")
    assert not records.release_blob("5" * 64, lambda: taken.append("x"))
    records.delete_file(f"file-{2:024x}", tenant="other", actor="a")
    assert records.release_blob("5" * 64, lambda: taken.append("x"))
    assert taken == ["x"]
    records.add_file(file(3, expires_at=FUTURE, blob_sha256="6" * 64), actor="a", room=anything)
    assert records.uses_blob("6" * 64)
    with records.write() as db:
        db.execute(files.update().values(expires_at=PAST))
    assert not records.uses_blob("6" * 64)
