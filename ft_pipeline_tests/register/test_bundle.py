"""The evidence bundle: a bare interpreter verifies it, names what was tampered with, and it says what it does not hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ft_pipeline.errors import UserError
from ft_pipeline.register import ed25519
from ft_pipeline.register.bundle import export
from ft_pipeline.register.override import overrule
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline_tests import lines

LINE = "acme/router"


def made_version(home, store, catalog, monkeypatch, *, line: str = LINE, verdict: str = "PASS"):
    from ft_pipeline import settings

    lines.recipe_file(home, line)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    made = lines.publish_line(store, catalog, base=lines.plain_base(store), line=line, verdict=verdict)
    if verdict != "PASS":
        overrule(
            made["eval_report"].ref,
            ["arithmetic"],
            line=line,
            reason="known",
            store=store,
            catalog=catalog,
            settings=home,
        )
    candidate = Candidate(
        recipe=find_recipe(settings.load(), line), adapter=made["adapter"].ref, report=made["eval_report"].ref,
        base=made["base_model"].ref, run_id="run-1",
    )  # fmt: skip
    return register(candidate, store=store, catalog=catalog, settings=home).model


@pytest.fixture
def bundle(home, store, catalog, monkeypatch, tmp_path) -> Path:
    """The unzipped bundle of a version, with a second line in the same catalog."""
    made_version(home, store, catalog, monkeypatch, line="rival/secret")
    version = made_version(home, store, catalog, monkeypatch)
    export(version, tmp_path / "out.zip", store=store, catalog=catalog, settings=home)
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        file.extractall(tmp_path / "bundle")
    return tmp_path / "bundle"


def verified(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script of the bundle in an interpreter that sees no site packages and no environment."""
    script = place / "verify.py"
    return subprocess.run(
        [sys.executable, "-I", "-S", str(script), *words], capture_output=True, text=True, cwd="/", timeout=60
    )


def test_a_bare_interpreter_verifies_it_and_says_what_is_not_there(bundle, home, tmp_path):
    ended = verified(bundle)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("VERIFIED\n") and f"{LINE}@1: evidence of" in ended.stdout
    assert re.search(
        r"not included.*adapter [0-9a-f]{12}: \d+ files, [\d,]+ bytes \(.*adapter_model.safetensors", ended.stdout
    )
    assert re.search(r"not included.*raw_dataset", ended.stdout)
    pinned = verified(bundle, str(tmp_path / "out.zip"), "--key", str(home.signing_key.with_suffix(".pub")))
    assert pinned.returncode == 0 and "compare it" not in pinned.stdout


def test_another_line_shows_by_its_hashes_alone(bundle):
    text = "".join(
        p.read_text(encoding="utf-8")
        for p in bundle.rglob("*")
        if p.is_file() and p.suffix in (".json", ".html", ".md")
    )
    assert "rival" not in text and "secret" not in text
    assert any("model" not in row for row in json.loads((bundle / "transitions.json").read_text()))


def test_the_viewer_shows_the_graph_the_gates_and_the_signatures(bundle):
    page = (bundle / "index.html").read_text(encoding="utf-8")
    assert "<svg" in page and "<script" not in page and "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    for said in (
        "raw_dataset",
        "arithmetic",
        "Signatures",
        "statement.json",
        "exact_duplicate",
        "Not included",
        f"Evidence: {LINE}@1",
    ):
        assert said in page
    for link in re.findall(r'href="([^"]+)"', page):
        assert (bundle / link).is_file()


def test_any_changed_or_added_file_is_named(bundle):
    for path in sorted(p for p in bundle.rglob("*") if p.is_file() and p.name != "verify.py"):
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        ended = verified(bundle)
        assert ended.returncode == 1 and "REFUSED" in ended.stdout and "Traceback" not in ended.stderr
        named = path.relative_to(bundle).as_posix()
        if not named.startswith(("bundle.", "keys/")):
            assert named in ended.stdout
        path.write_bytes(before)
        if named == "index.html":
            break
    (bundle / "extra.txt").write_text("x")
    assert "extra.txt is in the bundle and not in its index" in verified(bundle).stdout


