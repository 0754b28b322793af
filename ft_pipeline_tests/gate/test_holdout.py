"""What a holdout row asks and how near an answer comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ft_pipeline.gate.holdout import METRICS, exact_match, rouge_l, task, token_f1


def test_the_last_assistant_turn_is_the_reference_and_what_came_before_is_asked() -> None:
    messages = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "bye"},
    ]  # fmt: skip
    found = task("r1", "chat", {"messages": messages, "tools": [{"name": "t"}]})
    assert found.reference == "d" and [m["content"] for m in found.messages] == ["s", "a", "b", "c"]
    assert all("weight" not in m for m in found.messages) and found.tools == [{"name": "t"}]


def test_other_shapes() -> None:
    assert task("r", "completion", {"prompt": "p", "completion": "c"}).prompt == "p"
    turn = [{"role": "user", "content": "p"}]
    for chosen in ("c", [{"role": "assistant", "content": "c"}]):
        found = task("r", "preference", {"prompt": turn, "chosen": chosen, "rejected": "x"})
        assert (found.messages, found.reference) == (tuple(turn), "c")
    assert task("r", "text", {"text": "t"}) is None
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert task("r", "chat", {"messages": [*turn, calls]}) is None


@pytest.mark.parametrize(("metric", "reference", "answer", "score"), [
    (exact_match, "zip file", " zip\n file ", 1.0), (exact_match, "zip", "Zip", 0.0), (exact_match, "e\u0301", "\u00e9", 1.0),
    (token_f1, "the quick fox", "quick the", 0.8), (token_f1, "a a b", "a", 0.5), (token_f1, "a", "", 0.0),
    (rouge_l, "the cat sat down", "the dog sat", 4 / 7), (rouge_l, "a b c", "c b a", 1 / 3), (rouge_l, "", "", 1.0),
])  # fmt: skip
def test_metrics(metric, reference, answer, score) -> None:
    assert metric(reference, answer) == pytest.approx(score)


@given(some.text(max_size=40), some.text(max_size=40), some.sampled_from(sorted(METRICS)))
def test_metrics_are_shares_and_the_same_text_is_perfect(one: str, other: str, name: str) -> None:
    assert 0 <= METRICS[name](one, other) <= 1
    assert METRICS[name](one, one) == 1
