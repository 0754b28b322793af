"""Preference pairs that a judge labelled (RLAIF), as a `raw_dataset` whose parent is the candidates: a recipe names it `store://DIGEST`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.acquire.artifact import FILES, RAW_KIND, SOURCE, raw_files
from ft_pipeline.errors import DataError, NotFoundError, UserError
from ft_pipeline.judging.duels import duel_calls, same_text_rows
from ft_pipeline.judging.judge import Speaker
from ft_pipeline.judging.preferences import Candidates, Keep, Labelled, duels_of, labelled, read_candidates
from ft_pipeline.judging.transcripts import TRANSCRIPTS, Asking, Row, ask_all, failures, write_rows
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import canonical_json, sha256_file
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.messages import Listener, ignore, progress

SCHEME = "store://"
PAIRS, LEDGER, FACTS = "pairs.jsonl", "ledger.jsonl", "judge.json"
CODE = "judged_pairs/1"
"""A number: the judge's identity holds the digest of what it is asked. Count it up when pairs are chosen differently."""
FAILURES = 0.02
"""Largest share of calls without a verdict: a judge that fails on some rows chooses which rows are trained on."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be labelled, by whom."""

    candidates: Ref
    """A `raw_dataset` of rows `{prompt, candidates}`."""
    judge: Mapping[str, Any]
    """Its identity (judging/identity.py)."""
    keep: Keep
    licence: str
    parents: Mapping[str, Ref]
    """Further ones: a local judge's model."""

    @property
    def spec(self) -> Spec:
        """Of the pairs."""
        config = {"judge": dict(self.judge), "keep": self.keep, "licence": self.licence}
        return Spec(kind=RAW_KIND, config=config, parents={"candidates": self.candidates, **self.parents}, code=CODE)


def judged_pairs(
    order: Order, store: Store, *, speaker: Speaker, calls_at_once: int = 1, listener: Listener = ignore
) -> Artifact:
    """The pairs, found or labelled. A killed run asks no answered call again. Raises DataError: unreadable rows, too many failures, no pair."""
    if found := store.find(order.spec):
        return found
    items = [c for path in raw_files(store.fetch(order.candidates)).values() for c in read_candidates(path)]
    duels = duels_of(items)
    asking = Asking(
        speaker=speaker, path=store.work / "judged" / f"{order.spec.fingerprint}.jsonl", calls_at_once=calls_at_once,
        tick=lambda done, total: progress(listener, "judge pairs", done, total=total, unit="call"),
    )  # fmt: skip
    asked = ask_all(duel_calls(duels), asking) or []
    _enough(asked)
    rows = [*asked, *same_text_rows(duels)]
    artifact = _publish(store, order, (items, rows))
    asking.path.unlink(missing_ok=True)
    return artifact


def in_store(store: Store, uri: str) -> Artifact:
    """The raw dataset that `store://DIGEST` names, by its digest or its beginning. Raises NotFoundError, UserError."""
    digest = uri.removeprefix(SCHEME).lower()
    found = {m.digest: m.ref for m in store.all(RAW_KIND) if digest and m.digest.startswith(digest)}
    if not found:
        raise NotFoundError(
            f"no raw dataset {uri} in this store",
            cure="`ft-pipeline data judge-pairs` prints the address of what it made",
        )
    if len(found) > 1:
        raise UserError(
            f"{uri} fits {len(found)} datasets: {', '.join(d[:16] for d in sorted(found))}", cure="give more digits"
        )
    return store.fetch(next(iter(found.values())))


def facts_of(pairs: Artifact) -> dict[str, Any]:
    """The content of judge.json: pairs, comparisons, how many agreed, why the others make no pair, failed calls."""
    return json.loads(pairs.file(FACTS).read_bytes())


def _enough(rows: list[Row]) -> None:
    failed = failures(rows)
    if sum(failed.values()) <= FAILURES * len(rows):
        return
    told = ", ".join(f"{number:,} {cause}" for cause, number in failed.items())
    raise DataError(
        f"{sum(failed.values()):,} of {len(rows):,} calls to the judge gave no verdict ({told})",
        why=f"Above {FAILURES:.0%} the judge chooses by its failures which rows are trained on.",
        cure="mend the judge and run the command again: only calls without a reply are made again",
    )


def _publish(store: Store, order: Order, made: tuple[list[Candidates], list[Row]]) -> Artifact:
    items, rows = made
    result = labelled(items, rows, keep=order.keep)
    if not result.pairs:
        raise DataError(
            f"none of {result.compared:,} comparisons is decided ({_told(result)})",
            why="A judge that names another winner when the order is exchanged looks at places, not at answers.",
            cure="take a stronger judge, or candidates that differ more",
        )
    with store.publish(order.spec) as draft:
        path = draft.folder / FILES / PAIRS
        path.parent.mkdir(parents=True)
        _write(path, result.pairs)
        _write(draft.folder / LEDGER, result.ledger)
        draft.logical[TRANSCRIPTS] = write_rows(draft.folder / TRANSCRIPTS, rows)
        facts = {
            "pairs": len(result.pairs), "prompts": len(items), "compared": result.compared, "consistent": result.consistent,
            "left_out": result.reasons, "failures": failures(rows), "judge": order.spec.config["judge"]["model"],
        }  # fmt: skip
        (draft.folder / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        write_atomic(draft.folder / SOURCE, canonical_json(_source(order, path)) + b"\n")
        draft.counts.update(files=1, bytes=path.stat().st_size, pairs=len(result.pairs))
    assert draft.artifact is not None
    return draft.artifact


def _source(order: Order, path: Path) -> dict[str, Any]:
    """As that of every raw dataset; the revision is that of the pairs."""
    digest = sha256_file(path)
    return {
        "uri": f"judged:{order.candidates.digest}", "revision": digest, "licence": order.licence,
        "files": [{"name": PAIRS, "sha256": digest, "bytes": path.stat().st_size}],
    }  # fmt: skip


def _told(result: Labelled) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in result.reasons.items())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