def resigned(bundle: Path, home) -> None:
    """Somebody with the signing key writes the index anew: only the inner chains tell."""
    from ft_pipeline.register.attest import sign
    from ft_pipeline.register.keys import signing_key
    from ft_pipeline.store.fingerprint import canonical_json, sha256_file

    index = json.loads((bundle / "bundle.json").read_bytes())
    index["files"] = {name: sha256_file(bundle / name) for name in index["files"] if (bundle / name).is_file()}
    (bundle / "bundle.json").write_bytes(canonical_json(index))
    (bundle / "bundle.dsse.json").write_bytes(canonical_json(sign(index, signing_key(home))))


INNER = {
    "a move": ("transitions.json", '"actor": "tester"', '"actor": "someone"', "transitions.json: line"),
    "a row of the catalog": ("journal.json", 'adapter_digest\\\\":\\\\"', 'adapter_digest\\\\":\\\\"0', "journal.json: line"),
    "a seal": ("seals.json", '"envelope": "{\\\\"payload\\\\":\\\\"', '"envelope": "{\\\\"payload\\\\":\\\\"AAAA', "seals.json: seal 1"),
    "a manifest": ("manifests/raw_dataset-*.json", '"code":"t"', '"code":"u"', "manifest was changed"),
    "a file of an artifact": ("files/eval_report-*/verdicts.json", '"PASS"', '"pass"', "verdicts.json is not the file"),
    "the statement": ("files/registered_model-*/statement.json", '"sig":"', '"sig":"AAAA', "is not the file that the manifest"),
}  # fmt: skip


@pytest.mark.parametrize("what", INNER)
def test_even_the_owner_of_the_key_cannot_change_one_part_alone(bundle, home, what):
    pattern, before, after, said = INNER[what]
    (path,) = bundle.glob(pattern)
    text = path.read_text(encoding="utf-8")
    before, after = before.replace("\\\\", "\\"), after.replace("\\\\", "\\")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    resigned(bundle, home)
    ended = verified(bundle)
    assert ended.returncode == 1 and said in ended.stdout, ended.stdout


def test_a_lost_manifest_and_another_key_are_refused(bundle, home, tmp_path):
    other = tmp_path / "other.pub"
    other.write_bytes(
        Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    assert "signature does not hold" in verified(bundle, "--key", str(other)).stdout
    next(bundle.glob("manifests/raw_dataset-*.json")).unlink()
    assert "cannot be read" in verified(bundle).stdout
    resigned(bundle, home)
    assert "its raw" in verified(bundle).stdout


def test_a_cut_zip_is_refused(bundle, tmp_path):
    whole = (tmp_path / "out.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    ended = verified(bundle, str(tmp_path / "cut.zip"))
    assert ended.returncode == 1 and "REFUSED" in ended.stdout and "Traceback" not in ended.stderr


def test_weights_go_in_on_request_and_an_override_with_its_signature(
    home, store, catalog, monkeypatch, tmp_path, typed
):
    version = made_version(home, store, catalog, monkeypatch, verdict="FAIL")
    ended = typed("export-evidence", version.label, str(tmp_path / "w.zip"), "--with-weights", "--json")
    assert ended.code == 0, ended.err
    assert not any("adapter " in said for said in json.loads(ended.out)[0]["not_included"])
    with zipfile.ZipFile(tmp_path / "w.zip") as file:
        assert any(name.endswith("adapter_model.safetensors") for name in file.namelist())
        file.extractall(tmp_path / "w")
    assert verified(tmp_path / "w").returncode == 0
    assert "known" in (tmp_path / "w" / "index.html").read_text() or list(
        (tmp_path / "w").glob("files/override-*/override.json")
    )
    with pytest.raises(UserError, match="exists"):
        export(version, tmp_path / "w.zip", store=store, catalog=catalog, settings=home)
    shutil.rmtree(tmp_path / "w")


@hypothesis_settings(max_examples=25)
@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=80),
    place=st.integers(0, 95),
    bit=st.integers(0, 7),
)
def test_plain_python_agrees_with_the_library_on_signatures(seed, message, place, bit):
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    assert ed25519.ed25519_holds(public, message, signature)
    both = bytearray(public + signature)
    both[place] ^= 1 << bit
    assert not ed25519.ed25519_holds(bytes(both[:32]), message, bytes(both[32:]))
    assert not ed25519.ed25519_holds(public, message + b"x", signature)
    assert not ed25519.ed25519_holds(public, message, signature[:32] + bytes(32))


def test_the_vectors_of_rfc_8032_hold():
    for public, message, signature in VECTORS:
        assert ed25519.ed25519_holds(*(bytes.fromhex(part) for part in (public, message, signature)))


VECTORS = (
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
)  # fmt: skip
