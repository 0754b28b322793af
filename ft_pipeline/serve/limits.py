"""How much one server takes at once: rows in a batch, tokens in memory, requests that wait, bytes of a body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Sized(Protocol):
    """A row, as far as limits are concerned."""

    prompt_tokens: list[int]

    @property
    def most_tokens(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Habits of a small machine. They change no answer, only who waits."""

    max_rows: int = 32
    """Rows that decode together."""
    max_batch_tokens: int = 131_072
    """Rows times the longest prompt and answer of any: what the key-value cache may have to hold."""
    max_prefill_tokens: int = 4096
    """Padded prompt tokens that join in one step: running answers stand still while prompts are read."""
    max_waiting: int = 256
    """Requests that wait for a row; the next is told to come back (429)."""
    retry_after_seconds: int = 1
    max_adapters: int = 128
    """In memory. Production adapters are pinned and may exceed it; the others leave, least recently used first."""
    max_body_bytes: int = 4 * 2**20
    drain_seconds: int = 120
    """After SIGTERM, for answers that run; Kubernetes kills after its own grace period."""

    @property
    def max_in_flight(self) -> int:
        """Requests that decode or wait, over all bases of the process."""
        return self.max_rows + self.max_waiting

    def fits(self, most_tokens: int, running: Sequence[Sized], joining: Sequence[Any]) -> bool:
        """True when one more row may join. A row that exceeds a limit alone joins alone."""
        rows = [*running, *joining]
        if not rows:
            return True
        if len(rows) >= self.max_rows:
            return False
        longest = max(most_tokens, *(row.most_tokens for row in rows))
        if (len(rows) + 1) * longest > self.max_batch_tokens:
            return False
        widest = max((len(row.prompt_tokens) for row in joining), default=0)
        return not joining or (len(joining) + 1) * widest <= self.max_prefill_tokens
