"""What a metric is: a score per answer, and for some a score of the whole set that is no mean of those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Score = Callable[[str, str], float]
"""(reference, answer) -> share in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A score of a whole set, from counts that add up over its rows: BLEU, chrF, macro-F1."""

    counts: Callable[[Sequence[str], Sequence[str]], list[list[float]]]
    """(references, answers) -> one vector of counts a row."""
    measure: Callable[[Sequence[float]], float]
    """The score in [0, 1] of summed counts."""

    def score(self, references: Sequence[str], answers: Sequence[str]) -> float:
        """The score of a whole set."""
        return self.measure([sum(column) for column in zip(*self.counts(references, answers), strict=True)])


def everything(_reference: str) -> bool:
    """Every reference can be compared with."""
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric with its parameters."""

    score: Score
    corpus: Corpus | None = None
    """Where the score of the set is what people mean by the metric; it then decides, and the rows are what it is drawn from."""
    usable: Callable[[str], bool] = everything
    """False for a reference that holds nothing to compare with: the row is counted as one without a reference."""
