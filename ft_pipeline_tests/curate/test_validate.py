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
TWO_CALLS = A | {
    "tool_calls": [*CALL["tool_calls"], {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {}}}]
}
CALL_WITH_TOKEN = A | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a</s>": 1}}}]}


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
        chat(U, TWO_CALLS, TOOL | {"tool_call_id": "c2"}, TOOL | {"tool_call_id": "c1"}, A),
        chat(U, TWO_CALLS, TOOL, A),
        chat(U, CALL, TOOL, CALL),
        chat(U | {"content": "\u00c9t\u00e9 \u2013 \u00ab voil\u00e0\u2026\u00bb"}, A | {"reasoning_content": "hm"}),
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
        (chat(U, CALL, U, A), ("tool_call_without_result", "messages[1].tool_calls")),
        (chat(U, BARE_CALL, A), ("tool_call_without_result", "messages[1].tool_calls")),
        (chat(U, TWO_CALLS, TOOL | {"tool_call_id": "c1"}, A), ("tool_call_without_result", "messages[1].tool_calls")),
        (chat(U | {"content": "caf\u00c3\u00a9"}, A), ("mojibake", "messages[0].content")),
        (chat(U, A | {"reasoning_content": "so </s>"}), ("control_token", "messages[1].reasoning_content")),
        (chat(U, CALL_WITH_TOKEN), ("control_token", "messages[1].tool_calls[0].function.arguments key")),
        (chat(S), ("no_final_assistant", "messages[0].role")),
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
        ("kto", {"prompt": [S, U], "completion": [A], "label": True}, None),
        ("kto", {"prompt": [U, CALL, TOOL], "completion": [A], "label": True}, None),
        ("kto", {"prompt": [U, A], "completion": [A], "label": True}, ("role_order", "prompt[1].role")),
        ("kto", {"prompt": [U], "completion": [U], "label": True}, ("role_order", "completion[0].role")),
        ("kto", {"prompt": [U], "completion": [A, U], "label": True}, ("no_final_assistant", "completion[1].role")),
        (
            "kto",
            {"prompt": [U], "completion": [A | {"content": ""}], "label": False},
            ("empty_turn", "completion[0].content"),
        ),
        ("rlvr", {"prompt": [S, U], "answer": "4"}, None),
        ("rlvr", {"prompt": [U, A], "answer": "4"}, ("role_order", "prompt[1].role")),
        ("rlvr", {"prompt": [S], "answer": "4"}, ("role_order", "prompt[0].role")),
        ("rlvr", {"prompt": [U], "answer": " "}, ("empty_text", "answer")),
        ("rlvr", {"prompt": [U], "answer": "4</s>"}, ("control_token", "answer")),
        ("stepwise", {"prompt": [U], "steps": ["a", "b"], "labels": [True, False]}, None),
        ("stepwise", {"prompt": [U], "steps": ["a", "b"], "labels": [True]}, ("step_labels", "labels")),
        ("stepwise", {"prompt": [U], "steps": ["a", "\n"], "labels": [True, True]}, ("empty_step", "steps[1]")),
        ("stepwise", {"prompt": [U], "steps": [], "labels": []}, ("empty_step", "steps")),
        ("stepwise", {"prompt": [U], "steps": ["a</s>"], "labels": [True]}, ("control_token", "steps[0]")),
        ("stepwise", {"prompt": [U, A], "steps": ["a"], "labels": [True]}, ("role_order", "prompt[1].role")),
        ("text", {"text": "a\ufffdb"}, ("mojibake", "text")),
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


def test_tokens_of_any_spelling_are_seen_at_first_sight():
    """The look at the whole row may clear no row that a look at each text would not."""
    for token in ("<|im_start|>", "[INST]", "\u2581<s>", "a\nb", "\\n", '"'):
        control = ControlTokens(("<|im_end|>", "<|im_start|>", "[INST]", "[/INST]", "\u2581<s>", "a\nb", "\\n", '"'))
        for content in (chat(U, A | {"content": f"x{token}y"}), chat(U, A, tools=[{"function": {f"k{token}": {}}}])):
            assert reason_to_reject("chat", content, control).reason == "control_token"


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
