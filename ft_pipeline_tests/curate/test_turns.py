"""Turns that arrive in odd shapes: refused with a place, never an exception, never lost words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.curate.artifact import Rejection
from ft_pipeline.curate.normalize import CONVERSIONS, Normal, normalize
from ft_pipeline.curate.turns import Refused, turns
from ft_pipeline.curate.validate import ControlTokens, as_json, escape, reason_to_reject

CONTROL = ControlTokens(("<|end|>", "</s>"))
KEYS = (
    "messages", "conversations", "conversation", "system", "tools", "instruction", "input", "output", "history", "prompt", "completion",
    "question", "answer", "text", "chosen", "rejected", "label", "kto_tag", "ground_truth", "reward_model", "images",
    "completions", "steps", "labels",
)  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from(["", "a", "</s>", '{"a": NaN}', "[1]", "\x00"]),
)
TURN = st.dictionaries(
    st.sampled_from(["role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name", "weight", "thinking", "type", "text"]),
    st.one_of(LEAVES, st.sampled_from(["user", "assistant", "tool", "system", "function_call"]), st.lists(st.dictionaries(st.sampled_from(["type", "text", "function", "name", "arguments", "id"]), LEAVES))),
)  # fmt: skip
VALUES = st.one_of(LEAVES, st.lists(TURN, max_size=4), TURN)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.sampled_from(["auto", *CONVERSIONS]))
def test_no_row_whatever_raises(row, layout):
    made = normalize(row, layout)
    if isinstance(made, Rejection):
        json.loads(made.evidence())
        return
    assert isinstance(made, Normal)
    content, _ = escape(made.content, CONTROL)
    if reason_to_reject(made.shape, content, CONTROL) is None:
        assert json.loads(as_json(content)) == content


@pytest.mark.parametrize("levels", [100, 900, 980, 985, 990, 995])
def test_nesting_without_end_is_a_reason_too(levels):
    nested: list = []
    for _ in range(levels):
        nested = [nested]
    found = normalize({"messages": [{"role": "user", "content": nested}]}, "auto")
    assert isinstance(found, Rejection)
    assert found.reason == "wrong_type"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_stays_with_its_turn(key):
    call = {"function": {"name": "f", "arguments": "{}"}}
    made = turns([{"role": "assistant", "content": None, key: "first I look", "tool_calls": [call]}], "messages")
    assert made[0]["reasoning_content"] == "first I look"
    assert made[0]["tool_calls"][0]["function"]["name"] == "f"


def test_roles_are_read_in_any_case():
    made = turns([{"role": " User", "content": "a"}, {"role": "ASSISTANT", "content": "b"}], "messages")
    assert [t["role"] for t in made] == ["user", "assistant"]


def test_a_reasoning_of_another_type_is_refused():
    with pytest.raises(Refused) as caught:
        turns([{"role": "assistant", "content": "a", "thinking": {"steps": 3}}], "messages")
    assert caught.value.rejection.path == "messages[0].thinking"
