"""What a filter says about a row: a flag. Filters drop nothing; consolidate does, and writes the flag into the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.validate import FIXED_KEYS

Action = Literal["drop", "change", "note"]
"""note: the row stays as it is, and the flag is only counted and kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One finding of one filter in one row."""

    row: int
    """Position in the batch."""
    filter: str
    """quality, language, pii, toxicity or contamination."""
    action: Action
    reason: Reason
    evidence: Mapping[str, Any]
    """JSON values: the rule, the path, the span, what stands there (secrets and personal data masked)."""


@dataclass(frozen=True)
class Batch:
    """Validated rows of one block, side by side. Texts are as the dataset has them: not lower case, not normalised."""

    shapes: Sequence[str]
    contents: Sequence[Mapping[str, Any]]
    prompts: Sequence[str]
    """All that is not trained on, turns joined by a line break. Empty for plain text."""
    responses: Sequence[str]
    """All that is."""

    @cached_property
    def texts(self) -> list[str]:
        """Prompt, line break, response."""
        return [f"{p}\n{r}" if p else r for p, r in zip(self.prompts, self.responses, strict=True)]

    @cached_property
    def wholes(self) -> list[str]:
        """Every text of a row as it stands there, joined by line breaks: tool arguments unescaped, tool descriptions, names, keys."""
        return ["\n".join(_every_text(content, [])) for content in self.contents]


def _every_text(value: Any, found: list[str]) -> list[str]:
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(key, str) and key not in FIXED_KEYS:
            found.append(key)
        if isinstance(inner, str):
            found.append(inner)
        elif isinstance(inner, Mapping | list):
            _every_text(inner, found)
    return found
