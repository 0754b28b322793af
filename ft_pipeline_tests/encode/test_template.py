"""Which tokens are trained, seen as text: three roads to the same mask, and the rows that have none."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.encode.chat import trl_training_template
from ft_pipeline.encode.spans import token_spans
from ft_pipeline.encode.template import Rejected, Template, load_template, refuse_long_windows
from ft_pipeline.errors import DataError
from ft_pipeline_tests import tiny

TURNS = [
    {"role": "user", "content": "which module is it? zipfile"},
    {"role": "assistant", "content": "zipfile"},
    {"role": "user", "content": "again?"},
    {"role": "assistant", "content": "\nzipfile, I said"},
]
REWRITING = tiny.PLAIN_TEMPLATE.replace(
    "<|assistant|>{{ message['content'] or '' }}",
    "<|assistant|>{% if not loop.last %}(earlier) {% endif %}{{ message['content'] or '' }}",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    templates = {"marked": tiny.TEMPLATE, "plain": tiny.PLAIN_TEMPLATE, "rewriting": REWRITING}
    return {name: tiny.tokenizer_folder(root / name, template=text) for name, text in templates.items()}


def trained(template: Template, shape: str, content: dict) -> tuple[str, list[str]]:
    """The row's text and the trained pieces."""
    rendered = template.render(shape, content)
    assert not isinstance(rendered, Rejected), rendered
    row = template.encode([rendered])[0]
    pieces, piece = [], []
    for token, on in [*zip(row.ids, row.mask, strict=True), (None, False)]:
        if on:
            piece.append(token)
        elif piece:
            pieces.append(template.tokenizer.decode(piece))
            piece = []
    return template.tokenizer.decode(row.ids), pieces


@pytest.mark.parametrize("name", ["marked", "plain"])
def test_every_assistant_turn_with_its_end_of_turn_token_is_trained_and_nothing_else(folders, name):
    _, pieces = trained(load_template(folders[name], loss="assistant"), "chat", {"messages": TURNS})
    assert pieces == ["zipfile<|end|>", "\nzipfile, I said<|end|>"]


@pytest.mark.parametrize("name", ["marked", "plain"])
def test_ids_are_those_that_the_model_will_see_in_production(folders, name):
    template = load_template(folders[name], loss="assistant")
    row = template.encode([template.render("chat", {"messages": TURNS})])[0]
    assert row.ids == template.tokenizer.apply_chat_template(TURNS, return_dict=False)
    assert row.ends


def test_a_turn_that_the_template_rewrites_later_is_context_and_the_last_is_trained(folders):
    template = load_template(folders["rewriting"], loss="assistant")
    assert trained(template, "chat", {"messages": TURNS[:2]})[1] == ["zipfile<|end|>"]
    text, pieces = trained(template, "chat", {"messages": TURNS})
    assert "<|assistant|>(earlier) zipfile<|end|>" in text and pieces == ["\nzipfile, I said<|end|>"]
    changed = template.render("chat", {"messages": TURNS}).changed
    assert (changed.reason, changed.evidence) == ("rewritten_turns_not_trained", {"turns": [1]})


def test_a_tool_call_that_the_template_rewrites_later_rejects_the_row(folders):
    call = {"type": "function", "function": {"name": "find", "arguments": {}}}
    turns = [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}, *TURNS[2:]]
    rejected = load_template(folders["rewriting"], loss="assistant").render("chat", {"messages": turns})
    assert (rejected.reason, rejected.evidence["turns"]) == ("assistant_spans_not_found", [1])


def test_a_turn_of_weight_0_is_context_only(folders):
    turns = [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]
    _, pieces = trained(load_template(folders["marked"], loss="assistant"), "chat", {"messages": turns})
    assert pieces == ["\nzipfile, I said<|end|>"]


def test_loss_all_trains_every_token_but_the_first(folders):
    text, pieces = trained(load_template(folders["marked"], loss="all"), "chat", {"messages": TURNS})
    assert pieces == [text.removeprefix("<|user|>")]


