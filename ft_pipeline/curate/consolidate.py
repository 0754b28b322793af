"""curated_dataset: the only place where rows are dropped. Every row that comes in is in a split or in the ledger.

Three parts: each block of raw rows is examined by itself, in any process; rows are compared with each other; the files are written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ft_pipeline.acquire.artifact import FILES, SourceRows, control_tokens, source_of, sources_of
from ft_pipeline.curate import examine, limits
from ft_pipeline.curate.artifact import CURATED_KIND
from ft_pipeline.curate.blocks import Block, blocks
from ft_pipeline.curate.croissant import write_croissant
from ft_pipeline.curate.deduplicate import Duplicates, find_duplicates
from ft_pipeline.curate.examine import Examination, Reading
from ft_pipeline.curate.examined import Examined, tidy
from ft_pipeline.curate.fate import IN_HOLDOUT, TRAIN, Fates, fates
from ft_pipeline.curate.forgotten import forgotten_in
from ft_pipeline.curate.language import language_identity
from ft_pipeline.curate.ledger import Rows
from ft_pipeline.curate.own_holdout import in_holdout
from ft_pipeline.curate.write import write_curated
from ft_pipeline.errors import DataError, FtError, RecipeError
from ft_pipeline.recipe import Curate, Dataset, Recipe, Source, identity
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import code_digest, sha256_json
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.messages import Listener, ignore, log, progress
from ft_pipeline.workers.pool import Pool, Workforce

ROOM = Path(__file__).parent
HERE = Pool(1)
UNHASHED = ("assets.py", "balance.py", "figures.py", "difference.py", "difference_rows.py", "__init__.py", "main.py")
MIN_THRESHOLD = 0.5
POLL_SECONDS, PATIENCE_SECONDS = 0.5, 3600
SMALL_BYTES = 16 << 20
"""Below so many bytes no further process is started: starting one takes longer than the work."""


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What is curated, and from what."""

    config: Curate
    raw: Ref
    tokens: tuple[str, ...] = ()
    """Control tokens of the base model's tokenizer: of the base only they matter, and only they are hashed."""
    dataset: Dataset = field(default_factory=lambda: Dataset(uri=""))
    """Layout and mapping; where the rows came from does not matter here."""
    mix: tuple[Source, ...] = ()
    words: Path | None = None
    indexes: Mapping[str, Artifact] = field(default_factory=dict)
    """Benchmark -> its index."""
    forgotten: tuple[str, ...] = ()
    """Keys of the rows of `raw` that were taken down, sorted: those of other datasets change nothing here."""

    @property
    def readings(self) -> dict[str, Reading]:
        """How each source is read."""
        first = {"dataset": Reading(layout=self.dataset.layout, mapping=self.dataset.mapping)}
        return first | {one.name: Reading(layout=one.layout, mapping=one.mapping) for one in self.mix}

    def spec(self) -> Spec:
        """What the outcome is made of."""
        sources = {name: identity(reading) for name, reading in self.readings.items()}
        shares = [[one.name, one.share, one.cap, one.safety, *([one.split] if one.split else [])] for one in self.mix]
        words = None if self.words is None else sha256_json(self.words.read_text(encoding="utf-8"))
        return Spec(
            kind=CURATED_KIND,
            config={
                **({"forgotten": list(self.forgotten)} if self.forgotten else {}), **identity(self.config), "sources": sources, "mix": shares, "words_sha256": words,
                "tokenizer_control_tokens": list(self.tokens),
                "language_model": language_identity() if self.config.language.keep else None,
            },
            parents={"raw": self.raw, **{f"index:{name}": index.ref for name, index in self.indexes.items()}},
            code=code_version(),
        )  # fmt: skip

    def examination(self, folder: Path, spec: Spec) -> Examination:
        """What decides the outcome of a block."""
        config = {k: v for k, v in spec.config.items() if k not in ("splits", "sources", "mix")}
        indexes = {name: index.ref.digest for name, index in self.indexes.items()}
        return Examination(
            config=self.config, control_tokens=self.tokens, sources=self.readings, folder=folder,
            identity=sha256_json([spec.code, config, indexes]), words=self.words,
            indexes=tuple(index.folder for index in self.indexes.values()), forgotten=frozenset(self.forgotten),
        )  # fmt: skip


def code_version() -> str:
    """Digest of everything that decides what comes out: all of this room but the files that show it."""
    return code_digest(*sorted(f for f in ROOM.glob("*.py") if f.name not in UNHASHED))


