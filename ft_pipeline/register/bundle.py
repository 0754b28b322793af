"""The evidence bundle of a version: a zip that an auditor verifies and reads without our system (verify_bundle.py, viewer.py).

Rows of the data are never in it, nor what another model line did: their lines of the chains are there as hashes alone.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft_pipeline.curate.artifact import CROISSANT, STATISTICS
from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.gate.artifact import FOREST, RECERTIFICATION, REPORT, VERDICTS
from ft_pipeline.register.approval import FILE as REQUEST
from ft_pipeline.register.approval import requests_of
from ft_pipeline.register.artifact import CARD, CARD_PAGE, KIND, STATEMENT, seal, verify_seals
from ft_pipeline.register.attest import sign, verify_registered
from ft_pipeline.register.chain import manifests_of
from ft_pipeline.register.keys import public_pem, signing_key, trusted_keys
from ft_pipeline.register.viewer import Shown, bundle_page
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.files import beside
from ft_pipeline.store.fingerprint import canonical_json, sha256_bytes, sha256_file
from ft_pipeline.store.manifest import Manifest, Ref

HERE = Path(__file__).parent
IMPORT = "from ft_pipeline.register.ed25519 import ed25519_holds, public_key\n"
REPORT_FILES = (VERDICTS, REPORT, FOREST, RECERTIFICATION)
FILES: Mapping[str, tuple[str, ...]] = {
    KIND: ("*",),
    "override": ("*",),
    "eval_report": REPORT_FILES,
    "recertification": REPORT_FILES,
    "curated_dataset": (STATISTICS, CROISSANT),
    "adapter": ("completion.json", "resume.json", "adapter_config.json", "config.json"),
    "exported_model": ("completion.json", "resume.json", "config.json", "recipe.yaml"),
    "checkpoints": ("losses.jsonl", "completion.json"),
}
"""Kind -> the files of it that go in: what says how it was made and judged, no rows and no weights."""
CARDS = (("Model card", CARD_PAGE), ("Model card as Markdown", CARD))
WEIGHTS = ("adapter", "base_model", "exported_model")
OWN_TABLES = ("model_versions", "attestations", "eval_reports", "transitions", "deployments")


@dataclass
class _Zip:
    """The zip being written and the hashes of what is in it."""

    file: zipfile.ZipFile
    hashes: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, content: bytes | str) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.hashes[name] = sha256_bytes(data)
        self.file.writestr(name, data)

    def copy(self, name: str, path: Path) -> None:
        self.hashes[name] = sha256_file(path)
        self.file.write(path, name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A bundle on disk."""

    path: Path
    files: int
    size: int
    """Bytes."""
    not_included: tuple[str, ...]


def export(
    version: ModelVersion, out: Path, *, store: Store, catalog: Catalog, settings: Settings, with_weights: bool = False
) -> Exported:
    """Writes the bundle of a version. Everything in it is verified first. Raises UserError, NotFoundError, IntegrityError."""
    if not version.registered_digest:
        raise NotFoundError(
            f"{version.label} was never signed", cure=f"run its recipe again: `ft-pipeline run {version.line}`"
        )
    if out.exists():
        raise UserError(f"{out} exists", why="Evidence is not overwritten.", cure="give another name")
    root = catalog.ref(version.registered_digest)
    verify_registered(store, root, settings=settings)
    catalog.verify_history()
    seal(catalog, settings)
    catalog.verify_rows()
    verify_seals(catalog, settings)
    manifests = manifests_of(store, root)
    partial = beside(out)
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as file:
            made = _Zip(file)
            left_out = _write(
                made, version, manifests, store=store, catalog=catalog, settings=settings, with_weights=with_weights
            )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path=out, files=len(made.hashes) + 2, size=out.stat().st_size, not_included=tuple(left_out))


def script() -> str:
    """The text of `verify.py`: one file, because `python -I` finds no module beside it."""
    curve = (HERE / "ed25519.py").read_text(encoding="utf-8").split('"""\n', 1)[1]
    return (HERE / "verify_bundle.py").read_text(encoding="utf-8").replace(IMPORT, curve)


def _write(
    made: _Zip, version: ModelVersion, manifests: Mapping[str, Manifest], *, store: Store, catalog: Catalog, settings: Settings,
    with_weights: bool,
) -> list[str]:  # fmt: skip
    left_out = []
    for manifest in manifests.values():
        made.put(f"manifests/{manifest.kind}-{manifest.digest}.json", manifest.to_bytes())
        left_out += _artifact(made, manifest, store=store, with_weights=with_weights)
    left_out += [
        "what other model lines did: their lines of transitions.json and journal.json are hashes alone",
        "code: manifests name its digests",
    ]
    for known in trusted_keys(settings):
        made.put(f"keys/{known.keyid}.pem", public_pem(known))
    _catalog(made, version, catalog)
    for ref in requests_of(version, catalog):
        made.copy(f"approvals/{ref.digest}.json", store.fetch_file(ref, REQUEST))
    registered = store.fetch(manifests[version.registered_digest or ""].ref)
    for name in registered.manifest.files:
        if name not in (STATEMENT,):
            made.copy(name, registered.file(name))
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    made.put("index.html", _page(version, manifests, made_at, store=store, catalog=catalog, left_out=left_out))
    made.put("verify.py", script())
    key = signing_key(settings)
    index = {
        "format": 1, "model": version.label, "registered": version.registered_digest, "made_at": made_at, "made_by": settings.actor,
        "not_included": left_out, "files": made.hashes,
    }  # fmt: skip
    text = canonical_json(index)
    made.file.writestr("bundle.json", text)
    made.file.writestr("bundle.dsse.json", canonical_json(sign(index, key)))
    return left_out


