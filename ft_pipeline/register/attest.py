"""Signs and verifies what a model was made from: an in-toto Statement v1 (SLSA provenance v1) in a DSSE envelope, Ed25519."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer

from ft_pipeline.errors import IntegrityError
from ft_pipeline.register.artifact import STATEMENT
from ft_pipeline.register.chain import Link, distinct, walk
from ft_pipeline.register.keys import trusted_keys
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.fingerprint import canonical_json
from ft_pipeline.store.manifest import Ref

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:ft-pipeline:finetune:v1"
BUILDER = "urn:ft-pipeline:builder:v1"
ROOTS = ("adapter", "report", "override")
"""Parents of a registered model whose whole ancestry is signed; an override only where a person overruled the report."""


def statement(subject: str, links: Iterable[Link], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The in-toto statement that `subject` (`tenant/model@N`) is the first link and was made from the others.

    Holds no time and no run id, so the same chain gives the same bytes (SLSA v1 wants neither).
    """
    adapter, *ancestors = links
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject, "digest": {"sha256": adapter.ref.digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": dict(parameters),
                "resolvedDependencies": [
                    {"name": link.role, "uri": f"ft:{link.ref.path}", "digest": {"sha256": link.ref.digest}}
                    for link in ancestors
                ],
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }


def sign(claim: Mapping[str, Any], key: Signer) -> dict[str, Any]:
    """The DSSE envelope of a statement as JSON values. Ed25519 is deterministic: same claim and key, same envelope."""
    envelope = Envelope(canonical_json(claim), PAYLOAD_TYPE, {})
    envelope.sign(key)
    return envelope.to_dict()


def verify_statement(
    envelope: Mapping[str, Any], keys: Key | Iterable[Key], *, predicate_type: str = PREDICATE_TYPE
) -> dict[str, Any]:
    """The statement in an envelope that one of the keys signed. Raises IntegrityError on any change or another signer."""
    trusted: list[Key] = [keys] if isinstance(keys, Key) else list(keys)
    try:
        parsed = Envelope.from_dict(json.loads(json.dumps(envelope)))
        if not trusted:
            raise VerificationError("there is no public key to verify with")
        parsed.verify(trusted, 1)
        claim = json.loads(parsed.payload)
    except (VerificationError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the signature of the statement does not hold: {error}",
            why="The statement was changed after it was signed, or another key signed it.",
            cure="restore the registered model, or put the public key of the signer beside the signing key as NAME.pub",
        ) from None
    if parsed.payload_type != PAYLOAD_TYPE or claim.get("predicateType") != predicate_type:
        raise IntegrityError(f"the envelope holds {claim.get('predicateType')!r}, not {predicate_type}")
    return claim


def claimed(claim: Mapping[str, Any]) -> dict[str, str]:
    """Everything a statement vouches for, the subject first: digest -> name."""
    resources = [*claim["subject"], *claim["predicate"]["buildDefinition"]["resolvedDependencies"]]
    return {r["digest"]["sha256"]: r["name"] for r in resources}


def verify_registered(store: Store, ref: Ref, *, settings: Settings) -> str:
    """The id of the key that signed a registered model, after its signature and its chain held. Raises IntegrityError."""
    return verified_statement(store, ref, settings=settings)[1]


def verified_statement(store: Store, ref: Ref, *, settings: Settings) -> tuple[dict[str, Any], str]:
    """The statement of a registered model and the id of its signer.

    Walks every manifest to the raw bytes and compares the chain with what was signed, both ways. Re-hashes the files of the
    registered model only: `store.fetch` re-hashes those of an artifact when it is used. Raises IntegrityError.
    """
    artifact = store.fetch(ref)
    envelope = json.loads(artifact.file(STATEMENT).read_bytes())
    claim = verify_statement(envelope, trusted_keys(settings))
    parents = artifact.manifest.parents
    links = distinct(*(walk(store, role, parents[role]) for role in ROOTS if role in parents))
    found = [link.ref.digest for link in links]
    signed = list(claimed(claim))
    if found[0] != signed[0] or set(found) != set(signed):
        odd = sorted({*found} ^ {*signed})
        raise IntegrityError(
            f"the chain of {claim['subject'][0]['name']} is not what was signed: {', '.join(d[:12] for d in odd)}",
            why="An ancestor was added, removed or replaced after the model was signed.",
            cure="restore the store from a backup, or register the model again",
        )
    return claim, envelope["signatures"][0]["keyid"]
