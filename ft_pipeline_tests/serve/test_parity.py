"""The server says to the model what training said: real rows of real shards, and what is planted to break it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.errors import IntegrityError
from ft_pipeline.recipe import Encode
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline.serve import deploy, parity
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import lines, tiny

DATED = tiny.PLAIN_TEMPLATE.replace("{%- for", "<|system|>{{ strftime_now('%d %b %Y') }}<|end|>\n{%- for", 1)
"""As llama3_2 writes the date."""
CALL = {"id": "call_1", "type": "function", "function": {"name": "open_file", "arguments": '{"name": "a.txt"}'}}


@pytest.fixture(autouse=True)
def _fresh():
    parity._equal.clear()


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def base(store, bases):
    """A base model with a template, and edits of its files."""

    def made(template: str = tiny.TEMPLATE, edit: Any = None, name: str = "b"):
        folder = bases / f"{name}{abs(hash(template))}"
        if not folder.is_dir():
            tiny.tokenizer_folder(folder, template=template)
            (folder / "config.json").write_text('{"max_position_embeddings": 512}')
        if edit:
            copy = folder.with_name(f"{folder.name}-{name}-edited")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            edit(copy)
            folder = copy
        return tiny.publish_base(store, folder)

    return made


def adapter(store, shards, base):
    spec = Spec(kind="adapter", config={}, parents={"shards": shards.ref, "base": base.ref}, code="t")
    files = {p.name: p.read_text() for p in base.folder.iterdir() if p.name.startswith(("tokenizer", "chat_template"))}
    return lines.publish(store, spec, files).ref


def compared(store, shards, base) -> parity.Parity:
    return parity.require_parity(adapter(store, shards, base), "acme/router@1", store)


def test_rows_of_several_turns_are_equal_token_for_token(store, base):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base())
    found = compared(store, shards, base())
    assert found.rows == parity.ROWS and found.tokens > 20 * found.rows
    assert found.told == f"5 rows, {found.tokens} tokens equal"
    assert compared(store, shards, base()) is found, "once a process and adapter"


def test_a_planted_change_of_the_template_names_the_token_and_both_texts(store, base):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base())
    edited = tiny.TEMPLATE.replace("<|{{ message['role'] }}|>", "<|{{ message['role'] }}|> ")
    with pytest.raises(IntegrityError, match=r"acme/router@1, row r[0-9a-f]{16}: token 1 of the prompt is") as refused:
        compared(store, shards, base(edited))
    said = str(refused.value)
    assert "training: '<|user|>which module" in said and "server:   '<|user|> which module" in said
    assert "Cure:" in said and not parity._equal


def test_a_lost_generation_prompt_is_found_though_all_before_it_is_equal(store, base):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base())
    lost = tiny.TEMPLATE.replace("{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}", "")
    with pytest.raises(IntegrityError, match=r"'<\|assistant\|>' in training and not there on the server"):
        compared(store, shards, base(lost))


def test_a_special_token_that_moved_is_found(store, base):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base())

    def moved(folder: Path) -> None:
        path = folder / "tokenizer.json"
        found = json.loads(path.read_text())
        ids = {t["content"]: t["id"] for t in found["added_tokens"]}
        swap = {tiny.USER: ids[tiny.TOOL], tiny.TOOL: ids[tiny.USER]}
        for token in found["added_tokens"]:
            token["id"] = swap.get(token["content"], token["id"])
        found["added_tokens"].sort(key=lambda t: t["id"])
        found["model"]["vocab"] |= swap
        path.write_text(json.dumps(found))

    with pytest.raises(IntegrityError, match="token 0 of the prompt") as refused:
        compared(store, shards, base(edit=moved))
    assert "'<|tool|>' in training" in refused.value.what or "<|user|>" in refused.value.what


def test_a_template_that_asks_for_the_date_gets_that_of_training(store, base):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base(DATED))
    assert compared(store, shards, base(DATED)).rows == parity.ROWS


def test_tool_calls_are_spelled_as_in_training_and_a_list_of_tools_is_left_out(store, base):
    asked = [{"role": "user", "content": "open it"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    answer = [{"role": "tool", "content": "1 line", "tool_call_id": "call_1"}, {"role": "assistant", "content": "ok"}]
    rows = [{"messages": [*asked, *answer]}, {"messages": [*asked, *answer], "tools": [{"type": "function"}]}]
    shards = tiny.publish_shards(store, tiny.publish_curated(store, rows), base(), encode=Encode(window_tokens=256))
    found = compared(store, shards, base())
    assert found.rows == 1 and "1 left out: it lists tools" in found.told


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        ("text", {"text": "the quick brown fox jumps over the lazy dog"}),
        ("completion", {"prompt": "which module reads zip", "completion": "file? zipfile"}),
    ],
)
def test_plain_text_and_completions_even_where_a_token_straddles_the_border(store, base, shape, row):
    rows = [{**row, next(iter(row)): f"{n} {next(iter(row.values()))}"} for n in range(3)]
    shards = tiny.publish_shards(store, tiny.publish_curated(store, rows, shape=shape), base())
    found = compared(store, shards, base())
    assert found.rows == 3 and found.tokens > 12


def test_the_prompts_of_preference_pairs(store, base):
    curated = tiny.publish_curated(store, tiny.pair_rows(8), shape="preference")
    shards = tiny.publish_shards(store, curated, base(), encode=Encode(window_tokens=128))
    assert compared(store, shards, base()).rows == parity.ROWS
    edited = tiny.TEMPLATE.replace("{{ message['content'] }}<|end|>", "{{ message['content'] }} <|end|>")
    with pytest.raises(IntegrityError, match="in training"):
        compared(store, shards, base(edited))


def test_rows_that_were_cut_or_split_are_compared_as_far_as_they_go(store, base):
    long = [
        {"messages": [{"role": "user", "content": f"{n} " + "fox " * 80}, {"role": "assistant", "content": "yes"}]}
        for n in range(3)
    ]
    short = tiny.chat_rows(4)
    encode = Encode(window_tokens=64, overlong="reject")
    shards = tiny.publish_shards(store, tiny.publish_curated(store, [*long, *short]), base(), encode=encode)
    assert compared(store, shards, base()).rows == 4
    texts = [{"text": f"{n} " + "the quick brown fox " * 30} for n in range(2)]
    encode = Encode(window_tokens=64, overlong="split")
    curated = tiny.publish_curated(store, texts, shape="text")
    assert "not checked" in compared(store, tiny.publish_shards(store, curated, base(), encode=encode), base()).told


def test_a_model_that_names_no_rows_says_so(store, base):
    empty = lines.publish(store, Spec(kind="packed_shards", config={}, parents={}, code="t"), {"windows.txt": "x"})
    assert compared(store, empty, base()).told == "not checked: the model names no rows that it was trained on"


def with_statistics(store, curated):
    """The same rows with what a model card quotes."""
    raw = lines.publish(store, Spec(kind="raw_dataset", config={}, parents={}, code="t"), {"files/a.jsonl": "x"})
    spec = Spec(kind="curated_dataset", config={"with": "statistics"}, parents={"raw": raw.ref}, code="t")
    with store.publish(spec) as draft:
        for name in curated.manifest.files:
            shutil.copyfile(curated.file(name), draft.folder / name)
        (draft.folder / "statistics.json").write_text('{"dropped_by_reason": {}}')
        draft.counts.update(rows_in=20, rows_kept=20, rows_dropped=0)
    return draft.artifact


def test_a_code_location_without_the_library_says_that_nothing_was_compared(store, base, monkeypatch):
    shards = tiny.publish_shards(store, tiny.publish_curated(store, tiny.chat_rows(20)), base())
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "transformers is not installed here" in compared(store, shards, base()).told


@pytest.fixture
def version(home, store, catalog, base, monkeypatch):
    from ft_pipeline import settings

    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    lines.recipe_file(home)

    def made(served: Any):
        curated = with_statistics(store, tiny.publish_curated(store, tiny.chat_rows(20)))
        shards = tiny.publish_shards(store, curated, base())
        whole = lines.publish_line(store, catalog, base=served, shards=shards)
        candidate = Candidate(
            recipe=find_recipe(settings.load(), "acme/router"), adapter=whole["adapter"].ref,
            report=whole["eval_report"].ref, base=whole["base_model"].ref, run_id="r",
        )  # fmt: skip
        return register(candidate, store=store, catalog=catalog, settings=home).model

    return made


def test_deploy_refuses_and_nothing_is_deployed(version, base, home, store, catalog):
    edited = tiny.TEMPLATE.replace("<|{{ message['role'] }}|>", "<|{{ message['role'] }}|>\n")
    model = version(base(edited))
    with pytest.raises(IntegrityError, match="in training and"):
        deploy.deploy(model, catalog=catalog, store=store, settings=home)
    assert deploy.live(catalog) == [] and catalog.pools() == {}


def test_deploy_of_what_is_equal(version, base, home, store, catalog):
    model = version(base())
    deploy.deploy(model, catalog=catalog, store=store, settings=home)
    assert [v.label for v in deploy.live(catalog)] == [model.label]
