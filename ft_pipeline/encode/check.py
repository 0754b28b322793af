"""The judgement on a loss mask, from the statistics of the shards: what the blocking check `loss_mask` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_ENDED_SHARE = 0.99
"""Of the chat rows that were not cut: fewer, and the model does not learn to stop."""


def mask_fault(statistics: Mapping[str, Any], *, loss: str) -> str | None:
    """What is wrong with the mask, in one sentence with its cure; None when it can be trained on."""
    trained, tokens = statistics["trained_tokens"], statistics["tokens"]
    ended, whole = statistics["end_of_turn"]["supervised"], statistics["end_of_turn"]["rows"]
    if statistics.get("examples") == "prompt":
        return None
    if trained == 0:
        return "no token is trained: the template marks no assistant text"
    if statistics["chat_rows"] == statistics["rows_all_splits"] and loss == "assistant" and trained == tokens:
        return "every token is trained: the mask does not spare the user's turns"
    if loss == "assistant" and whole and ended < LEAST_ENDED_SHARE * whole:
        return (
            f"the end of the turn is trained in {ended} of {whole} conversations only, so the model would not learn to stop: "
            "move the stop token inside {% generation %} ... {% endgeneration %}"
        )
    return None