def _artifact(made: _Zip, manifest: Manifest, *, store: Store, with_weights: bool) -> Iterator[str]:
    """Copies the files of an artifact that go in; what stays out, in words."""
    wanted = FILES.get(manifest.kind, ())
    if "*" in wanted or (with_weights and manifest.kind in WEIGHTS):
        wanted = tuple(manifest.files)
    for name in (n for n in manifest.files if n in wanted):
        made.copy(f"files/{manifest.kind}-{manifest.digest}/{name}", store.fetch_file(manifest.ref, name))
    if rest := [name for name in manifest.files if name not in wanted]:
        shown = ", ".join(rest[:4]) + (" ..." if len(rest) > 4 else "")
        num_bytes = sum(manifest.files[name].size for name in rest)
        yield f"{manifest.kind} {manifest.digest[:12]}: {len(rest)} files, {num_bytes:,} bytes ({shown})"


def _catalog(made: _Zip, version: ModelVersion, catalog: Catalog) -> None:
    """The chains: this line's rows whole, those of others as hashes."""
    links = ("seq", "previous_sha256", "sha256")
    rows = [asdict(t) for t in catalog.all_transitions()]
    of_line = [r if r["model"].split("@")[0] == version.line else {k: r[k] for k in links} for r in rows]
    made.put("transitions.json", json.dumps(of_line, indent=1))
    own = {v.id for v in catalog.models(version.tenant) if v.line == version.line}
    lines = [asdict(line) for line in catalog.journal()]
    kept = [line if _is_own(line, own) else {k: line[k] for k in links} for line in lines]
    made.put("journal.json", json.dumps(kept, indent=1))
    made.put("seals.json", json.dumps(catalog.seals(), indent=1))


def _is_own(line: Mapping[str, Any], models: set[int]) -> bool:
    if line["table_name"] not in OWN_TABLES:
        return False
    said = (
        json.loads(line["content"])
        if line["content"]
        else dict(zip(("pool_id", "model_id"), json.loads(line["row_key"]), strict=False))
    )
    return said.get("id" if line["table_name"] == "model_versions" else "model_id") in models


def _page(
    version: ModelVersion,
    manifests: Mapping[str, Manifest],
    made_at: str,
    *,
    store: Store,
    catalog: Catalog,
    left_out: list[str],
) -> str:
    judged = [m for m in manifests.values() if m.kind in ("eval_report", "recertification")]
    report = manifests[version.report_digest]
    statistics = manifests[version.dataset_digest]
    signed = [(m, name) for m in manifests.values() for name in m.files if name in (STATEMENT, "override.json")]
    envelopes = [(m.kind, f"files/{m.kind}-{m.digest}/{name}", store.fetch_file(m.ref, name)) for m, name in signed]
    last = catalog.seals()[-1]
    return bundle_page(
        Shown(
            version=version, manifests=manifests, root=version.registered_digest or "", made_at=made_at, not_included=left_out,
            verdicts=_json(store, report, VERDICTS), statistics=_json(store, statistics, STATISTICS),
            pages=[
                *((title, name) for title, name in CARDS if name in manifests[version.registered_digest or ""].files),
                *((f"Gate report {m.digest[:12]}", f"files/{m.kind}-{m.digest}/{REPORT}") for m in judged if REPORT in m.files),
            ],
            moves=catalog.history(version.line),
            signatures=[
                *((kind, json.loads(p.read_bytes())["signatures"][0]["keyid"], where) for kind, where, p in envelopes),
                *((f"request for production of {version.label}", _keyid(store, ref), f"approvals/{ref.digest}.json") for ref in requests_of(version, catalog)),
                (f"journal, line {last['journal_seq']}", json.loads(last["envelope"])["signatures"][0]["keyid"], "seals.json"),
                ("this bundle", "see keys/", "bundle.dsse.json"),
            ],
        )
    )  # fmt: skip


def _keyid(store: Store, request: Ref) -> str:
    return json.loads(store.fetch_file(request, REQUEST).read_bytes())["signatures"][0]["keyid"]


def _json(store: Store, manifest: Manifest, name: str) -> dict[str, Any]:
    return json.loads(store.fetch_file(manifest.ref, name).read_bytes()) if name in manifest.files else {}
