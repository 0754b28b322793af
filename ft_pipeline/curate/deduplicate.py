"""Which rows say what another row says already, and which rows must stay in one split.

Rows are looked at in an order of their own, the longest first, ties by row id: the first of a group of duplicates is kept. So the
result does not depend on the order of the file, and of two near-equal rows the fuller one stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ft_pipeline.curate.comparison import Comparable
from ft_pipeline.curate.overlap import MARGIN, Overlap
from ft_pipeline.curate.signatures import Candidates, bands_for, candidates, jaccard, shingles, signatures
from ft_pipeline.workers.messages import Listener, ignore, progress

Policy = Literal["prompt_and_response", "whole_example", "off"]
PREFILTER_SLACK = 0.1
"""Candidates whose estimate is so much below the threshold are passed over: dropped 0 of 2,522 true pairs (curate-encode.md)."""
CACHED_TEXTS = 2048
CHUNK_PAIRS = 8192
MAX_ANSWERS = 16
"""Answers to one prompt that are compared with each other for the conflict report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """Evidence that ties two rows. Similarities are exact, over character 5-grams; None: not needed for the decision."""

    kept_id: str
    other_id: str
    relation: Literal["duplicate", "variant", "conflict"]
    whole_j: float | None
    prompt_j: float | None
    response_j: float | None
    band: int
    """The band that brought the rows together; -1: equal prompts."""


@dataclass
class Duplicates:
    """The outcome for rows by position."""

    exact: dict[int, int] = field(default_factory=dict)
    """Dropped row -> the row that says exactly the same."""
    near: dict[int, tuple[int, Edge]] = field(default_factory=dict)
    """Dropped row -> the row that is kept for it, and an edge of the dropped row."""
    clusters: dict[int, str] = field(default_factory=dict)
    """Row -> smallest row id of its cluster; for all rows that are no exact duplicates."""
    edges: list[Edge] = field(default_factory=list)
    answers_lost: int = 0
    """Near duplicates dropped although the response differs: only under `whole_example`."""
    conflict_prompts: int = 0


def find_duplicates(
    rows: Sequence[Comparable], policy: Policy, threshold: float, *, listener: Listener = ignore
) -> Duplicates:
    """Exact duplicates, near duplicates by policy, and clusters.

    `prompt_and_response`: both alike at the threshold. `whole_example`: prompt and response together. Clusters tie rows whose
    prompts or whole examples are alike, under every policy: no variant of a row straddles two splits.
    """
    found = Duplicates()
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].prompt) - len(rows[i].response), rows[i].row_id))
    unique = _without_exact(rows, order, found)
    search = _Search(rows, unique, found, policy=policy, threshold=threshold, listener=listener)
    search.near_examples()
    search.near_prompts()
    search.conflicts()
    search.conclude()
    return found


def _without_exact(rows: Sequence[Comparable], order: Sequence[int], found: Duplicates) -> list[int]:
    first: dict[bytes, int] = {}
    for index in order:
        kept = first.setdefault(rows[index].exact, index)
        if kept != index:
            found.exact[index] = kept
    return [i for i in order if i not in found.exact]


