"""Which rows say what another row says already, and which rows must stay in one split.

Rows are ranked by quality, then length, then row id: the first of a group of duplicates is kept. So the result does not depend on
the order of the file, and of two near-equal rows the better and fuller one stays. Every step is an array operation over numbers of
rows, or a task that any process can do from the files of the blocks: one process and forty give the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ft_pipeline.curate import pairs
from ft_pipeline.curate.bands import bands_for, merged
from ft_pipeline.curate.edges import CONFLICT, DUPLICATE, VARIANT, Edges, components, spanning, strongest
from ft_pipeline.curate.examined import Examined
from ft_pipeline.curate.pairs import BandTask, PairTask, Similar
from ft_pipeline.workers.messages import Listener, ignore, progress
from ft_pipeline.workers.pool import Pool, Workforce

Policy = Literal["prompt_and_response", "whole_example", "off"]
PREFILTER_SLACK = 0.1
"""Candidates whose estimate is so much below the threshold are passed over: dropped 0 of 2,522 true pairs (curate-encode.md)."""
ALL_PAIRS, MAX_ANSWERS = 4, 16
"""Of the answers to one prompt the first 4 are compared with each other for the conflict report, the next 12 with the first."""
FEW_PAIRS = 1 << 15
"""Below so many pairs no further process is started: starting one takes a second."""
TASK_PAIRS = 1 << 13
HERE = Pool(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """The outcome, by number of fit row: -1 where there is nothing to say."""

    exact: np.ndarray
    """The row that says exactly the same and is kept."""
    near: np.ndarray
    """The row that is kept for it."""
    edge: np.ndarray
    """Of a near duplicate: the strongest edge that it has, a number of `edges`."""
    cluster: np.ndarray
    """The row with the smallest id of its cluster; -1 for exact duplicates and rows that a filter drops."""
    edges: Edges
    answers_lost: int
    """Near duplicates dropped although the response differs: only under `whole_example`."""
    conflict_prompts: int


def find_duplicates(
    table: Examined, policy: Policy, threshold: float, *, workforce: Workforce = HERE, listener: Listener = ignore
) -> Duplicates:
    """Exact duplicates, near duplicates by policy, and clusters, of the rows that no filter drops.

    `prompt_and_response`: both alike at the threshold. `whole_example`: prompt and response together. Clusters tie rows whose
    prompts or whole examples are alike, under every policy: no variant of a row straddles two splits.
    """
    ranked = _ranked(table)
    exact, rows = _exact(table, ranked)
    search = _Search(table, rows, policy=policy, threshold=threshold, work=(workforce, listener))
    return search.conclusion(exact)


def _ranked(table: Examined) -> np.ndarray:
    """Fit rows that no filter drops, the one to keep first."""
    rows = np.flatnonzero(~table.column("dropped"))
    ordinals = table.global_ordinal[rows]
    keys, repeats = table.column("all_keys")[ordinals], table.repeats[ordinals]
    order = np.lexsort((repeats, keys, -table.column("length")[rows], -table.column("score")[rows]))
    return rows[order]


def _exact(table: Examined, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each fit row the equal one that is kept, or -1; and the rows that are left, in order of rank."""
    kept_for = np.full(table.starts[-1], -1, np.int64)
    first = _first_of_equal(table.column("exact")[ranked])
    repeated = first != np.arange(len(ranked))
    kept_for[ranked[repeated]] = ranked[first[repeated]]
    return kept_for, ranked[~repeated]


