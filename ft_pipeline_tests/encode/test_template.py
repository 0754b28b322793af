"""Which tokens are trained, seen as text: three roads to the same mask, and the rows that have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ft_pipeline.encode.template import Rejected, Template, load_template, trl_training_template
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


def test_a_template_that_rewrites_earlier_turns_masks_single_turns_and_rejects_the_rest(folders):
    template = load_template(folders["rewriting"], loss="assistant")
    assert trained(template, "chat", {"messages": TURNS[:2]})[1] == ["zipfile<|end|>"]
    assert template.render("chat", {"messages": TURNS}).reason == "assistant_spans_not_found"


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
    import json

    folder = tiny.tokenizer_folder(tmp_path / "endless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="end-of-text"):
        load_template(folder, loss="assistant")
