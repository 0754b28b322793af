"""Real, dirty rows, where they are at hand: the figures of shared/data/README.md."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from ft_pipeline.acquire import dataset
from ft_pipeline.curate.artifact import Rejection, statistics_of
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.curate.mapping import open_mapping
from ft_pipeline.curate.normalize import Normal, normalize
from ft_pipeline.curate.validate import ControlTokens, escape, reason_to_reject
from ft_pipeline.recipe import Curate, Dataset, NearDuplicates

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(os.environ.get("FT_SHARED_DATA") or Path(__file__).parents[2] / "../shared/data")
    if not (root / "MANIFEST.tsv").is_file():
        pytest.skip(f"no shared data at {root}: set FT_SHARED_DATA")
    return root


OTHER = {code: 0xA000 + code for code in range(0xC2, 0xF5)}
"""Accented letters as letters of another script, one by one: what was misread is no mojibake any more, and as like its neighbours."""


@pytest.mark.parametrize(("policy", "dropped"), [("whole_example", 1327), ("prompt_and_response", 822)])
def test_t0_duplicates_are_those_of_brute_force(home, store, shared_data, tmp_path, policy, dropped):
    path = tmp_path / "t0.jsonl"
    with path.open("w") as file:
        for source in sorted((shared_data / "t0_train_sample").glob("*.jsonl")):
            for line in source.read_text().splitlines():
                row = {
                    key: text.replace("<|endoftext|>", "").translate(OTHER) for key, text in json.loads(line).items()
                }
                file.write(json.dumps(row) + "\n")
    raw = dataset.acquire(Dataset(uri=str(path)), settings=home, store=store)
    config = Curate(near_duplicates=NearDuplicates(policy=policy), max_rejected_share=1.0)
    numbers = statistics_of(curate(Curation(config=config, raw=raw.ref), store=store))
    assert numbers["rows_in"] == 2400
    assert numbers["dropped_by_reason"]["exact_duplicate"] == 377
    assert sum(numbers["dropped_by_reason"].values()) == dropped
    assert numbers["conflicts"] == {"pairs": 74, "prompts": 56}


@pytest.mark.parametrize(
    ("name", "rows", "exact", "shape"),
    [
        ("llamafactory_demo/dpo_en_demo.json", 300, 5, "preference"),
        ("llamafactory_demo/glaive_toolcall_en_demo.json", 300, 35, "chat"),
        ("vicuna_dummy_conversation", 500, 0, "chat"),
    ],
)
def test_layouts_in_the_wild(home, store, shared_data, name, rows, exact, shape):
    raw = dataset.acquire(Dataset(uri=str(shared_data / name)), settings=home, store=store)
    numbers = statistics_of(curate(Curation(config=Curate(), raw=raw.ref), store=store))
    assert numbers["rows_in"] == rows
    assert numbers["dropped_by_reason"].get("exact_duplicate", 0) == exact
    assert list(numbers["shapes"]) == [shape]


CONTROL = ControlTokens(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<s>", "</s>", "[INST]", "[/INST]"))
Fit = list[tuple[str, dict]]


def rows_at(root: Path, name: str) -> list[dict]:
    """The rows of a JSON array, or of JSON lines."""
    text = (root / name).read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def sorted_out(rows, *, layout="auto", mapping=None, break_tokens=False) -> tuple[Fit, Counter]:
    """Fit rows as shape and content, and how many were rejected by reason."""
    mapped, fit, reasons = open_mapping(mapping), [], Counter()
    for row in rows:
        made = normalize(row, layout, mapped)
        if isinstance(made, Normal):
            content = escape(made.content, CONTROL)[0] if break_tokens else made.content
            rejection = reason_to_reject(made.shape, content, CONTROL)
            fit += [] if rejection else [(made.shape, content)]
        else:
            rejection = made
        reasons.update([rejection.reason.value] if isinstance(rejection, Rejection) else [])
    return fit, reasons


def test_kto(shared_data):
    """Two rows quote turn marks of other models, two (Francoise Yip, Belle Epoque) were misread once."""
    fit, reasons = sorted_out(rows_at(shared_data, "llamafactory_demo/kto_en_demo.json"))
    assert reasons == {"control_token": 2, "mojibake": 2}
    assert {shape for shape, _ in fit} == {"kto"}
    assert Counter(content["label"] for _, content in fit) == {True: 150, False: 146}
    assert all(c["prompt"][-1]["role"] == "user" and len(c["completion"]) == 1 for _, c in fit)


def test_dpo(shared_data):
    """One of the 80 rows with a system turn speaks of a fiance whose accent was misread."""
    fit, reasons = sorted_out(rows_at(shared_data, "llamafactory_demo/dpo_en_demo.json"))
    assert (len(fit), reasons) == (299, {"mojibake": 1})
    assert sum(content["prompt"][0]["role"] == "system" for _, content in fit) == 79
    assert all(c["prompt"][-1]["role"] == "user" for _, c in fit)


def test_tool_calls(shared_data):
    """Every call has its result: a turn of its own in ShareGPT, tools as JSON in text."""
    fit, reasons = sorted_out(rows_at(shared_data, "llamafactory_demo/glaive_toolcall_en_demo.json"))
    assert (len(fit), reasons) == (300, {})
    messages = [turn for _, content in fit for turn in content["messages"]]
    assert sum(len(turn.get("tool_calls", ())) for turn in messages) == 211
    assert sum(turn["role"] == "tool" for turn in messages) == 211
    assert sum("tools" in content for _, content in fit) == 300 - 109
    assert all(isinstance(c["function"]["arguments"], dict) for t in messages for c in t.get("tool_calls", ()))


def test_gsm8k_is_taught_by_default_and_checked_when_pinned(shared_data):
    rows = rows_at(shared_data, "gsm8k/train.jsonl")
    fit, _ = sorted_out(rows)
    assert Counter(shape for shape, _ in fit) == {"completion": 7473}
    fit, reasons = sorted_out(rows, layout="rlvr")
    assert (Counter(shape for shape, _ in fit), reasons) == ({"rlvr": 7473}, {})
    mapping = {"prompt": "{{ question }}", "ground_truth": "{{ answer.split('####')[1].strip() }}"}
    fit, reasons = sorted_out(rows, mapping=mapping)
    assert (Counter(shape for shape, _ in fit), reasons) == ({"rlvr": 7473}, {})
    assert fit[0][1]["answer"] == "72"
    assert all(content["answer"].replace(",", "").lstrip("-").isdigit() for _, content in fit)


@pytest.mark.parametrize(("name", "rows"), [("seed_tasks", 175), ("user_oriented_instructions", 252)])
def test_nested_rows_by_mapping(shared_data, name, rows):
    raw = rows_at(shared_data, f"self_instruct_seed/{name}.jsonl")
    mapping = {
        "instruction": "{{ instruction }}",
        "input": "{{ instances[0].input }}",
        "output": "{{ instances[0].output }}",
    }
    fit, reasons = sorted_out(raw, mapping=mapping)
    assert (len(fit), reasons) == (rows, {})
    assert fit[0][1]["messages"][1]["content"] == raw[0]["instances"][0]["output"]
    assert sorted_out(raw)[1] == {"unknown_layout": rows}
    assert sorted_out(raw, mapping=mapping | {"system": "{{ motivation_ap }}"})[1] == {"mapping_failed": rows}


def test_placeholders_are_not_templates(shared_data):
    fit, reasons = sorted_out(rows_at(shared_data, "llamafactory_demo/identity.json"))
    assert (len(fit), reasons) == (91, {})
    assert sum("{{name}}" in json.dumps(c) or "{{author}}" in json.dumps(c) for _, c in fit) == 85
    mapped = sorted_out(
        rows_at(shared_data, "llamafactory_demo/identity.json"),
        mapping={"prompt": "{{ instruction }}", "completion": "{{ output }}"},
    )[0]
    assert mapped[0][1]["completion"] == fit[0][1]["messages"][1]["content"]


def test_control_tokens_of_t0(shared_data):
    """Every completion ends in end-of-text; 44 rows (naive, Luebeck, a dash) were misread once, and say so when the tokens are broken."""
    rows = [
        row
        for path in sorted((shared_data / "t0_train_sample").glob("*.jsonl"))
        for row in rows_at(path.parent, path.name)
    ]
    fit, reasons = sorted_out(rows)
    assert (fit, reasons) == ([], {"control_token": 2356, "mojibake": 44})
    fit, reasons = sorted_out(rows, break_tokens=True)
    assert (len(fit), reasons) == (2356, {"mojibake": 44})


@pytest.mark.parametrize(
    ("name", "rows"), [("roleplay-simple-deduped-roleplay-dataset", 3146), ("toolformer-dedupe-only-dataset", 7673)]
)
def test_a_further_column_changes_no_layout(shared_data, name, rows):
    fit, reasons = sorted_out(rows_at(shared_data, f"gpteacher/{name}.json"))
    assert (len(fit), reasons) == (rows, {})
    assert {tuple(content) for _, content in fit} == {("messages",)}