def test_tool_calls_are_rendered_and_trained(folders):
    call = {"type": "function", "function": {"name": "find", "arguments": '{"name": "zip"}'}}
    turns = [
        TURNS[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "find", "content": "zipfile"},
        TURNS[1],
    ]
    template = load_template(folders["marked"], loss="assistant")
    text, pieces = trained(template, "chat", {"messages": turns, "tools": [{"name": "find"}]})
    assert text.startswith('<|system|>[{"name": "find"}]<|end|>')
    assert '"arguments": {"name": "zip"}' in pieces[0] and pieces[1] == "zipfile<|end|>"


def test_a_tool_call_that_the_template_leaves_out_is_rejected(folders, tmp_path):
    mute = tiny.TEMPLATE.replace("{{ message['tool_calls'] | tojson }}", "")
    template = load_template(tiny.tokenizer_folder(tmp_path / "mute", template=mute), loss="assistant")
    call = {"type": "function", "function": {"name": "find", "arguments": {}}}
    row = {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert template.render("chat", row).reason == "tool_call_not_rendered"


def test_text_rows_train_everything_and_end(folders):
    text, pieces = trained(load_template(folders["marked"], loss="assistant"), "text", {"text": "the quick brown fox"})
    assert text == "the quick brown fox<|end|>" and text.endswith(pieces[0]) and len(pieces) == 1


def test_completions_train_the_answer_and_the_end(folders):
    row = {"prompt": "which module?", "completion": " zipfile"}
    assert trained(load_template(folders["marked"], loss="assistant"), "completion", row)[1] == [" zipfile<|end|>"]


def test_letters_of_several_bytes_are_trained_whole(folders):
    turns = [TURNS[0], {"role": "assistant", "content": "\u00fc\u6f22 \U0001f600"}]
    _, pieces = trained(load_template(folders["marked"], loss="assistant"), "chat", {"messages": turns})
    assert pieces == ["\u00fc\u6f22 \U0001f600<|end|>"]


def test_a_message_that_the_template_refuses_is_a_rejected_row(folders, tmp_path):
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + tiny.TEMPLATE
    template = load_template(tiny.tokenizer_folder(tmp_path / "strict", template=strict), loss="assistant")
    rejected = template.render("chat", {"messages": TURNS[1:]})
    assert (rejected.reason, rejected.evidence) == ("template_error", {"error": "user first"})


def test_preference_rows_are_rejected_with_a_reason(folders):
    row = {"prompt": [], "chosen": [], "rejected": []}
    assert load_template(folders["marked"], loss="assistant").render("preference", row).reason == "shape_not_trainable"


def test_trl_training_template_is_found_by_exact_text():
    import importlib.util

    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    known = (folder / "qwen2_5.jinja").read_text(encoding="utf-8")
    assert trl_training_template(known) == (folder / "qwen2_5_training.jinja").read_text(encoding="utf-8")
    assert trl_training_template(known + " ") is None


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    folder = tiny.tokenizer_folder(tmp_path / "endless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="end-of-text"):
        load_template(folder, loss="assistant")


def test_ids_and_offsets_of_the_backend_are_those_of_the_transformers_wrapper(folders):
    template = load_template(folders["marked"], loss="assistant")
    texts = ["zipfile<|end|>\n\n  the quick brown fox", "\u00fc\u6f22 \U0001f600", "", "<|user|>again?<|pad|>"]
    wrapped = template.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    found = template.tokenised(texts)
    assert [f.ids for f in found] == wrapped["input_ids"]
    assert [f.offsets for f in found] == wrapped["offset_mapping"]


@given(
    st.lists(st.sampled_from([*"ab \n", "\u00fc", "\u6f22", "\U0001f600", "zipfile", "<|end|>"]), max_size=12),
    st.data(),
)
@settings(max_examples=60)
def test_a_span_of_characters_becomes_every_token_that_holds_one_of_them(letters, cut):
    text = "".join(letters)
    start = cut.draw(st.integers(0, len(text)))
    span = (start, cut.draw(st.integers(start, len(text))))
    found = backend().encode(text, add_special_tokens=False)
    mask = [a < span[1] and b > span[0] for a, b in found.offsets]
    made = [False] * len(mask)
    for first, behind in token_spans(found, [span] if span[0] < span[1] else []):
        made[first:behind] = [True] * (behind - first)
    assert made == (mask if span[0] < span[1] else [False] * len(mask))


@functools.cache
def backend():
    folder = tiny.tokenizer_folder(Path(tempfile.mkdtemp()))
    return load_template(folder, loss="assistant").tokenizer.backend_tokenizer


def test_reasoning_is_trained_where_the_template_renders_it_under_whatever_name(tmp_path):
    thinking = tiny.TEMPLATE.replace(
        "{% generation %}", "{% generation %}{% if message['thinking'] %}[{{ message['thinking'] }}]{% endif %}"
    )
    turns = [TURNS[0], {**TURNS[1], "reasoning_content": "a hard one"}]
    template = load_template(tiny.tokenizer_folder(tmp_path / "thinking", template=thinking), loss="assistant")
    assert trained(template, "chat", {"messages": turns})[1] == ["[a hard one]zipfile<|end|>"]


def test_reasoning_that_the_template_leaves_out_is_written_down(folders):
    turns = [TURNS[0], {**TURNS[1], "reasoning_content": "a hard one"}]
    rendered = load_template(folders["marked"], loss="assistant").render("chat", {"messages": turns})
    assert (rendered.changed.reason, rendered.changed.evidence) == ("reasoning_not_rendered", {"turns": 1})


def test_a_turn_that_the_template_leaves_out_rejects_the_row(tmp_path):
    deaf = (
        "{% for message in messages if message['role'] != 'system' %}"
        + tiny.TEMPLATE.split("{%- for message in messages -%}")[1]
    )
    template = load_template(tiny.tokenizer_folder(tmp_path / "deaf", template=deaf), loss="assistant")
    rejected = template.render("chat", {"messages": [{"role": "system", "content": "be brief"}, *TURNS]})
    assert (rejected.reason, rejected.evidence) == ("content_not_rendered", {"role": "system", "turn": 0})


@pytest.mark.parametrize(("turns", "reason"), [(TURNS[:1], "no_trained_token"), (TURNS[1:2], "every_token_trained")])
def test_some_but_not_all_of_a_conversation_must_be_trained(folders, turns, reason):
    assert load_template(folders["marked"], loss="assistant").render("chat", {"messages": turns}).reason == reason


def test_a_stop_token_that_opens_the_next_message_is_trained(tmp_path):
    open_ended = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    template = load_template(tiny.tokenizer_folder(tmp_path / "open", template=open_ended), loss="assistant")
    assert trained(template, "chat", {"messages": TURNS})[1] == ["zipfile<|user|>", "\nzipfile, I said"]
    # the last turn has no stop token at all: the check `loss_mask` counts it
    assert template.render("chat", {"messages": TURNS}).ends is False


def test_the_date_in_a_text_is_the_same_every_day(tmp_path):
    dated = "<|system|>{{ strftime_now('%d %b %Y') }}<|end|>" + tiny.TEMPLATE
    template = load_template(tiny.tokenizer_folder(tmp_path / "dated", template=dated), loss="assistant")
    assert "26 Jul 2024" in template.render("chat", {"messages": TURNS}).text


def test_a_named_template_for_tools_renders_conversations_with_tools(folders):
    template = load_template(folders["marked"], loss="assistant")
    template.tokenizer.chat_template = {"default": tiny.TEMPLATE, "tool_use": "<|system|>tools<|end|>" + tiny.TEMPLATE}
    assert template.render("chat", {"messages": TURNS, "tools": [{"name": "find"}]}).text.startswith("<|system|>tools")
    assert template.render("chat", {"messages": TURNS}).text.startswith("<|user|>")


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        (
            {"max_position_embeddings": 512, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 512}},
            2048,
        ),
        ({}, 300),
    ],
)
def test_windows_longer_than_the_base_model_knows_are_refused(tmp_path, config, limit):
    folder = tiny.tokenizer_folder(tmp_path / "limited")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    settings_file = folder / "tokenizer_config.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "model_max_length": 300}))
    template = load_template(folder, loss="assistant")
    assert template.limit_tokens == limit
    refuse_long_windows(template, limit)
    with pytest.raises(DataError, match=f"knows {limit} positions"):
        refuse_long_windows(template, limit + 1)
