"""Digests: equal values give equal digests, any difference another one, and a manifest survives its own bytes only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.errors import IntegrityError
from ft_pipeline.store.fingerprint import canonical_json, code_digest, sha256_json, sha256_rows
from ft_pipeline.store.manifest import FileEntry, Manifest, Ref, Spec, parse_manifest

hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
refs = st.builds(Ref, kind=st.sampled_from(["raw_dataset", "base_model"]), fingerprint=hexes, digest=hexes)
specs = st.builds(
    Spec,
    kind=st.just("curated_dataset"),
    config=st.dictionaries(st.text(), values, max_size=4),
    parents=st.dictionaries(st.text(min_size=1), refs, max_size=3),
    code=hexes,
)
files = st.dictionaries(
    st.text("abc.", min_size=3, max_size=9),
    st.builds(FileEntry, sha256=hexes, size=st.integers(0, 2**50), logical=st.none() | hexes),
    min_size=1,
    max_size=4,
)


def manifest_of(
    spec: Spec, entries: dict[str, FileEntry], *, created_at: str = "2026-11-25T00:00:00+00:00"
) -> Manifest:
    return Manifest(
        kind=spec.kind, fingerprint=spec.fingerprint, config=spec.config, code=spec.code, parents=spec.parents,
        files=entries, counts={"rows": 3}, created_at=created_at, execution={"seconds": 1.5},
    )  # fmt: skip


@given(values)
def test_canonical_json_is_one_to_one(value: object) -> None:
    encoded = canonical_json(value)
    assert encoded.isascii()
    assert canonical_json(json.loads(encoded)) == encoded


@given(st.dictionaries(st.text(), values, min_size=2, max_size=5))
def test_key_order_does_not_count(value: dict[str, object]) -> None:
    assert sha256_json(value) == sha256_json(dict(reversed(list(value.items()))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, lambda: 0, b"x", Path()])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(value)


@given(st.lists(values, max_size=5), st.lists(values, max_size=5))
def test_rows_and_their_order_count(one: list[object], other: list[object]) -> None:
    same = [canonical_json(r) for r in one] == [canonical_json(r) for r in other]
    assert (sha256_rows(one) == sha256_rows(other)) == same


@given(specs, files)
def test_a_manifest_survives_its_bytes(spec: Spec, entries: dict[str, FileEntry]) -> None:
    entries.pop("..", None)
    made = manifest_of(spec, entries)
    read = parse_manifest(made.to_bytes(), origin="here")
    assert read.digest == made.digest and read.to_bytes() == made.to_bytes()
    assert read.ref == made.ref and dict(read.parents) == dict(made.parents)


@given(specs, st.data())
def test_every_flipped_bit_of_a_manifest_is_refused(spec: Spec, data: st.DataObject) -> None:
    whole = manifest_of(spec, {"rows.jsonl": FileEntry(sha256="a" * 64, size=3)}).to_bytes()
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IntegrityError, match="here"):
        parse_manifest(bytes(broken), origin="here")


@given(st.binary(max_size=200))
def test_noise_is_no_manifest(noise: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_manifest(noise, origin="here")


def test_time_and_execution_are_no_identity_but_sealed() -> None:
    spec = Spec(kind="raw_dataset", config={}, parents={}, code="c" * 64)
    entries = {"rows": FileEntry(sha256="a" * 64, size=3)}
    now, later = manifest_of(spec, entries), manifest_of(spec, entries, created_at="2027-01-01T00:00:00+00:00")
    assert now.digest == later.digest
    with pytest.raises(IntegrityError):
        parse_manifest(now.to_bytes().replace(b"2026-11-25", b"2025-11-25"), origin="here")


def test_parquet_counts_by_its_rows_not_its_bytes() -> None:
    spec = Spec(kind="raw_dataset", config={}, parents={}, code="c" * 64)
    one = manifest_of(spec, {"rows": FileEntry(sha256="a" * 64, size=3, logical="f" * 64)})
    two = manifest_of(spec, {"rows": FileEntry(sha256="b" * 64, size=4, logical="f" * 64)})
    assert one.digest == two.digest
    assert one.content_sha256 != two.content_sha256


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", "manifest.json", "a\\b", ""])
def test_a_forged_manifest_cannot_leave_its_folder(name: str) -> None:
    spec = Spec(kind="raw_dataset", config={}, parents={}, code="c" * 64)
    with pytest.raises(IntegrityError, match="not a file below its folder"):
        parse_manifest(manifest_of(spec, {name: FileEntry(sha256="a" * 64, size=3)}).to_bytes(), origin="here")


def test_a_forged_fingerprint_is_refused() -> None:
    spec = Spec(kind="raw_dataset", config={"x": 1}, parents={}, code="c" * 64)
    other = Spec(kind="raw_dataset", config={"x": 2}, parents={}, code="c" * 64)
    forged = manifest_of(spec, {"rows": FileEntry(sha256="a" * 64, size=3)})
    object.__setattr__(forged, "fingerprint", other.fingerprint)
    with pytest.raises(IntegrityError, match="its inputs give"):
        parse_manifest(forged.to_bytes(), origin="here")


def test_comments_and_layout_are_no_code(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        (tmp_path / "x.py").write_text(text)
        return code_digest(tmp_path / "x.py")

    assert digest('"""Doc."""\nx = 1\n') == digest("# why\n\nx  =  1  # how\n")
    assert digest("x = 1\n") != digest("x = 2\n")
    assert digest("x = 'a'\n") != digest("x = 'b'\n")
    assert digest("if a:\n    b\nc\n") != digest("if a:\n    b\n    c\n")
    assert digest("def f():\n    '''Doc.'''\n    return 1\n") == digest("def f():\n    '''Other.'''\n    return 1\n")
    assert digest("f(\n    'a',\n    'b',\n)\n") == digest("f('a', 'b',)\n")
    assert digest("f(\n    'a'\n)\n") != digest("f(\n    'b'\n)\n")
    assert digest("x = 1\n-y\n") != digest("x = 1 - y\n")
    assert digest("'%d' % f()\n") != digest("'%s' % f()\n")
