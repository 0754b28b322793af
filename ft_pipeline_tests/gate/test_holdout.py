"""What a holdout row asks."""

from __future__ import annotations

from ft_pipeline.gate.holdout import task


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