def curate(
    curation: Curation, *, store: Store, workforce: Workforce = HERE, memory_gib: int = 2, listener: Listener = ignore
) -> Artifact:
    """The curated dataset of a raw one.

    A killed run goes on behind the blocks that it finished; the outcome is the same for any workforce. Raises DataError
    when too many rows are rejected or none is left, RecipeError for a threshold out of range.
    """
    _refuse_threshold(curation.config.near_duplicates.threshold)
    spec = curation.spec()
    if found := store.find(spec):
        log(listener, f"curated rows unchanged: {found.ref.digest[:12]} is reused")
        return found
    sources = sources_of(store, curation.raw)
    if isinstance(workforce, Pool) and sum(_num_bytes(one) for one in sources) < SMALL_BYTES:
        workforce = workforce.alone()
    examination = curation.examination(_cache(store), spec)
    rows = _examined(sources, examination, workforce=workforce, listener=listener)
    limits.refuse(rows, curation.config)
    limits.refuse_memory(int(rows.table.starts[-1]), memory_gib)
    near = curation.config.near_duplicates
    duplicates = find_duplicates(rows.table, near.policy, near.threshold, workforce=workforce, listener=listener)
    _warn(duplicates, near.policy, listener)
    decided = fates(rows.table, duplicates, curation.config.splits, mix=curation.mix, sources=rows.sources)
    contamination = curation.config.contamination
    held = in_holdout(rows.table, decided, contamination, workforce=workforce, listener=listener)
    limits.refuse_held(held, rows, contamination)
    rows = replace(rows, holdout=held)
    if contamination.holdout == "remove":
        decided.fate[list(held)] = IN_HOLDOUT
    _refuse_untrainable(decided)
    if not workforce.leads:
        return _awaited(store, spec)
    return _published(store, spec, rows, curation=curation, found=(decided, duplicates), listener=listener)


def curation_of(
    recipe: Recipe, *, raw: Ref, base: Ref | None, store: Store, forgotten: Sequence[str] = (), **opened: Any
) -> Curation:
    """The curation of a recipe. `forgotten`: row keys that were taken down anywhere; `opened`: its word list and benchmark indexes."""
    tokens = control_tokens(store, base) if base else ()
    gone = forgotten_in(store, raw, forgotten)
    return Curation(
        config=recipe.curate, raw=raw, tokens=tokens, dataset=recipe.dataset, mix=recipe.mix, forgotten=gone, **opened
    )


def _cache(store: Store) -> Path:
    """Where outcomes of blocks are kept, by content."""
    return store.work / "curate"


def _refuse_threshold(threshold: float) -> None:
    if not MIN_THRESHOLD <= threshold <= 1:
        raise RecipeError(
            f"curate.near_duplicates.threshold {threshold} is not in [{MIN_THRESHOLD}, 1]",
            cure="0.9 drops rows that differ in a few words",
        )


def _num_bytes(source: SourceRows) -> int:
    return sum(path.stat().st_size for path in source.files.values())


def _sha256(source: SourceRows) -> dict[str, str]:
    return {name: source.artifact.manifest.files[FILES + name].sha256 for name in source.files}


def _examined(
    sources: Sequence[SourceRows], examination: Examination, *, workforce: Workforce, listener: Listener
) -> Rows:
    """Every block examined, those of an earlier run found again."""
    total, done = sum(_num_bytes(one) for one in sources), 0

    def seen(num_bytes: int) -> None:
        nonlocal done
        done = min(done + num_bytes, total)

    placed: list[Block] = []

    def cut() -> Iterator[Block]:
        for one in sources:
            for block in blocks(one.name, one.files, seen, sha256=_sha256(one)):
                placed.append(Block(source=block.source, name=block.name, first=block.first, payload=b""))
                yield block

    folders = []
    begin = {"initializer": examine.begin, "initargs": (examination,)}
    work = workforce.map(examine.examine, cut(), stage="examine", **begin)
    for folder in work:
        folders.append(folder)
        progress(listener, "curate: examine rows", done, total=total, unit="B", blocks=len(folders))
    if not folders:
        raise DataError("the dataset holds no rows", cure="check the program that writes it")
    return Rows(
        table=Examined(folders), names=[b.name for b in placed], firsts=[b.first for b in placed],
        sources=[b.source for b in placed], holdout={},
    )  # fmt: skip


def _warn(duplicates: Duplicates, policy: str, listener: Listener) -> None:
    if policy == "whole_example" and duplicates.answers_lost:
        log(
            listener,
            f"policy whole_example drops {duplicates.answers_lost:,} of {(duplicates.near >= 0).sum():,} near duplicates although "
            "their answer differs from the one that stays; prompt_and_response keeps them",
        )


def _refuse_untrainable(decided: Fates) -> None:
    if not len(decided.rows_of(TRAIN)):
        raise DataError(
            f"none of {len(decided.fate):,} valid rows is in the train split",
            why="All of them are variants of each other and fell into one split together, or filters drop them.",
            cure="bring more varied rows, or lower curate.splits",
        )


def _awaited(store: Store, spec: Spec) -> Artifact:
    """What the leading member of the team publishes from the same rows."""
    until = time.monotonic() + PATIENCE_SECONDS
    while (found := store.find(spec)) is None:
        if time.monotonic() > until:
            raise FtError(
                f"member 0 has not published the curated dataset in {PATIENCE_SECONDS} s",
                why="It alone writes the files; all that it needs is in the team's folder.",
                cure="start member 0 again: it goes on behind what is finished",
            )
        time.sleep(POLL_SECONDS)
    return found


def _published(
    store: Store, spec: Spec, rows: Rows, *, curation: Curation, found: tuple[Fates, Duplicates], listener: Listener
) -> Artifact:
    decided, duplicates = found
    licences = {str(source_of(one.artifact)["licence"]) for one in sources_of(store, curation.raw)}
    with store.publish(spec) as draft:
        write_curated(
            draft, rows, decided, duplicates=duplicates, mix=curation.mix, contamination=bool(curation.indexes),
            listener=listener,
        )  # fmt: skip
        write_croissant(draft, " AND ".join(sorted(licences)))
    tidy(_cache(store))
    if draft.artifact is None:
        raise RuntimeError("published without an artifact")
    return draft.artifact
