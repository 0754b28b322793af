"""Every layout in use becomes one of six shapes, and what cannot says where."""

from __future__ import annotations

import datetime

import pytest

from ft_pipeline.curate.artifact import Rejection
from ft_pipeline.curate.normalize import Normal, layout_of, normalize

U, A = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def deep(levels):
    return {"x": deep(levels - 1)} if levels else 1


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
    ("chat", {"messages": [U, A | {"reasoning_content": "hm", "thinking": None}]}, "chat",
     {"messages": [U, A | {"reasoning_content": "hm"}]}),
    ("chat", {"messages": [U, A | {"thinking": "hm"}]}, "chat", {"messages": [U, A | {"reasoning_content": "hm"}]}),
    ("chat", {"messages": [U | {"reasoning_content": ""}, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yo"}]}]}, "chat",
     {"messages": [U, A | {"reasoning_content": "hm"}]}),
    ("chat", {"messages": [U, A], "answer": "yo", "images": []}, "chat", {"messages": [U, A]}),
    ("chat", {"messages": [U, A], "label": 3}, "chat", {"messages": [U, A]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "system_prompt": "s"},
     "chat", {"messages": [{"role": "system", "content": "s"}, U, A]}),
    ("prompt_completion", {"system_prompt": "s", "question": "hi", "response": "yo"},
     "chat", {"messages": [{"role": "system", "content": "s"}, U, A]}),
    ("prompt_completion", {"prompt": "hi", "completion": "yo", "tools": [{"name": "f"}]},
     "chat", {"messages": [U, A], "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("prompt_completion", {"prompt": "hi", "completion": "yo", "tools": "[]", "system": ""}, "completion",
     {"prompt": "hi", "completion": "yo"}),
    ("prompt_completion", {"prompt": [U], "response": "yo"}, "chat", {"messages": [U, A]}),
    ("prompt_completion", {"question": "a", "answer": "b", "label": True}, "completion", {"prompt": "a", "completion": "b"}),
    ("prompt_completion", {"prompt": "a", "completion": "b", "ground_truth": "b"}, "completion", {"prompt": "a", "completion": "b"}),
    ("prompt_completion", {"problem": "a", "solution": "b", "answer": "c"}, "completion", {"prompt": "a", "completion": "b"}),
    ("preference", {"instruction": "hi", "input": "", "history": [["hi", "yo"]], "chosen": "yo", "rejected": "no"}, "preference",
     {"prompt": [U, A, U], "chosen": [A], "rejected": [{"role": "assistant", "content": "no"}]}),
    ("kto", {"prompt": "hi", "completion": "yo", "label": True}, "kto", {"prompt": [U], "completion": [A], "label": True}),
    ("kto", {"prompt": [U, A, U], "completion": [A], "label": False, "tools": [{"name": "f"}]}, "kto",
     {"prompt": [U, A, U], "completion": [A], "label": False, "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("kto", {"messages": [U, A, U, A], "label": False}, "kto", {"prompt": [U, A, U], "completion": [A], "label": False}),
    ("kto", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "kto_tag": True, "system": "s"},
     "kto", {"prompt": [{"role": "system", "content": "s"}, U], "completion": [A], "label": True}),
    ("kto", {"instruction": "hi", "input": "", "output": "yo", "kto_tag": False}, "kto",
     {"prompt": [U], "completion": [A], "label": False}),
    ("rlvr", {"messages": [U], "ground_truth": "4", "dataset": "gsm8k"}, "rlvr", {"prompt": [U], "answer": "4"}),
    ("rlvr", {"prompt": [{"role": "system", "content": "s"}, U], "solution": "$4$"}, "rlvr",
     {"prompt": [{"role": "system", "content": "s"}, U], "answer": "$4$"}),
    ("rlvr", {"data_source": "math", "prompt": [U], "reward_model": {"style": "rule", "ground_truth": 4}}, "rlvr",
     {"prompt": [U], "answer": "4"}),
    ("rlvr", {"problem": "hi", "ground_truth": 0.5}, "rlvr", {"prompt": [U], "answer": "0.5"}),
    ("stepwise", {"prompt": "hi", "completions": ["a", "b"], "labels": [True, False]}, "stepwise",
     {"prompt": [U], "steps": ["a", "b"], "labels": [True, False]}),
    ("stepwise", {"problem": "hi", "steps": ["a"], "labels": [False], "answer": "4", "system": "s"}, "stepwise",
     {"prompt": [{"role": "system", "content": "s"}, U], "steps": ["a"], "labels": [False]}),
    ("stepwise", {"prompt": [U, A, U], "steps": ["a"], "labels": [True], "tools": [{"name": "f"}]}, "stepwise",
     {"prompt": [U, A, U], "steps": ["a"], "labels": [True], "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("text", {"text": "words", "image": "a.png"}, "text", {"text": "words"}),
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
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]}, A]},
         "image", "messages[0].content[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, A]}, "wrong_type", "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "<image>hi"}, A], "images": ["a.png"]}, "image", "images"),
        ({"messages": [U | {"reasoning_content": "hm"}, A]}, "wrong_type", "messages[0].reasoning_content"),
        ({"messages": [U, A | {"weight": 0.5}]}, "wrong_type", "messages[1].weight"),
        ({"messages": [U, A], "tools": "{"}, "wrong_type", "tools"),
        ({"messages": [U, A | {"tool_calls": [{"function": {}}]}]}, "wrong_type", "messages[1].tool_calls[0]"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "wrong_type", "conversations[0].content"),
        ({"messages": [U, A | {"tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}]}]},
         "duplicate_key", "messages[1].tool_calls[0].arguments.x"),
        ({"messages": [U, A | {"tool_calls": [{"function": {"name": "f", "arguments": '{"x": NaN}'}}]}]},
         "wrong_type", "messages[1].tool_calls[0].arguments"),
        ({"messages": [U, A | {"tool_calls": [{"function": {"name": "f", "arguments": {"x": [1e999]}}}]}]},
         "wrong_type", "messages[1].tool_calls[0].arguments.x[0]"),
        ({"messages": [U, A], "tools": [{"name": "f", "parameters": {"day": datetime.date(2026, 1, 2)}}]},
         "wrong_type", "tools[0].parameters.day"),
        ({"messages": [U, A], "tools": [{"name": "f", "parameters": deep(100)}]}, "wrong_type", "tools[0].parameters" + ".x" * 63),
        ({"chosen": [U], "rejected": [U], "prompt": [U]}, "no_final_assistant", "chosen"),
        ({"messages": [A], "label": True}, "missing_prompt", "prompt"),
        ({"prompt": [U], "ground_truth": ["4"]}, "wrong_type", "ground_truth"),
        ({"prompt": [U], "reward_model": {"ground_truth": None}}, "wrong_type", "reward_model.ground_truth"),
        ({"prompt": 3, "completion": "b"}, "wrong_type", "prompt"),
        ({"chosen": "a", "rejected": "b"}, "missing_prompt", "prompt"),
        ({"text": ["a"]}, "wrong_type", "text"),
        ({"prompt": "a", "completions": ["b"], "labels": [1]}, "wrong_type", "labels[0]"),
        ({"prompt": "a", "completions": ["b", 3], "labels": [True, True]}, "wrong_type", "completions[1]"),
        ({"prompt": "a", "completions": ["b"], "labels": True}, "unknown_layout", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_where(row, reason, path):
    found = normalize(row, "auto")
    assert isinstance(found, Rejection)
    assert (found.reason, found.path) == (reason, path)


def test_a_pinned_layout_refuses_the_others():
    found = normalize({"prompt": "a", "completion": "b"}, "chat")
    assert isinstance(found, Rejection)
    assert found.value == "prompt_completion, not chat: keys completion, prompt"


@pytest.mark.parametrize(
    ("layout", "row", "shape", "content"),
    [
        ("rlvr", {"question": "hi", "answer": "so\n#### 4"}, "rlvr", {"prompt": [U], "answer": "so\n#### 4"}),
        ("rlvr", {"problem": "hi", "solution": "so", "answer": "4"}, "rlvr", {"prompt": [U], "answer": "4"}),
        ("prompt_completion", {"prompt": "a", "completion": "b", "messages": [U]}, "completion", {"prompt": "a", "completion": "b"}),
        ("kto", {"question": "hi", "answer": "yo", "label": True}, "kto", {"prompt": [U], "completion": [A], "label": True}),
        ("sharegpt", {"messages": [A], "conversations": [U, A]}, "chat", {"messages": [U, A]}),
        ("text", {"text": "words", "messages": [U, A]}, "text", {"text": "words"}),
    ],
)  # fmt: skip
def test_a_pinned_layout_takes_what_has_its_keys(layout, row, shape, content):
    assert layout_of(row) != layout
    assert normalize(row, layout) == Normal(layout=layout, shape=shape, content=content)


@pytest.mark.parametrize("label", [1, "true"])
def test_a_label_is_a_truth_value(label):
    found = normalize({"prompt": "a", "completion": "b", "label": label}, "kto")
    assert isinstance(found, Rejection)
    assert (found.reason, found.path) == ("wrong_type", "label")


def test_a_row_of_an_empty_system_turn_alone_is_not_emptied():
    found = normalize({"messages": [{"role": "system", "content": ""}]}, "auto")
    assert isinstance(found, Normal)
    assert found.content["messages"] == [{"role": "system", "content": ""}]


def test_an_empty_system_turn_is_left_out_and_written_down():
    found = normalize({"messages": [{"role": "system", "content": " "}, U, A]}, "auto")
    assert isinstance(found, Normal)
    assert found.content == {"messages": [U, A]}
    assert [c.reason for c in found.changes] == ["empty_system"]
