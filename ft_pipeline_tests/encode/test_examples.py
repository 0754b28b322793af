"""Pairs, labelled completions and prompts: the ids of TRL's DPOTrainer, only answers trained, files that trace and read back."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.encode import example_files
from ft_pipeline.encode.artifact import (
    Labelled,
    Pair,
    Prompt,
    example_kind,
    mismatched,
    read_labelled,
    read_pairs,
    read_prompts,
    read_stepwise,
)
from ft_pipeline.encode.check import mask_fault
from ft_pipeline.encode.example_files import write_examples
from ft_pipeline.encode.example_rows import tokens_of, trained_of
from ft_pipeline.encode.examples import encode_examples
from ft_pipeline.encode.figures import samples_picture, split_table
from ft_pipeline.encode.template import Rejected, Template, load_template
from ft_pipeline.errors import DataError
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import tiny
from ft_pipeline_tests.encode import template_table

ASK = [{"role": "user", "content": "which module is it? zipfile"}]
GOOD, BAD = [{"role": "assistant", "content": "zipfile"}], [{"role": "assistant", "content": "\njson"}]
TURNS = [*ASK, *GOOD, {"role": "user", "content": "again?"}]
PREFERENCE = {"prompt": TURNS, "chosen": GOOD, "rejected": BAD}
WRITTEN = {"prompt": "which module?", "chosen": " zipfile", "rejected": " json"}
KTO = {"prompt": ASK, "completion": GOOD, "label": True}
STEPS = {"prompt": ASK, "steps": ["take zip", "zipfile"], "labels": [True, False]}
RLVR = {"prompt": ASK, "answer": "zipfile"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return load_template(tiny.tokenizer_folder(tmp_path_factory.mktemp("examples")), loss="assistant")


def made(template: Template, shape: str, content: dict, limit_tokens: int = 512):
    return encode_examples(template, [("r1", shape, content)], limit_tokens=limit_tokens)[0]


def said(template: Template, ids, spans) -> list[str]:
    return [template.tokenizer.decode(ids[a:b]) for a, b in spans]


@pytest.mark.parametrize("plain", [False, True])
def test_both_sides_of_a_pair_train_their_answer_and_its_end_and_share_the_prompt(template, tmp_path, plain):
    if plain:
        template = load_template(tiny.tokenizer_folder(tmp_path / "p", template=tiny.PLAIN_TEMPLATE), loss="assistant")
    pair = made(template, "preference", PREFERENCE)
    assert template.tokenizer.decode(pair.prompt_ids).endswith("again?<|end|><|assistant|>")
    assert said(template, pair.chosen_ids, pair.chosen_spans) == ["zipfile<|end|>"]
    assert said(template, pair.rejected_ids, pair.rejected_spans) == ["\njson<|end|>"]
    assert (tokens_of(pair), trained_of(pair)) == (
        2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids),
        len(pair.chosen_ids) + len(pair.rejected_ids),
    )


def test_a_pair_of_plain_texts_begins_and_ends_as_the_tokenizer_does(template):
    pair = made(template, "preference", WRITTEN)
    assert template.tokenizer.decode(pair.prompt_ids) == "which module?"
    assert said(template, pair.chosen_ids, pair.chosen_spans) == [" zipfile<|end|>"]
    again = made(template, "preference", {**WRITTEN, "chosen": " zipfile<|end|>"})
    assert again.chosen_ids == pair.chosen_ids


def test_only_the_assistants_turns_of_a_longer_completion_are_trained(template):
    longer = [*GOOD, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    pair = made(template, "preference", {"prompt": ASK, "chosen": longer, "rejected": BAD})
    assert said(template, pair.chosen_ids, pair.chosen_spans) == ["zipfile<|end|>", "yes<|end|>"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({**PREFERENCE, "rejected": GOOD}, "same_answers"),
        ({**PREFERENCE, "prompt": [{"role": "user", "content": "again? " * 400}]}, "overlong"),
        ({**WRITTEN, "prompt": ""}, "empty_prompt"),
    ],
)
def test_a_pair_that_cannot_be_trained_is_rejected_with_a_reason(template, content, reason):
    assert made(template, "preference", content).reason == reason


def test_other_shapes_are_rejected_and_the_order_is_kept(template):
    rows = [("r1", "chat", {"messages": TURNS}), ("r2", "rlvr", RLVR), ("r3", "kto", KTO)]
    found = encode_examples(template, rows, limit_tokens=512)
    assert [type(f) for f in found] == [Rejected, Prompt, Labelled] and found[0].reason == "shape_not_trainable"


def test_a_labelled_completion_and_a_prompt(template):
    row, prompt = made(template, "kto", KTO), made(template, "rlvr", RLVR)
    assert row.label and said(template, row.completion_ids, row.completion_spans) == ["zipfile<|end|>"]
    assert prompt.prompt_ids == row.prompt_ids and prompt.answer == "zipfile"
    assert template.tokenizer.decode(prompt.prompt_ids).endswith("<|end|><|assistant|>")


def test_a_step_ends_with_the_separator_and_is_judged_there(template):
    row = made(template, "stepwise", STEPS)
    assert template.tokenizer.decode(row.completion_ids) == "take zip\nzipfile\n" and row.labels == [True, False]
    assert [template.tokenizer.decode(row.completion_ids[: end + 1]) for end in row.ends] == [
        "take zip\n",
        "take zip\nzipfile\n",
    ]
    assert row.prompt_ids == made(template, "rlvr", RLVR).prompt_ids
    ended = encode_examples(template, [("r1", "stepwise", {**STEPS, "steps": ["take zip\n\n", "zip\nfile"]})], limit_tokens=512, separator="\n\n")  # fmt: skip
    assert (
        template.tokenizer.decode(ended[0].completion_ids) == "take zip\n\nzip\nfile\n\n" and trained_of(ended[0]) == 2
    )


def test_a_step_that_holds_the_separator_is_rejected_with_the_cure(template):
    found = made(template, "stepwise", {**STEPS, "steps": ["take zip", "zip\nfile"]})
    assert (found.reason, found.evidence["step"]) == ("separator_in_step", 1)
    assert "encode.step_separator" in found.evidence["cure"]


def test_a_wrong_completion_is_that_of_the_next_row_with_another_prompt():
    assert mismatched([[1], [1], [2], [3], [1]]) == [2, 2, 3, 4, 2]
    assert mismatched(["a", "a"]) == [0, 1] and mismatched([]) == []


@given(st.lists(st.integers(0, 3), max_size=12))
def test_a_partner_has_another_prompt_whenever_there_is_one(prompts):
    for place, partner in enumerate(mismatched(prompts)):
        assert prompts[partner] != prompts[place] or (partner == place and len(set(prompts)) == 1)


def comparable(name: str) -> bool:
    """TRL hands a processor's list of parts to three templates, and today's date to three others."""
    return name not in template_table.BLOCKS and "strftime_now" not in template_table.template_of(name).text


@pytest.mark.slow
def test_ids_are_those_of_trls_dpo_trainer():
    """`DPOTrainer._prepare_dataset` itself, on 35 templates: prompt, chosen and rejected ids."""
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DPOTrainer

    rows = [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}, PREFERENCE]
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    names = [name for name in template_table.NAMES if comparable(name)]
    assert len(names) == 35
    for name in names:
        tokenizer = template_table.tokenizer_of(name)
        theirs = DPOTrainer._prepare_dataset(
            SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(rows), tokenizer, arguments, "train"
        )
        ours = encode_examples(
            template_table.template_of(name),
            [(str(n), "preference", row) for n, row in enumerate(rows)],
            limit_tokens=9999,
        )
        for pair, other in zip(ours, theirs, strict=True):
            assert isinstance(pair, Pair), (name, pair)
            # TRL leaves the stop token of glm4moe to a next message that never comes
            end = -1 if name == "glm4moe" else None
            assert (pair.prompt_ids, pair.chosen_ids[:end], pair.rejected_ids[:end]) == (
                other["prompt_ids"], other["chosen_ids"], other["rejected_ids"],
            ), name  # fmt: skip


@pytest.fixture
def published(store):
    def publish(rows, split="train"):
        index = []
        spec = Spec(kind="packed_shards", config={"rows": [r.row_id for r in rows]}, parents={}, code="test")
        with store.publish(spec) as draft:
            written = write_examples(draft, split, iter(rows), index=index.append)
            (draft.folder / "statistics.json").write_text("{}")
        return draft.artifact, written, pa.concat_tables(index).to_pylist() if index else []

    return publish


def examples(template: Template, shape: str, content: dict, count: int):
    return [encode_examples(template, [(f"r{n}", shape, content)], limit_tokens=512)[0] for n in range(count)]


@pytest.mark.parametrize(
    ("shape", "content", "read"),
    [
        ("preference", PREFERENCE, read_pairs),
        ("kto", KTO, read_labelled),
        ("rlvr", RLVR, read_prompts),
        ("stepwise", STEPS, read_stepwise),
    ],
)
def test_what_is_written_is_read_and_found_in_the_index(template, published, monkeypatch, shape, content, read):
    monkeypatch.setattr(example_files, "BATCH_ROWS", 3)
    monkeypatch.setattr(example_files, "SHARD_TOKENS", 100)
    rows = examples(template, shape, content, 10)
    artifact, written, index = published(rows)
    assert list(read(artifact, "train")) == rows and example_kind(artifact) is type(rows[0])
    assert (written.rows, written.tokens) == (10, sum(map(tokens_of, rows)))
    assert len(written.shards) > 1
    for entry, row in zip(index, rows, strict=True):
        assert pq.read_table(artifact.file(entry["shard"]))["row_id"][entry["window"]].as_py() == row.row_id
        assert (entry["tokens"], entry["trained_tokens"]) == (tokens_of(row), trained_of(row))


def test_no_row_writes_no_file(published):
    artifact, written, _ = published([])
    assert (written.rows, written.shards, example_kind(artifact)) == (0, [], None)
    assert list(read_pairs(artifact, "train")) == []


def test_rows_of_two_kinds_and_a_reader_of_another_kind_are_refused(template, published):
    pair, labelled = examples(template, "preference", PREFERENCE, 1)[0], examples(template, "kto", KTO, 1)[0]
    with pytest.raises(DataError, match="two kinds"):
        published([pair, labelled])
    with pytest.raises(DataError, match="not those of a labelled"):
        list(read_labelled(published([pair])[0], "train"))


def test_content_from_the_curated_dataset_is_canonical_json(template):
    assert made(template, "preference", json.loads(json.dumps(PREFERENCE))) == made(template, "preference", PREFERENCE)


@pytest.fixture
def base(store, tmp_path):
    return tiny.publish_base(store, tiny.base_folder(tmp_path / "base"))


def rows_of(shape: str, count: int) -> list[dict]:
    made = []
    for turns in (row["messages"] for row in tiny.chat_rows(count)):
        prompt, good = turns[:-1], turns[-1:]
        row = {
            "preference": {"prompt": prompt, "chosen": good, "rejected": BAD},
            "kto": {"prompt": prompt, "completion": good, "label": len(made) % 2 == 0},
            "rlvr": {"prompt": prompt, "answer": good[0]["content"]},
            "stepwise": {"prompt": prompt, "steps": ["so", good[0]["content"]], "labels": [True, False]},
        }[shape]
        made.append(row)
    return made


@pytest.mark.parametrize(
    ("shape", "read", "kind"),
    [
        ("preference", read_pairs, "pair"),
        ("kto", read_labelled, "labelled"),
        ("rlvr", read_prompts, "prompt"),
        ("stepwise", read_stepwise, "stepwise"),
    ],
)
def test_a_whole_dataset_becomes_an_artifact_whose_rows_are_found_and_whose_page_can_be_drawn(
    store, base, shape, read, kind
):
    rows = rows_of(shape, 20)
    rows.append({**rows[0], "prompt": [{"role": "user", "content": "again? " * 90}]})
    curated = tiny.publish_curated(store, [*rows[15:], *rows[:15]], validation=4, shape=shape)
    shards = tiny.publish_shards(store, curated, base)
    facts = json.loads(shards.file("statistics.json").read_text())
    assert (facts["examples"], facts["rows"], facts["rejected"]) == (kind, 16, {"overlong": 1})
    assert facts["rows_in"] == facts["rows_all_splits"] + facts["rows_dropped"] == 21
    assert mask_fault(facts, loss="assistant") is None
    index = pq.read_table(shards.file("rows.parquet")).to_pylist()
    found = {split: list(read(shards, split)) for split in ("train", "validation")}
    assert [found[e["split"]][e["window"]].row_id for e in index] == [e["row_id"] for e in index]
    (dropped,) = pq.read_table(shards.file("ledger.parquet")).to_pylist()
    assert (dropped["stage"], dropped["reason"]) == ("encode", "overlong")
    samples = json.loads(shards.file("sample.json").read_text())
    assert len(samples) == (6 if kind == "pair" else 3) and samples_picture(samples).startswith("![")
    assert "| train | 16 |" in split_table(facts["splits"])


def test_a_template_without_a_stop_token_refuses_the_pairs(store, tmp_path):
    endless = tiny.TEMPLATE.replace("<|end|>{% endgeneration %}", "{% endgeneration %}\n")
    base = tiny.publish_base(store, tiny.base_folder(tmp_path / "endless", template=endless))
    with pytest.raises(DataError, match="no loss mask for 8 rows"):
        tiny.publish_shards(store, tiny.publish_curated(store, rows_of("preference", 8), shape="preference"), base)


def test_a_dataset_of_which_every_row_is_rejected_is_refused(store, base):
    rows = [{**PREFERENCE, "rejected": GOOD}]
    with pytest.raises(DataError, match="no row is left to train on"):
        tiny.publish_shards(store, tiny.publish_curated(store, rows, shape="preference"), base)