def _first_of_equal(keys: np.ndarray) -> np.ndarray:
    """For each line of [n, 2] keys the first line that equals it."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    placed = keys[order]
    new = np.r_[True, (placed[1:] != placed[:-1]).any(axis=1)][: len(keys)]
    out = np.empty(len(keys), np.int64)
    out[order] = order[new][np.cumsum(new) - 1]
    return out


class _Search:
    """Positions count the unique rows in order of rank."""

    def __init__(self, table: Examined, rows: np.ndarray, **options: Any) -> None:
        self.policy, self.threshold = options["policy"], options["threshold"]
        self.workforce, self.listener = options["work"]
        self.table, self.rows = table, rows
        self.frame, self.has_prompt = (table.column(name)[rows] for name in ("frame", "has_prompt"))
        self.first_asking = _first_of_equal(table.column("asked")[rows])
        """Position of the first row with the same prompt."""

    def conclusion(self, exact: np.ndarray) -> Duplicates:
        """All of it."""
        total = len(self.rows)
        examples, prompts = self._candidates()
        alike = self._compared("example", examples)
        duplicate, tied = self._decided(alike)
        asked = self.has_prompt & (self.first_asking != np.arange(total))
        prompt_ties = (np.flatnonzero(asked), self.first_asking[asked])
        ties = (alike.left[tied], alike.right[tied])
        cluster = components(total, prompt_ties, ties)
        variants = self._prompt_variants(prompts, cluster)
        cluster = components(total, prompt_ties, ties, (variants.left, variants.right))
        same = components(total, (alike.left[duplicate], alike.right[duplicate]))
        known = alike.of(duplicate)
        between = [alike.of(tied & ~duplicate), variants]
        bound = components(total, prompt_ties, (known.left, known.right))
        edges = Edges.of([(DUPLICATE, known), (VARIANT, spanning(bound, between))])
        conflicts, num_prompts = self._conflicts(alike)
        edges = Edges.of([*edges.parts(), (CONFLICT, conflicts)])
        return self._named(exact, same, cluster, edges=edges, conflict_prompts=num_prompts)

    def _candidates(self) -> tuple[Similar, Similar]:
        """Pairs of positions of like examples, and of like prompts (first rows of each prompt only)."""
        askers = np.flatnonzero(self.has_prompt & (self.first_asking == np.arange(len(self.rows))))
        bands = range(bands_for(self.threshold).count)
        kinds = {"whole": self.rows, "prompt": self.rows[askers]}
        at_least = self.threshold - PREFILTER_SLACK
        tasks = [BandTask(kind=kind, band=band, at_least=at_least) for kind in kinds for band in bands]
        found = self._run(pairs.of_band, tasks, task="search", rows=kinds, unit="band", many=len(self.rows) > FEW_PAIRS)
        whole, asked = found[: len(bands)], found[len(bands) :]
        example = Similar.of_codes(*merged(whole), total=len(self.rows))
        prompt = Similar.of_codes(*merged(asked), total=len(askers))
        return example, prompt.named(askers)

    def _compared(self, kind: str, candidates: Similar) -> Similar:
        """The pairs with their exact similarities."""
        tasks = [
            PairTask(kind=kind, policy=self.policy, threshold=self.threshold, pairs=part)
            for part in candidates.cut(TASK_PAIRS)
        ]
        many = len(candidates.left) > FEW_PAIRS
        found = self._run(
            pairs.compared, tasks, task=f"compare {kind}s", rows={"whole": self.rows}, unit="part", many=many
        )
        return Similar.joined(found)

    def _run(
        self, function: Any, tasks: Sequence[Any], *, task: str, rows: dict[str, np.ndarray], unit: str, many: bool
    ) -> list[Any]:
        found = []
        workforce = self.workforce if many else self.workforce.alone()
        table = self.table if workforce.is_here else self.table.folders
        work = workforce.map(function, tasks, stage=task, initializer=pairs.begin, initargs=(table, rows))
        for made in work:
            found.append(made)
            progress(self.listener, f"curate: {task}", len(found), total=len(tasks), unit=unit)
        return found

    def _decided(self, alike: Similar) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs are duplicates, and which belong to one cluster."""
        low = self.threshold
        same = np.fmin(alike.prompt, alike.response) >= low
        if self.policy == "whole_example":
            same = alike.whole >= low
        same &= (self.frame[alike.left] == self.frame[alike.right]) & (self.policy != "off")
        # empty prompts of plain text are alike and say nothing
        prompts = (alike.prompt >= low) & self.has_prompt[alike.left] & self.has_prompt[alike.right]
        return same, same | prompts | (alike.whole >= low)

    def _prompt_variants(self, candidates: Similar, cluster: np.ndarray) -> Similar:
        """Pairs with like prompts that are not in one cluster yet."""
        apart = candidates.of(cluster[candidates.left] != cluster[candidates.right])
        alike = self._compared("prompt", apart)
        return alike.of(alike.prompt >= self.threshold)

    def _conflicts(self, known: Similar) -> tuple[Similar, int]:
        """Equal prompts with unlike answers: reported, never removed, for both may be true. Answers of known pairs are not read again."""
        keys = np.stack([self.frame, self.first_asking.astype(np.uint64)], axis=1)[self.has_prompt]
        asked = np.flatnonzero(self.has_prompt)
        group = _first_of_equal(keys) if len(keys) else np.empty(0, np.int64)
        left, right = _pairs_in_groups(group)
        order = np.lexsort((right, left))
        left, right = left[order], right[order]
        found = Similar.bare(asked[left], asked[right]).informed(known, total=len(self.rows))
        unknown = np.isnan(found.response)
        response = found.response.copy()
        response[unknown] = self._compared("answer", found.of(unknown)).response
        unlike = response < self.threshold
        return found.replaced(response=response).of(unlike), len(np.unique(group[left[unlike]]))

    def _named(self, exact: np.ndarray, same: np.ndarray, cluster: np.ndarray, **found: Any) -> Duplicates:
        """By fit rows instead of positions."""
        edges, total = found["edges"], self.table.starts[-1]
        near, edge, named = (np.full(total, -1, np.int64) for _ in range(3))
        first = _first_of_equal(np.stack([same, same], axis=1)) if len(same) else same
        dropped = first != np.arange(len(first))
        near[self.rows[dropped]] = self.rows[first[dropped]]
        edge[self.rows] = strongest(edges, len(self.rows))
        named[self.rows] = self.rows[self._smallest_ids(cluster)]
        lost = 0
        if self.policy == "whole_example" and dropped.any():
            answers = self._compared("answer", Similar.bare(first[dropped], np.flatnonzero(dropped)))
            lost = int((answers.response < self.threshold).sum())
        return Duplicates(
            exact=exact, near=near, edge=edge, cluster=named, edges=edges.named(self.rows), answers_lost=lost,
            conflict_prompts=found["conflict_prompts"],
        )  # fmt: skip

    def _smallest_ids(self, cluster: np.ndarray) -> np.ndarray:
        """For each position the position of the smallest row id in its cluster."""
        ordinals = self.table.global_ordinal[self.rows]
        order = np.lexsort((self.table.repeats[ordinals], self.table.column("all_keys")[ordinals], cluster))
        smallest = np.empty(len(cluster), np.int64)
        # backwards: the first of each cluster is written last
        smallest[cluster[order[::-1]]] = order[::-1]
        return smallest[cluster]


def _pairs_in_groups(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of the first 4 members of each group, and each further one up to the 16th with the first: a line, not a square."""
    order = np.argsort(group, kind="stable")
    placed = group[order]
    new = np.r_[True, placed[1:] != placed[:-1]][: len(placed)]
    first = np.maximum.accumulate(np.where(new, np.arange(len(placed)), 0))
    place = np.arange(len(placed)) - first
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for distance in range(1, ALL_PAIRS):
        near = np.flatnonzero((place >= distance) & (place < ALL_PAIRS))
        left.append(order[near - distance])
        right.append(order[near])
    far = np.flatnonzero((place >= ALL_PAIRS) & (place < MAX_ANSWERS))
    return np.concatenate([*left, order[first[far]]]), np.concatenate([*right, order[far]])
