"""Where the signing key is: a file, the environment, a command before an HSM or KMS; and one key after another."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from ft_pipeline.errors import IntegrityError, StorageError, UserError
from ft_pipeline.register import attest, bundle, keys
from ft_pipeline.register.artifact import open_registered, verify_seals
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline.settings import job_environment, load
from ft_pipeline_tests import lines

CLAIM = {"predicateType": attest.PREDICATE_TYPE, "text": "x" * 9000}
SIGNER = """\
import base64, sys
from pathlib import Path
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

key = load_pem_private_key(Path({key!r}).read_bytes(), None)
with Path({log!r}).open("a") as log:
    log.write(sys.argv[1] + "\\n")
if sys.argv[1] == "public":
    print(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
elif sys.argv[1] == "sign":
    {sign}
"""
HONEST = "print(base64.b64encode(key.sign(sys.stdin.buffer.read())).decode())"
"""Speaks the protocol that docs/evidence.md shows for Vault, Google and AWS."""


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Points FT_SIGNER at a script whose key no other process of ours reads; gives the settings."""

    def signer(sign: str = HONEST):
        key = tmp_path / "elsewhere.pem"
        key.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
        script = tmp_path / "signer.py"
        script.write_text(SIGNER.format(key=str(key), log=str(tmp_path / "log"), sign=sign))
        monkeypatch.setenv("FT_SIGNER", f"exec:{sys.executable} {script}")
        return load()

    return signer


def test_a_command_signs_and_only_its_public_key_is_here(home, vault, tmp_path):
    where = vault()
    envelope = attest.sign(CLAIM, keys.signing_key(where))
    assert attest.verify_statement(envelope, keys.trusted_keys(where)) == CLAIM
    assert sorted(p.name for p in where.signing_key.parent.iterdir()) == ["signing.pub"]
    assert (tmp_path / "log").read_text().split() == ["public", "sign"]
    assert envelope == attest.sign(CLAIM, keys.signing_key(where)), "Ed25519 is deterministic: same claim, same bytes"


@pytest.mark.parametrize(
    ("sign", "error", "said"),
    [
        ("print(base64.b64encode(key.sign(b'other')).decode())", IntegrityError, "no signature of its own key"),
        ("print('not base64!')", IntegrityError, "no signature of its own key"),
        ("sys.exit('permission denied on the key')", StorageError, "permission denied on the key"),
    ],
)
def test_a_command_that_signs_wrongly_is_found_at_once(home, vault, sign, error, said):
    key = keys.signing_key(vault(sign))
    with pytest.raises(error, match=said):
        attest.sign(CLAIM, key)


def test_a_command_that_is_not_there_or_has_no_key(home, monkeypatch):
    for command, error, said in (
        ("/nowhere/signer", StorageError, "FT_SIGNER"), ("echo hello", UserError, "not an Ed25519 key"),
    ):  # fmt: skip
        monkeypatch.setenv("FT_SIGNER", f"exec:{command}")
        with pytest.raises(error, match=said) as refused:
            keys.signing_key(load())
        assert refused.value.cure


def test_a_key_in_the_environment_is_in_no_file_and_in_no_job(home, monkeypatch):
    pem = CryptoSigner.generate_ed25519().private_bytes.decode()
    monkeypatch.setenv("FT_SIGNER", "env:MY_KEY")
    with pytest.raises(UserError, match="MY_KEY is not set"):
        keys.signing_key(load())
    monkeypatch.setenv("MY_KEY", pem)
    envelope = attest.sign(CLAIM, keys.signing_key(load()))
    assert attest.verify_statement(envelope, keys.trusted_keys(home)) == CLAIM
    assert not home.signing_key.exists()
    assert "MY_KEY" not in job_environment(load()), "a recipe's own functions run there"
    monkeypatch.setenv("MY_KEY", "nonsense")
    with pytest.raises(UserError, match="MY_KEY is not an Ed25519 key"):
        keys.signing_key(load())


@pytest.mark.parametrize("said", ["vault", "exec:", "env:", "kms:key"])
def test_a_signer_of_another_kind_is_refused(home, monkeypatch, said):
    monkeypatch.setenv("FT_SIGNER", said)
    with pytest.raises(UserError, match="FT_SIGNER"):
        load()


def test_one_key_after_another_from_a_file_to_a_command(home, store, catalog, vault, monkeypatch, tmp_path):
    """What docs/evidence.md says about rotation: old signatures hold while the old public key lies there, and not after."""
    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    made = lines.publish_line(store, catalog, base=lines.plain_base(store))

    def version(settings, seed=0):
        made = lines.publish_line(store, catalog, base=lines.plain_base(store), seed=seed)
        candidate = Candidate(
            recipe=find_recipe(load(), "acme/router"), adapter=made["adapter"].ref, report=made["eval_report"].ref,
            base=made["base_model"].ref, run_id="r",
        )  # fmt: skip
        return register(candidate, store=store, catalog=catalog, settings=settings)

    first = version(home)
    public = home.signing_key.with_suffix(".pub")
    (public.parent / "2026.pub").write_bytes(public.read_bytes())
    home.signing_key.unlink()
    where = replace(vault(), signing_key=home.signing_key)
    second = version(where, seed=1)
    assert made["adapter"].ref == first.adapter.ref
    ids = {open_registered(store, made.artifact.ref, where).signed_by for made in (first, second)}
    assert len(ids) == 2 and verify_seals(catalog, where) == 2
    out = tmp_path / "out.zip"
    bundle.export(second.model, out, store=store, catalog=catalog, settings=where)
    assert {Path(n).stem for n in zipfile.ZipFile(out).namelist() if n.startswith("keys/")} == ids
    (public.parent / "2026.pub").unlink()
    with pytest.raises(IntegrityError, match="signature"):
        open_registered(store, first.artifact.ref, where)
    assert open_registered(store, second.artifact.ref, where)
