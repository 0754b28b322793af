"""Signatures: made once, deterministic, broken by any change, refused under another key."""

from __future__ import annotations

import base64
import copy
import json
import stat

import pytest

from ft_pipeline.errors import IntegrityError, UserError
from ft_pipeline.register import attest, keys
from ft_pipeline.register.artifact import STATEMENT, open_registered
from ft_pipeline.register.chain import distinct, text_tree, walk
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline_tests import lines


@pytest.fixture
def claim(store, catalog):
    made = lines.publish_line(store, catalog, base=lines.plain_base(store))
    links = distinct(walk(store, "adapter", made["adapter"].ref))
    return attest.statement("acme/router@1", links, {"recipe_sha256": "0" * 64, "method": "sft"})


def test_a_key_is_made_once_and_only_its_owner_reads_it(home, claim):
    first = attest.sign(claim, keys.signing_key(home))
    assert first == attest.sign(claim, keys.signing_key(home))
    assert stat.S_IMODE(home.signing_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.signing_key.parent.stat().st_mode) == 0o700
    assert attest.verify_statement(first, keys.trusted_keys(home)) == claim


def test_the_statement_is_in_toto_v1_with_the_whole_chain(claim, store):
    assert claim["_type"] == "https://in-toto.io/Statement/v1"
    assert claim["predicateType"] == "https://slsa.dev/provenance/v1"
    assert claim["subject"][0]["name"] == "acme/router@1"
    names = {d["name"] for d in claim["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert names == {"base", "checkpoints", "curated", "raw", "shards"}


@pytest.mark.parametrize("field", ["payload", "sig", "payloadType"])
def test_any_change_breaks_the_signature(home, claim, field):
    key = keys.signing_key(home)
    envelope = copy.deepcopy(attest.sign(claim, key))
    if field == "payload":
        altered = claim | {"subject": [{"name": "acme/router@2", "digest": {"sha256": "f" * 64}}]}
        envelope["payload"] = base64.b64encode(json.dumps(altered).encode()).decode()
    elif field == "sig":
        raw = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
        raw[0] ^= 1
        envelope["signatures"][0]["sig"] = base64.b64encode(bytes(raw)).decode()
    else:
        envelope["payloadType"] = "text/plain"
    with pytest.raises(IntegrityError, match="signature"):
        attest.verify_statement(envelope, key.public_key)


def test_another_key_is_refused_and_a_kept_public_key_is_enough(home, claim):
    envelope = attest.sign(claim, keys.signing_key(home))
    old_public = home.signing_key.with_suffix(".pub").read_bytes()
    home.signing_key.unlink()
    keys.signing_key(home)
    with pytest.raises(IntegrityError, match="signature"):
        attest.verify_statement(envelope, keys.trusted_keys(home))
    (home.signing_key.parent / "2026.pub").write_bytes(old_public)
    assert attest.verify_statement(envelope, keys.trusted_keys(home)) == claim


def test_no_key_at_all_verifies_nothing(claim, home):
    envelope = attest.sign(claim, keys.signing_key(home))
    with pytest.raises(IntegrityError, match="no public key"):
        attest.verify_statement(envelope, [])


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_says_what_to_do(home, content):
    home.signing_key.parent.mkdir(parents=True)
    home.signing_key.write_bytes(content)
    with pytest.raises(UserError, match="not an Ed25519 key") as refused:
        keys.signing_key(home)
    assert "FT_SIGNING_KEY" in refused.value.cure


def test_a_key_of_another_kind_is_refused(home):
    from securesystemslib.signer import CryptoSigner

    home.signing_key.parent.mkdir(parents=True)
    home.signing_key.write_bytes(CryptoSigner.generate_ecdsa().private_bytes)
    with pytest.raises(UserError, match="holds a EC"):
        keys.signing_key(home)


@pytest.fixture
def registered(home, store, catalog, monkeypatch):
    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    from ft_pipeline import settings

    made = lines.publish_line(store, catalog, base=lines.plain_base(store))
    candidate = Candidate(
        recipe=find_recipe(settings.load(), "acme/router"),
        adapter=made["adapter"].ref,
        report=made["eval_report"].ref,
        base=made["base_model"].ref,
        run_id="run-1",
    )
    return register(candidate, store=store, catalog=catalog, settings=home), made


def test_a_registered_model_verifies_down_to_the_raw_bytes(home, store, registered):
    outcome, made = registered
    opened = open_registered(store, outcome.artifact.ref, home)
    assert (opened.model, opened.adapter) == ("acme/router@1", made["adapter"].ref)
    assert "raw (raw_dataset)" in text_tree(outcome.adapter)


@pytest.mark.parametrize(
    "asset", ["raw_dataset", "curated_dataset", "packed_shards", "checkpoints", "adapter", "eval_report"]
)
def test_a_lost_ancestor_is_named(home, store, registered, asset):
    outcome, made = registered
    (made[asset].folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=asset):
        open_registered(store, outcome.artifact.ref, home)


def test_a_changed_statement_is_refused(home, store, registered):
    outcome, _ = registered
    path = outcome.artifact.folder / STATEMENT
    path.write_bytes(path.read_bytes().replace(b'"sig":"', b'"sig":"A'))
    with pytest.raises(IntegrityError, match=STATEMENT):
        attest.verify_registered(store, outcome.artifact.ref, settings=home)