class _Groups:
    """Union of positions; the smallest position, which is the first in order, speaks for its group."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def of(self, position: int) -> int:
        while self.parent[position] != position:
            self.parent[position] = self.parent[self.parent[position]]
            position = self.parent[position]
        return position

    def join(self, left: int, right: int) -> bool:
        """False when they were together already."""
        left, right = sorted((self.of(left), self.of(right)))
        self.parent[right] = left
        return left != right


class _Search:
    """Positions count the unique rows in order of keeping. Pairs that are together already are not compared again."""

    def __init__(self, rows: Sequence[Comparable], unique: Sequence[int], found: Duplicates, **options: Any) -> None:
        self.policy, self.threshold = options["policy"], options["threshold"]
        self.listener: Listener = options["listener"]
        self.rows = [rows[i] for i in unique]
        self.unique, self.found = unique, found
        self.same, self.cluster = _Groups(len(unique)), _Groups(len(unique))
        self.edge_of: dict[int, Edge] = {}
        self.shingles = lru_cache(CACHED_TEXTS)(lambda part, position: shingles(getattr(self.rows[position], part)))

    def near_examples(self) -> None:
        """Pairs of whole examples that are alike, or whose prompts and responses are."""
        pairs = self._candidates([r.whole for r in self.rows], "near duplicates")
        for left, right, band in self._plausible_examples(pairs):
            self._compare(left, right, band)

    def near_prompts(self) -> None:
        """Ties rows with alike prompts into clusters; drops nothing."""
        by_prompt: dict[str, int] = {}
        for position, row in enumerate(self.rows):
            if row.prompt and (first := by_prompt.setdefault(row.prompt, position)) != position:
                self.cluster.join(first, position)
        speakers = np.array(sorted(by_prompt.values(), key=lambda p: (-len(self.rows[p].prompt), p)), np.int64)
        pairs = self._candidates([self.rows[p].prompt for p in speakers.tolist()], "near prompts")
        for left, right, band in self._plausible_prompts(pairs, speakers):
            alike = self._jaccard("prompt", left, right)
            if alike >= self.threshold:
                self.cluster.join(left, right)
                self._edge(left, right, "variant", prompt_j=alike, band=band)

    def conflicts(self) -> None:
        """Equal prompts with unlike answers: reported, never removed, for both may be true."""
        answers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for position, row in enumerate(self.rows):
            if row.prompt and len(answers[row.frame, row.prompt]) < MAX_ANSWERS:
                answers[row.frame, row.prompt].append(position)
        for group in answers.values():
            unlike = [(a, b, self._jaccard("response", a, b)) for n, a in enumerate(group) for b in group[n + 1 :]]
            unlike = [(a, b, j) for a, b, j in unlike if j < self.threshold]
            self.found.conflict_prompts += bool(unlike)
            for left, right, alike in unlike:
                self._edge(left, right, "conflict", prompt_j=1.0, response_j=alike, band=-1)

    def conclude(self) -> None:
        """Writes groups into the outcome by row, not by position."""
        names: dict[int, str] = {}
        for position, row in enumerate(self.rows):
            root = self.cluster.of(position)
            names[root] = min(names.get(root, row.row_id), row.row_id)
        for position, index in enumerate(self.unique):
            self.found.clusters[index] = names[self.cluster.of(position)]
            kept = self.same.of(position)
            if kept != position:
                self.found.near[index] = (self.unique[kept], self.edge_of[position])
                self.found.answers_lost += self._jaccard("response", kept, position) < self.threshold

    def _candidates(self, texts: Sequence[str], task: str) -> Candidates:
        progress(self.listener, f"curate: {task}", 0, total=2, unit="pass")
        signed = signatures(texts)
        progress(self.listener, f"curate: {task}", 1, total=2, unit="pass")
        pairs = candidates(signed, bands_for(self.threshold), at_least=self.threshold - PREFILTER_SLACK)
        progress(self.listener, f"curate: {task}", 2, total=2, unit="pass", pairs=len(pairs.left))
        return pairs

    def _plausible_examples(self, pairs: Candidates) -> Iterator[tuple[int, int, int]]:
        """Pairs that may be duplicates or may tie two clusters, by hashed shingles; those that are together already are left out."""
        used = np.unique(np.concatenate([pairs.left, pairs.right]))
        parts = {part: Overlap([getattr(r, part) for r in self.rows], used) for part in ("whole", "prompt", "response")}
        low = self.threshold - MARGIN
        for chunk in _chunks(pairs):
            whole, prompt, response = (
                parts[p].jaccard(chunk.left, chunk.right) for p in ("whole", "prompt", "response")
            )
            same = whole >= low if self.policy == "whole_example" else (prompt >= low) & (response >= low)
            tied = (whole >= low) | (prompt >= low)
            for left, right, band, may_be_same in _listed(chunk, tied, same):
                if self.cluster.of(left) != self.cluster.of(right) or (
                    may_be_same and self.policy != "off" and self.same.of(left) != self.same.of(right)
                ):
                    yield left, right, band

    def _plausible_prompts(self, pairs: Candidates, speakers: np.ndarray) -> Iterator[tuple[int, int, int]]:
        overlap = Overlap([r.prompt for r in self.rows], speakers)
        for chunk in _chunks(pairs):
            left, right = speakers[chunk.left], speakers[chunk.right]
            apart = np.array([self.cluster.of(a) != self.cluster.of(b) for a, b in zip(left, right, strict=True)], bool)
            tied = apart.copy()
            tied[apart] = overlap.jaccard(left[apart], right[apart]) >= self.threshold - MARGIN
            named = Candidates(left=np.minimum(left, right), right=np.maximum(left, right), band=chunk.band)
            for a, b, band, _ in _listed(named, tied, tied):
                if self.cluster.of(a) != self.cluster.of(b):
                    yield a, b, band

    def _compare(self, left: int, right: int, band: int) -> None:
        whole, prompt = self._jaccard("whole", left, right), self._jaccard("prompt", left, right)
        response = self._jaccard("response", left, right)
        same = self._are_duplicates(left, right, whole=whole, both=min(prompt, response))
        if same:
            self.same.join(left, right)
        tied = same or max(whole, self._prompt_says(left, prompt)) >= self.threshold
        fresh = tied and self.cluster.join(left, right)
        if same or fresh:
            alike = {"whole_j": whole, "prompt_j": prompt, "response_j": response}
            self._edge(left, right, "duplicate" if same else "variant", band=band, **alike)

    def _are_duplicates(self, left: int, right: int, *, whole: float, both: float) -> bool:
        if self.policy == "off" or self.rows[left].frame != self.rows[right].frame:
            return False
        return (whole if self.policy == "whole_example" else both) >= self.threshold

    def _prompt_says(self, position: int, alike: float) -> float:
        """Empty prompts of plain text are alike and say nothing."""
        return alike if self.rows[position].prompt else 0.0

    def _edge(self, left: int, right: int, relation: Literal["duplicate", "variant", "conflict"], **alike: Any) -> None:
        values = {k: round(v, 6) if isinstance(v, float) else v for k, v in alike.items()}
        edge = Edge(
            kept_id=self.rows[left].row_id,
            other_id=self.rows[right].row_id,
            relation=relation,
            whole_j=values.get("whole_j"),
            prompt_j=values.get("prompt_j"),
            response_j=values.get("response_j"),
            band=int(alike["band"]),
        )
        self.found.edges.append(edge)
        if relation == "duplicate":
            self.edge_of.setdefault(left, edge)
            self.edge_of.setdefault(right, edge)

    def _jaccard(self, part: str, left: int, right: int) -> float:
        if getattr(self.rows[left], part) == getattr(self.rows[right], part):
            return 1.0
        return jaccard(self.shingles(part, left), self.shingles(part, right))


def _chunks(pairs: Candidates) -> Iterator[Candidates]:
    """Slices of the pairs: what the first ones tie together need not be looked at in the next."""
    for start in range(0, len(pairs.left), CHUNK_PAIRS):
        part = slice(start, start + CHUNK_PAIRS)
        yield Candidates(left=pairs.left[part], right=pairs.right[part], band=pairs.band[part])


def _listed(pairs: Candidates, wanted: np.ndarray, flags: np.ndarray) -> Iterator[tuple[int, int, int, bool]]:
    """The wanted pairs as plain numbers, each with its flag."""
    picked = (column[wanted].tolist() for column in (pairs.left, pairs.right, pairs.band, flags))
    return zip(*picked, strict=True)
