"""Pairs that tie rows as a graph: components, the edges that span them, and the table of evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ft_pipeline.curate.pairs import Similar

DUPLICATE, VARIANT, CONFLICT = 0, 1, 2
RELATIONS = ("duplicate", "variant", "conflict")
Ties = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """The table of evidence: every duplicate and conflict, and the strongest variants that hold each cluster together."""

    relation: np.ndarray
    pairs: Similar

    @staticmethod
    def of(parts: Sequence[tuple[int, Similar]]) -> Edges:
        """Parts of one relation each, one after the other, each in order of its pairs."""
        ordered = [(r, p.of(np.lexsort((p.right, p.left)))) for r, p in parts]
        relation = np.concatenate([np.full(len(p.left), r, np.int8) for r, p in ordered])
        return Edges(relation=relation, pairs=Similar.joined([p for _, p in ordered]))

    def parts(self) -> list[tuple[int, Similar]]:
        """By relation."""
        return [(r, self.pairs.of(self.relation == r)) for r in (DUPLICATE, VARIANT, CONFLICT)]

    def part(self, chosen: Any) -> Edges:
        """Some of them: a mask, a slice or numbers."""
        return Edges(relation=self.relation[chosen], pairs=self.pairs.of(chosen))

    def named(self, rows: np.ndarray) -> Edges:
        """Positions replaced by fit rows; left is the one that ranks first."""
        pairs = self.pairs.replaced(left=rows[self.pairs.left], right=rows[self.pairs.right])
        return Edges(relation=self.relation, pairs=pairs)


def components(total: int, *ties: Ties) -> np.ndarray:
    """Number of each position's component: positions that are tied, over any way round, share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left = np.concatenate([np.empty(0, np.int64), *(t[0] for t in ties)])
    right = np.concatenate([np.empty(0, np.int64), *(t[1] for t in ties)])
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(total, total))
    return connected_components(graph, directed=False)[1].astype(np.int64) if total else np.empty(0, np.int64)


def spanning(bound: np.ndarray, parts: Sequence[Similar]) -> Similar:
    """The strongest pairs that tie components together, as few as do it (a maximum spanning forest).

    A template-dense set has millions of variants; these are the evidence from which its clusters can be found again.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    every = Similar.joined(parts)
    strength = np.fmax(every.whole, every.prompt)
    ends = np.sort(np.stack([bound[every.left], bound[every.right]], axis=1), axis=1)
    order = np.lexsort((every.right, every.left, -strength))
    order = order[ends[order, 0] != ends[order, 1]]
    total = int(bound.max(initial=0)) + 1
    codes = ends[order, 0] * total + ends[order, 1]
    # the strongest of each two components
    _, first = np.unique(codes, return_index=True)
    best = order[first]
    graph = coo_array((2.0 - strength[best], (ends[best, 0], ends[best, 1])), shape=(total, total))
    tree: Any = minimum_spanning_tree(graph.tocsr()).tocoo()
    chosen = np.isin(
        codes[first], np.minimum(tree.row, tree.col).astype(np.int64) * total + np.maximum(tree.row, tree.col)
    )
    return every.of(best[chosen])


def strongest(edges: Edges, total: int) -> np.ndarray:
    """For each position the number of its strongest duplicate edge, -1 without one."""
    numbers = np.flatnonzero(edges.relation == DUPLICATE)
    pairs = edges.pairs.of(numbers)
    strength = np.fmin(np.nan_to_num(pairs.prompt, nan=1.0), np.nan_to_num(pairs.response, nan=1.0))
    strength = np.where(np.isnan(pairs.response), pairs.whole, strength)
    ends, both = np.concatenate([pairs.left, pairs.right]), np.tile(numbers, 2)
    order = np.argsort(np.tile(strength, 2), kind="stable")
    out = np.full(total, -1, np.int64)
    # the strongest is written last
    out[ends[order]] = both[order]
    return out
