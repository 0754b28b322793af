"""The first reason against a row, with its place; control tokens refused or broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.curate.validate import ControlTokens, escape, reason_to_reject

CONTROL = ControlTokens(("<|end|>", "<|end|>x", "</s>", "#"))
S, U, A = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
TOOL = {"role": "tool", "content": "2"}
CALL = A | {"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}]}
BARE_CALL = A | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}


def chat(*messages, **more):
    return {"messages": list(messages), **more}


def reason(shape, content):
    found = reason_to_reject(shape, content, CONTROL)
    return found and (found.reason.value, found.path)


@pytest.mark.parametrize(
    "content",
    [
        chat(U, A),
        chat(S, U, A, U, A),
        chat(U, CALL, TOOL, A),
        chat(U, CALL, TOOL | {"tool_call_id": "c1"}, TOOL | {"tool_call_id": "c1"}, A),
        chat(U, BARE_CALL, TOOL | {"tool_call_id": "any"}, A),
        chat(U, CALL | {"content": ""}),
        chat(U, A | {"weight": 0}, U, A),
    ],
)
def test_fit_conversations(content):
    assert reason("chat", content) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (chat(A, U), ("role_order", "messages[0].role")),
        (chat(U, U, A), ("role_order", "messages[1].role")),
        (chat(U, A, A), ("role_order", "messages[2].role")),
        (chat(U, S, A), ("role_order", "messages[1].role")),
        (chat(U, CALL, TOOL, U, A), ("role_order", "messages[3].role")),
        (chat(U, A, U), ("no_final_assistant", "messages[2].role")),
        (chat(U, A | {"content": "  \n"}), ("empty_turn", "messages[1].content")),
        (chat(U | {"content": ""}, A), ("empty_turn", "messages[0].content")),
        (chat(U, A, TOOL, A), ("tool_result_without_call", "messages[2]")),
        (chat(U, CALL, TOOL | {"tool_call_id": "c2"}, A), ("tool_result_without_call", "messages[2]")),
        (chat(U, A | {"weight": 0}), ("nothing_to_train", "messages")),
        (chat(U | {"content": "a<|end|>b"}, A), ("control_token", "messages[0].content")),
        (chat(U, A, tools=[{"function": {"description": "</s>"}}]), ("control_token", "tools[0].function.description")),
        (chat(U, A, tools=[{"function": {"</s>": 1}}]), ("control_token", "tools[0].function key")),
        (chat(U | {"content": "a\x00"}, A), ("nul_character", "messages[0].content")),
        (chat(U | {"content": "a\ud800"}, A), ("invalid_utf8", "messages[0].content")),
    ],
)
def test_unfit_conversations(content, expected):
    assert reason("chat", content) == expected


@pytest.mark.parametrize(
    ("shape", "content", "expected"),
    [
        ("completion", {"prompt": "a", "completion": "b"}, None),
        ("completion", {"prompt": "a", "completion": " "}, ("empty_turn", "completion")),
        ("text", {"text": "x"}, None),
        ("text", {"text": "\n"}, ("empty_text", "text")),
        ("preference", {"prompt": [U], "chosen": [A], "rejected": [A | {"content": "no"}]}, None),
        ("preference", {"prompt": [U], "chosen": [A], "rejected": [A]}, ("same_answers", "rejected")),
        ("preference", {"prompt": [A], "chosen": [A], "rejected": [U]}, ("role_order", "prompt[0].role")),
        ("preference", {"prompt": [U], "chosen": [A], "rejected": [U]}, ("role_order", "rejected[0].role")),
        ("preference", {"prompt": [U], "chosen": [A, U], "rejected": [A]}, ("no_final_assistant", "chosen")),
    ],
)
def test_other_shapes(shape, content, expected):
    assert reason(shape, content) == expected


def test_escape_breaks_every_control_token_and_says_so():
    content = chat(U | {"content": "a<|end|>b</s>"}, A)
    broken, found = escape(content, CONTROL)
    assert broken["messages"][0]["content"] == "a<\u200b|end|>b<\u200b/s>"
    assert [(f.path, f.value) for f in found] == [("messages[0].content", "<|end|>")]
    assert content["messages"][0]["content"] == "a<|end|>b</s>"
    assert reason("chat", broken) is None


def test_a_control_token_of_one_character_cannot_be_broken():
    broken, found = escape(chat(U | {"content": "#"}, A), CONTROL)
    assert found == ()
    assert reason("chat", broken) == ("control_token", "messages[0].content")


@given(st.text(alphabet="<|end>xs/ a", max_size=40))
def test_escaped_text_holds_no_control_token_and_reads_the_same(text):
    control = ControlTokens(("<|end|>", "<|end|>x", "</s>", "<<", "ss"))
    broken = control.escaped(text)
    assert broken.replace("\u200b", "") == text
    assert all(token not in broken for token in ("<|end|>", "</s>"))
