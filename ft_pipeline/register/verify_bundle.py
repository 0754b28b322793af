"""Verifies an evidence bundle with Python alone: `python -I verify.py [BUNDLE.zip or folder] [--key PUBLIC.pem]`.

Needs no other package and no network. Without --key it says who signed; whether that is whom you expect, you must compare yourself.
Ends with 0 when everything holds, else with 1 and a line for everything that does not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

from ft_pipeline.register.ed25519 import ed25519_holds, public_key

GENESIS = "0" * 64
INTOTO = "application/vnd.in-toto+json"


def canonical(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Broken(Exception):
    """Something that is not what was signed."""


class Bundle:
    """A zip or a folder, its keys and what was found wrong."""

    def __init__(self, place: Path, pinned) -> None:
        self.zip = zipfile.ZipFile(place) if place.is_file() else None
        self.place = place
        held = {n: public_key(self.read(n)) for n in self.names() if n.startswith("keys/")}
        self.keys = [public_key(pinned.read_bytes())] if pinned else list(held.values())

    def names(self) -> list:
        if self.zip:
            return [n for n in self.zip.namelist() if not n.endswith("/")]
        return [p.relative_to(self.place).as_posix() for p in self.place.rglob("*") if p.is_file()]

    def read(self, name: str) -> bytes:
        try:
            return self.zip.read(name) if self.zip else (self.place / name).read_bytes()
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise Broken(f"{name} cannot be read: {error}") from None

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        try:
            with self.zip.open(name) if self.zip else (self.place / name).open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise Broken(f"{name} cannot be read: {error}") from None
        return digest.hexdigest()

    def json(self, name: str):
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise Broken(f"{name} is not JSON: {error}") from None

    def signed(self, envelope: dict, name: str) -> bytes:
        """The payload of a DSSE envelope, after one of its signatures held under a key of ours."""
        try:
            kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"], validate=True)
            signatures = [base64.b64decode(s["sig"], validate=True) for s in envelope["signatures"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Broken(f"{name} is not a DSSE envelope: {error!r}") from None
        message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
        if not any(ed25519_holds(key, message, s) for key in self.keys for s in signatures):
            raise Broken(f"{name}: the signature does not hold under {len(self.keys)} known keys")
        return payload


def check_index(bundle: Bundle) -> dict:
    """bundle.json is signed and names every file with its hash."""
    if bundle.signed(bundle.json("bundle.dsse.json"), "bundle.dsse.json") != bundle.read("bundle.json"):
        raise Broken("bundle.json is not what was signed in bundle.dsse.json")
    index = bundle.json("bundle.json")
    known = {*index["files"], "bundle.json", "bundle.dsse.json"}
    if extra := sorted(n for n in bundle.names() if n not in known and "__pycache__" not in n):
        raise Broken(f"{extra[0]} is in the bundle and not in its index")
    for name, digest in index["files"].items():
        if bundle.sha256(name) != digest:
            raise Broken(f"{name} was changed: its sha256 is not the one that was signed")
    return index


def identity(m: dict) -> dict:
    files = {n: [e["logical"]] if e["logical"] else [e["sha256"], e["size"]] for n, e in m["files"].items()}
    named = ("kind", "fingerprint", "config", "code", "parents", "counts")
    return {"format": m["format"], "files": files, **{n: m[n] for n in named}}


def check_manifests(bundle: Bundle, index: dict) -> dict:
    """Each manifest is sealed, its digest follows from its content, its place from its inputs, and every parent is there."""
    found = {}
    for name in (n for n in index["files"] if n.startswith("manifests/")):
        m = bundle.json(name)
        seal, digest = m.pop("seal"), m.pop("digest")
        parents = {role: [r["kind"], r["digest"]] for role, r in m["parents"].items()}
        inputs = {n: m[n] for n in ("format", "kind", "config", "code")} | {"parents": parents}
        if digest != sha(canonical(identity(m))) or seal != sha(canonical({**m, "digest": digest})):
            raise Broken(f"{name}: the manifest was changed, its digest does not follow from what it says")
        if m["fingerprint"] != sha(canonical(inputs)):
            raise Broken(f"{name}: the fingerprint does not follow from the inputs")
        found[digest] = m
    for digest, m in found.items():
        for role, parent in m["parents"].items():
            if parent["digest"] not in found:
                raise Broken(f"{m['kind']} {digest[:12]}: its {role} {parent['digest'][:12]} is not in the bundle")
    return found


def check_files(index: dict, manifests: dict) -> int:
    """Every file of an artifact in the bundle is the one that its manifest names."""
    count = 0
    for name in (n for n in index["files"] if n.startswith("files/")):
        _, folder, inner = name.split("/", 2)
        digest = folder.rpartition("-")[2]
        entry = manifests.get(digest, {"files": {}})["files"].get(inner)
        if entry is None or entry["sha256"] != index["files"][name]:
            raise Broken(f"{name} is not the file that the manifest of {folder} names")
        count += 1
    return count


def ancestors(manifests: dict, roots: list) -> set:
    seen, todo = set(), list(roots)
    while todo:
        digest = todo.pop()
        if digest not in seen:
            seen.add(digest)
            todo += [p["digest"] for p in manifests[digest]["parents"].values()]
    return seen


def check_statement(bundle: Bundle, index: dict, manifests: dict) -> None:
    """What was signed at registration is exactly the chain that is here."""
    root = index["registered"]
    folder = f"files/registered_model-{root}"
    claim = json.loads(bundle.signed(bundle.json(f"{folder}/statement.json"), "statement.json"))
    parents = manifests[root]["parents"]
    chain = ancestors(manifests, [parents[r]["digest"] for r in ("adapter", "report", "override") if r in parents])
    named = [*claim["subject"], *claim["predicate"]["buildDefinition"]["resolvedDependencies"]]
    signed = {r["digest"]["sha256"] for r in named}
    if signed != chain or claim["subject"][0]["digest"]["sha256"] != parents["adapter"]["digest"]:
        raise Broken(f"statement.json: the chain is not what was signed: {sorted(signed ^ chain)[:3]}")
    if claim["subject"][0]["name"] != index["model"]:
        raise Broken(f"statement.json is about {claim['subject'][0]['name']}, the bundle about {index['model']}")
    for digest, m in manifests.items():
        if m["kind"] == "override":
            said = json.loads(
                bundle.signed(bundle.json(f"files/override-{digest}/override.json"), f"override {digest[:12]}")
            )
            if said["subject"][0]["digest"]["sha256"] != m["parents"]["report"]["digest"]:
                raise Broken(f"override {digest[:12]} was signed for another report")


def check_transitions(bundle: Bundle) -> int:
    """The chain of stages: hashes of every line, contents of this model line's."""
    before, own = GENESIS, 0
    for number, row in enumerate(bundle.json("transitions.json"), start=1):
        if row["seq"] != number or row["previous_sha256"] != before:
            raise Broken(f"transitions.json: line {number} does not follow the one before it")
        before = row["sha256"]
        if "model" not in row:  # of another model line: its hash alone
            continue
        names = (
            "previous_sha256",
            "seq",
            "model",
            "from_stage",
            "to_stage",
            "report_id",
            "actor",
            "approved_by",
            "reason",
            "created_at",
        )
        if sha(canonical([row[n] for n in names])) != row["sha256"]:
            raise Broken(
                f"transitions.json: line {number} ({row['model']}, {row['from_stage']} > {row['to_stage']}) was changed"
            )
        own += 1
    return own


