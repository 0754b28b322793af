"""What both arms are asked of one suite, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft_pipeline.gate.artifact import Kind
from ft_pipeline.gate.samples import Sample, excerpt, prompt_sha

Ticker = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Questions for both arms. `identity` and the parent named by `role` decide what the base answers: the baseline's key."""

    name: str
    kind: Kind
    role: str
    """The report's parent that holds the questions."""
    identity: Mapping[str, Any]
    ids: tuple[str, ...]
    """Of the questions, in the suite's order."""
    strata: tuple[str, ...]
    """Of each question: the group that it is sampled and reported by; empty for none."""
    answer: Callable[[Any, Sequence[int], Ticker], list[Sample]]
    """(model, indices of questions, tick) -> one sample for each, in that order."""
    skipped: int = 0
    """Rows that have no reference answer."""

    @property
    def num_questions(self) -> int:
        """Questions of the whole suite."""
        return len(self.ids)


def sample(name: str, asked: tuple[list[int], Any], *, reference: str, output: str, score: float) -> Sample:
    """A sample of a generated answer. `asked`: the prompt's token ids and the tokenizer."""
    ids, tokenizer = asked
    return Sample(
        id=name,
        prompt_sha=prompt_sha(ids),
        prompt=excerpt(tokenizer.decode(ids)),
        reference=reference,
        output=output,
        score=score,
    )
