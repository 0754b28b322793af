"""Signs the head of the catalog's journal: whoever owns the database can make a chain of hashes anew, but not a signature.

Each seal names the one before it, so that the newest signature covers them all. What was written after the newest seal is
covered by the chain alone; every registration, deployment, promotion, override and takedown ends with a seal.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from ft_pipeline.errors import IntegrityError
from ft_pipeline.register.attest import STATEMENT_TYPE, sign, verify_statement
from ft_pipeline.register.keys import signing_key, trusted_keys
from ft_pipeline.settings import Settings
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.catalog_journal import CURE
from ft_pipeline.store.fingerprint import canonical_json, sha256_bytes

PREDICATE_TYPE = "urn:ft-pipeline:journal:v1"


def sign_journal(catalog: Catalog, settings: Settings) -> None:
    """Adds a seal over the newest line of the journal; nothing when that is sealed."""
    key = signing_key(settings)

    def envelope(facts: dict[str, Any]) -> str:
        return canonical_json(sign(_statement(facts), key)).decode()

    catalog.add_seal(envelope)


def verify_journal(catalog: Catalog, settings: Settings) -> int:
    """The number of seals, after each one was compared with its line of the journal and the newest signature held. Raises IntegrityError."""
    found = catalog.seals()
    before = ""
    for number, row in enumerate(found, start=1):
        claim = _claim(row, catalog, before, number=number)
        before = row["envelope"]
        if number == len(found):
            _require_signed(row, claim, settings)
    return len(found)


def _statement(facts: dict[str, Any]) -> dict[str, Any]:
    said = {name: facts[name] for name in ("seq", "journal_seq", "created_at")}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "catalog journal", "digest": {"sha256": facts["journal_sha256"]}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**said, "previous_sha256": sha256_bytes(facts["previous"].encode())},
    }


def _claim(row: dict[str, Any], catalog: Catalog, before: str, *, number: int) -> dict[str, Any]:
    """What the seal must say. Raises IntegrityError when the row or the journal says anything else."""
    claim = _statement({**row, "previous": before})
    try:
        payload = json.loads(_payload(row["envelope"]))
    except (ValueError, KeyError, TypeError):
        payload = None
    if row["seq"] != number or payload != claim:
        raise _broken(row, "does not say what was signed")
    if catalog.journal_sha256(row["journal_seq"]) != row["journal_sha256"]:
        raise _broken(row, f"is over line {row['journal_seq']} of the journal, which was another one then")
    return claim


def _payload(envelope: str) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"], validate=True)


def _require_signed(row: dict[str, Any], claim: dict[str, Any], settings: Settings) -> None:
    keys = trusted_keys(settings)
    try:
        verify_statement(json.loads(row["envelope"]), keys, predicate_type=claim["predicateType"])
    except IntegrityError as error:
        raise _broken(row, f"does not hold: {error.what}") from None


def _broken(row: dict[str, Any], said: str) -> IntegrityError:
    return IntegrityError(
        f"catalog table seals, row {row['seq']}: the signature over the journal {said}",
        why="What the catalog says of versions, approvals and deployments was signed with that seal.",
        cure=CURE,
    )