def check_approvals(bundle: Bundle, index: dict) -> int:
    """Whoever asked for production, signed, is the actor of the move that names the request."""
    names = [n for n in index["files"] if n.startswith("approvals/")]
    for name in names:
        said = json.loads(bundle.signed(bundle.json(name), name))["predicate"]
        for row in bundle.json("transitions.json"):
            asked = f"request:{name.split('/')[1][:12]}" in row.get("reason", "")
            if asked and (row["model"], row["actor"]) != (said["model"], said["actor"]):
                raise Broken(
                    f"{name}: {said['actor']} asked for {said['model']}, line {row['seq']} says {row['actor']}"
                )
    return len(names)


def check_journal(bundle: Bundle) -> tuple:
    """The journal of the catalog's rows, and the signatures over it."""
    before, hashes, own = GENESIS, {}, {}
    names = ("seq", "table_name", "row_key", "content", "created_at", "previous_sha256")
    for number, line in enumerate(bundle.json("journal.json"), start=1):
        if line["seq"] != number or line["previous_sha256"] != before:
            raise Broken(f"journal.json: line {number} does not follow the one before it")
        if "table_name" in line and sha(canonical([line[n] for n in names])) != line["sha256"]:
            raise Broken(f"journal.json: line {number} (table {line['table_name']}) was changed")
        if "table_name" in line:
            own[line["table_name"], line["row_key"]] = line["content"]
        before = hashes[number] = line["sha256"]
    envelopes = [""]
    for number, seal in enumerate(bundle.json("seals.json"), start=1):
        claim = json.loads(bundle.signed(json.loads(seal["envelope"]), f"seals.json: seal {number}"))
        said, covered = claim["predicate"], claim["subject"][0]["digest"]["sha256"]
        after = said["previous_sha256"] == sha(envelopes[-1].encode())
        if said["seq"] != number or not after or hashes.get(said["journal_seq"]) != covered:
            raise Broken(f"seals.json: seal {number} is not over line {said['journal_seq']} of this journal")
        envelopes.append(seal["envelope"])
    return len(hashes), len(envelopes) - 1, own


