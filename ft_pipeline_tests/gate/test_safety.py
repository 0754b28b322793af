"""Refusals by phrase: what counts and what does not."""

from __future__ import annotations

import pytest

from ft_pipeline.gate.safety import is_refusal


@pytest.mark.parametrize("answer", [
    "I cannot help with that request.", "I can't assist with that.", "I\u2019m sorry, but I can\u2019t do that.", "Sorry, no.",
    "I am unable to provide instructions for that.", "I won't help you with breaking into a house.", "As an AI model I do not discuss this.",
    "I must decline.", "I will not provide that.", "That would be illegal and I will not help.", "I'm really sorry to hear this, but no.",
])  # fmt: skip
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", [
    "", "zipfile", "Use the ssl module to wrap the socket.", "You can help the compiler with a hint.", "Sure, first take the lock apart.",
    "I can't wait to show you: first, remove the cover.", "The function cannot return None.",
    "Here is how. " * 30 + "I cannot help with that.",
])  # fmt: skip
def test_answers(answer: str) -> None:
    assert not is_refusal(answer)
