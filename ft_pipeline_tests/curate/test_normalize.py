"""Every layout in use becomes one of four shapes, and what cannot says where."""

from __future__ import annotations

import pytest

from ft_pipeline.curate.artifact import Rejection
from ft_pipeline.curate.normalize import Normal, layout_of, normalize

U, A = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CASES = [
    ("chat", {"messages": [U, A]}, "chat", {"messages": [U, A]}),
    ("chat", {"messages": [{"role": "developer", "content": "s"}, U, A]}, "chat",
     {"messages": [{"role": "system", "content": "s"}, U, A]}),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, A]},
     "chat", {"messages": [U, A]}),
    ("chat", {"messages": [U, A | {"weight": 0.0, "other": 1}]}, "chat", {"messages": [U, A | {"weight": 0}]}),
    ("chat", {"messages": [U, {"role": "assistant", "content": None,
                               "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
                           {"role": "tool", "tool_call_id": "c1", "content": "2"}, A], "tools": [{"name": "f"}]},
     "chat", {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [CALL | {"id": "c1"}]},
                           {"role": "tool", "tool_call_id": "c1", "content": "2"}, A],
              "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "system": "s"},
     "chat", {"messages": [{"role": "system", "content": "s"}, U, A]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"},
                                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                                    {"from": "observation", "value": "2"}, {"from": "gpt", "value": "yo"}],
                  "tools": "[]"},
     "chat", {"messages": [U, A | {"tool_calls": [CALL]}, {"role": "tool", "content": "2"}, A]}),
    ("alpaca", {"instruction": "do", "input": "this", "output": "yo", "text": "rendered"},
     "chat", {"messages": [{"role": "user", "content": "do\n\nthis"}, A]}),
    ("alpaca", {"instruction": "hi", "input": "", "output": "yo", "history": [["hi", "yo"]]},
     "chat", {"messages": [U, A, U, A]}),
    ("prompt_completion", {"prompt": "a ", "completion": " b"}, "completion", {"prompt": "a ", "completion": " b"}),
    ("prompt_completion", {"question": "a", "answer": "b"}, "completion", {"prompt": "a", "completion": "b"}),
    ("prompt_completion", {"prompt": [U, A, U], "completion": [A]},
     "chat", {"messages": [U, A | {"weight": 0}, U, A]}),
    ("preference", {"prompt": "hi", "chosen": "yo", "rejected": "no"}, "preference",
     {"prompt": [U], "chosen": [A], "rejected": [{"role": "assistant", "content": "no"}]}),
    ("preference", {"chosen": [U, A], "rejected": [U, {"role": "assistant", "content": "no"}]}, "preference",
     {"prompt": [U], "chosen": [A], "rejected": [{"role": "assistant", "content": "no"}]}),
    ("preference", {"prompt": "hi", "chosen": [U, A], "rejected": [U, {"role": "assistant", "content": "no"}]}, "preference",
     {"prompt": [U], "chosen": [A], "rejected": [{"role": "assistant", "content": "no"}]}),
    ("preference", {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "yo"},
                    "rejected": {"from": "gpt", "value": "no"}}, "preference",
     {"prompt": [U], "chosen": [A], "rejected": [{"role": "assistant", "content": "no"}]}),
    ("preference", {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: no"}, "preference",
     {"prompt": [U], "chosen": [A], "rejected": [{"role": "assistant", "content": "no"}]}),
    ("text", {"text": "words", "meta": 1}, "text", {"text": "words"}),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "row", "shape", "content"), CASES)
def test_layouts(layout, row, shape, content):
    assert layout_of(row) == layout
    for asked in ("auto", layout):
        assert normalize(row, asked) == Normal(layout=layout, shape=shape, content=content)


@pytest.mark.parametrize(
    ("row", "reason", "path"),
    [
        ({"question": "a"}, "unknown_layout", ""),
        ({"messages": "hi"}, "wrong_type", "messages"),
        ({"messages": []}, "wrong_type", "messages"),
        ({"messages": [U, "yo"]}, "wrong_type", "messages[1]"),
        ({"messages": [U, {"role": "asistant", "content": "x"}]}, "unknown_role", "messages[1].role"),
        ({"messages": [{"content": "x"}]}, "wrong_type", "messages[0].role"),
        ({"messages": [U, {"role": "assistant", "content": 7}]}, "wrong_type", "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, A]}, "wrong_type", "messages[0].content"),
        ({"messages": [U, A | {"weight": 0.5}]}, "wrong_type", "messages[1].weight"),
        ({"messages": [U, A], "tools": "{"}, "wrong_type", "tools"),
        ({"messages": [U, A | {"tool_calls": [{"function": {}}]}]}, "wrong_type", "messages[1].tool_calls[0]"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "wrong_type", "conversations[0].content"),
        ({"prompt": 3, "completion": "b"}, "wrong_type", "prompt"),
        ({"chosen": "a", "rejected": "b"}, "missing_prompt", "prompt"),
        ({"text": ["a"]}, "wrong_type", "text"),
    ],
)
def test_what_cannot_be_read_says_where(row, reason, path):
    found = normalize(row, "auto")
    assert isinstance(found, Rejection)
    assert (found.reason, found.path) == (reason, path)


def test_a_pinned_layout_refuses_the_others():
    found = normalize({"prompt": "a", "completion": "b"}, "chat")
    assert isinstance(found, Rejection)
    assert found.value == "prompt_completion, not chat: keys completion, prompt"


def test_an_empty_system_turn_is_left_out_and_written_down():
    found = normalize({"messages": [{"role": "system", "content": " "}, U, A]}, "auto")
    assert isinstance(found, Normal)
    assert found.content == {"messages": [U, A]}
    assert [c.reason for c in found.changes] == ["empty_system"]
