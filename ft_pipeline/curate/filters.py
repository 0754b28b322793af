"""Every filter over a batch of valid rows, in one order: personal data first, because redaction changes the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ft_pipeline.curate.comparison import written
from ft_pipeline.curate.contamination import open_contamination
from ft_pipeline.curate.flags import Batch, Flag
from ft_pipeline.curate.language import language, open_language
from ft_pipeline.curate.pii import pii, redact
from ft_pipeline.curate.quality import quality
from ft_pipeline.curate.toxicity import open_toxicity, toxicity
from ft_pipeline.recipe import Curate


@dataclass(frozen=True, kw_only=True, slots=True)
class Filtered:
    """What the filters say of a batch."""

    batch: Batch
    """The rows, personal data redacted where the recipe says so."""
    flags: list[Flag]
    scores: Any
    """float32 [rows], 1 is best: of two duplicates the better one is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """The filters of a recipe with their word list, language model and benchmark indexes, opened once in each process."""

    config: Curate
    language: Any
    toxicity: Any
    contamination: Any

    def over(self, batch: Batch) -> Filtered:
        """Every flag of the batch."""
        flags, redacted = pii(batch, self.config.pii)
        if redacted:
            batch = _with_contents(batch, redacted)
        noise, scores = quality(batch, self.config.quality)
        flags += noise
        if self.language:
            flags += language(batch, self.config.language, self.language)
        if self.toxicity:
            flags += toxicity(batch, self.config.toxicity, self.toxicity)
        if self.contamination:
            flags += self.contamination.flags(batch)
        return Filtered(batch=batch, flags=flags, scores=scores)

    def masked(self, text: str) -> str:
        """A text for the ledger: without the personal data and the words that the filters look for."""
        text = text if self.config.pii.policy == "off" else redact(text)
        return self.toxicity.masked(text) if self.toxicity else text


def open_filters(config: Curate, *, words: Path | None, indexes: Sequence[Path]) -> Filters:
    """The filters of a recipe. `indexes`: folders of its benchmark indexes."""
    return Filters(
        config=config,
        language=open_language(config.language) if config.language.keep else None,
        toxicity=open_toxicity(words) if words else None,
        contamination=open_contamination(config.contamination, indexes) if indexes else None,
    )


def batch_of(shapes: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> Batch:
    """Rows as the filters read them."""
    sides = [written(shape, content) for shape, content in zip(shapes, contents, strict=True)]
    return Batch(shapes, contents, [s[0] for s in sides], [s[1] for s in sides])


def _with_contents(batch: Batch, changed: Mapping[int, Mapping[str, Any]]) -> Batch:
    contents, prompts, responses = list(batch.contents), list(batch.prompts), list(batch.responses)
    for row, content in changed.items():
        contents[row] = content
        prompts[row], responses[row] = written(batch.shapes[row], content)
    return replace(batch, contents=contents, prompts=prompts, responses=responses)