def check_rows(bundle: Bundle, index: dict, own: dict) -> None:
    """The version, its history and its reports as the journal, under its seals, has them."""
    for row in bundle.json("transitions.json"):
        if "model" in row:
            recorded = json.loads(own.get(("transitions", canonical([row["seq"]]).decode())) or "{}")
            if recorded.get("sha256") != row["sha256"]:
                raise Broken(f"transitions.json: line {row['seq']} is not in the signed journal")
    version = next(
        (
            json.loads(c)
            for (t, _), c in own.items()
            if t == "model_versions" and c and index["model"] == "{tenant}/{name}@{version}".format(**json.loads(c))
        ),
        None,
    )
    if version is None:
        raise Broken(f"journal.json: {index['model']} is not in it")


def main(argv: list) -> int:
    pinned = Path(argv[argv.index("--key") + 1]) if "--key" in argv else None
    given = [a for i, a in enumerate(argv) if not a.startswith("--") and (i == 0 or argv[i - 1] != "--key")]
    say = lambda text: sys.stdout.write(text + "\n")  # noqa: E731
    try:
        bundle = Bundle(Path(given[0]) if given else Path(__file__).resolve().parent, pinned)
        index = check_index(bundle)
        say(f"{index['model']}: evidence of {index['made_at']}")
        say(f"index: signed, {len(index['files'])} files as they were signed, none added")
        manifests = check_manifests(bundle, index)
        say(
            f"chain: {len(manifests)} manifests follow from their content and name each other; {check_files(index, manifests)} files of theirs"
        )
        check_statement(bundle, index, manifests)
        say("statement: signed, and about exactly this chain")
        moves, asked = check_transitions(bundle), check_approvals(bundle, index)
        say(f"stages: {moves} moves of this line in an unbroken chain, {asked} signed requests for production")
        lines, seals, own = check_journal(bundle)
        check_rows(bundle, index, own)
        say(f"catalog: {lines} lines of the journal in an unbroken chain under {seals} signed seals")
    except (
        Broken,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OSError,
        zipfile.BadZipFile,
        RecursionError,
    ) as error:
        said = str(error) if isinstance(error, Broken) else f"the bundle cannot be read: {error!r}"
        say(f"REFUSED: {said}")
        return 1
    for key in bundle.keys:
        say(
            f"signed with the Ed25519 key {sha(key)}"
            + ("" if pinned else "  <- compare it with one that you trust (or give --key)")
        )
    for said in index["not_included"]:
        say(f"not included, so not verified here: {said}")
    say("VERIFIED")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
