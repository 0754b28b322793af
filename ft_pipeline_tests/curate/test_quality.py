"""What is noise and what is not, which rule says so, and the score that chooses between duplicates."""

from __future__ import annotations

import base64
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.curate.flags import Batch
from ft_pipeline.curate.quality import quality, repeated_lines, repeated_text
from ft_pipeline.recipe import Quality

PROSE = (
    "The lighthouse keeper climbed the stairs every evening, lit the lamp and wrote the weather into a book that nobody read. "
    "When the ships had radar he stayed on, because the gulls had grown used to him and the town paid for the oil anyway. "
)
BLOB = base64.b64encode(random.Random(0).randbytes(400)).decode()
NOISE = {
    "alphanumeric_share": ["?!#$%^&*()_+{}|:<>?~`-=[]", "|---|---|\n|---|---|\n|---|---|", "...... .......... ........... ....", "-" * 70],
    "repeated_text": ["ha ha " * 100, "I will not be late again. " * 40, "a" * 400, "\u54c8\u54c8" * 150, PROSE * 4, "0" * 5000],
    "repeated_lines": ["\n".join(["Yes.", "no"] * 200 + [PROSE])],
    "mean_word": [" ".join(f"{'abcdefghij' * 3}{i:03}klmnopq" for i in range(9)), " ".join("spelledoutwordscanbeveryodd" * 2)],
    "encoded_blob": [f"See the image: {BLOB} and so on.", random.Random(1).randbytes(200).hex(), BLOB[:300]],
}  # fmt: skip
FINE = [
    "yes", "4", "#### 42", "?", ":)", "\U0001f44d", "<=>", "", "3.14159265358979", "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610",
    PROSE, PROSE * 2, "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))", "x = [[0, 0], [0, 0]]\ny = {(i, j): i * j for i in range(9) for j in range(9)}",
    "\u6211\u4e0d\u77e5\u9053\u94a5\u5319\u5728\u54ea\u91cc\uff0c\u4f60\u80fd\u5e2e\u6211\u4e00\u8d77\u627e\u4e00\u4e0b\u5417\uff1f\u706b\u8f66\u4e5d\u70b9\u949f\u51fa\u53d1\u3002",
    "\u0417\u0430\u0432\u0442\u0440\u0430 \u0431\u0443\u0434\u0435\u0442 \u0445\u043e\u0440\u043e\u0448\u0430\u044f \u043f\u043e\u0433\u043e\u0434\u0430, \u0438 \u043c\u044b \u043f\u043e\u0435\u0434\u0435\u043c \u043d\u0430 \u043e\u0437\u0435\u0440\u043e.",
    "\n".join(f"{i}. https://stackoverflow.com/questions/{i}767325/how-can-i-remove-a-specific-item-from-an-array-{i}" for i in range(12)),
    "sha512: " + "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca7" * 2, "a_rather_long_name_" * 2,
    "Roses are red,\nviolets are blue,\nsugar is sweet,\nand so are you.\n" * 2,
]  # fmt: skip


def batch(*responses, prompts=None):
    return Batch(
        ["completion"] * len(responses), [{}] * len(responses), prompts or [""] * len(responses), list(responses)
    )


def rules(*responses, **more):
    return [f.evidence["rule"] for f in quality(batch(*responses, **more), Quality())[0]]


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in NOISE.items() for text in texts])
def test_noise_is_named(rule, text):
    flags, scores = quality(batch("fine", text, PROSE), Quality(policy="reject"))
    assert {f.row for f in flags} == {1}
    named = {f.evidence["rule"]: f for f in flags}
    assert named[rule].action == "drop"
    assert scores.tolist() == [1, 1 - 0.25 * len(flags), 1]
    value, limit = named[rule].evidence["value"], named[rule].evidence["limit"]
    assert value != limit


@pytest.mark.parametrize("text", FINE)
def test_what_instruction_data_may_hold(text):
    assert rules(text) == []


def test_all_at_once_is_the_same_as_one_by_one():
    texts = [*FINE, *(t for texts in NOISE.values() for t in texts), ""]
    random.Random(0).shuffle(texts)
    flags, scores = quality(batch(*texts), Quality())
    alone = [quality(batch(t), Quality()) for t in texts]
    assert [f.evidence for f in flags] == [f.evidence for found, _ in alone for f in found]
    assert scores.tolist() == [s[0] for _, s in alone]
    assert [f.row for f in flags] == sorted(f.row for f in flags)


def test_two_alike_answers_of_a_preference_are_no_repetition():
    assert rules(f"{PROSE}\n{PROSE}") == []


def test_boilerplate_is_only_noted():
    flags, scores = quality(
        batch("As an AI language model, I have no opinion.", "LOREM IPSUM dolor"), Quality(policy="reject")
    )
    assert [(f.row, f.action, f.evidence["value"]) for f in flags] == [
        (0, "note", "as an ai language model"),
        (1, "note", "lorem ipsum"),
    ]
    assert scores.tolist() == [0.75, 0.75]


def test_a_blob_in_the_prompt_counts_and_prose_in_it_does_not():
    assert rules("What is it?", prompts=[f"Look: {BLOB}"]) == ["encoded_blob"]
    assert rules("What is it?", prompts=["ha " * 500]) == []


def test_policies():
    text = NOISE["repeated_text"][0]
    off, scores = quality(batch(text), Quality(policy="off"))
    assert off == [] and scores.tolist() == [1.0] and scores.dtype == np.float32
    assert [f.action for f in quality(batch(text), Quality(policy="flag"))[0]] == ["note"]


def test_nothing_in_nothing():
    flags, scores = quality(batch(), Quality())
    assert flags == [] and scores.shape == (0,)
    assert rules("", "", "") == []
    assert rules(" ", "\u00a0", "\n\n") == []


@pytest.mark.parametrize("unit", ["a", " ", "ab ", "\u54c8", "?", "-", "A1b2", "\n", "word\n"])
def test_a_line_of_a_megabyte(unit):
    started = time.process_time()
    quality(batch((unit * 1_000_000)[:1_000_000], "x"), Quality())
    assert time.process_time() - started < 10


@given(st.lists(st.text(max_size=300) | st.sampled_from([*FINE, PROSE * 3, BLOB]), min_size=1, max_size=8))
def test_any_text_has_a_score_of_five(texts):
    flags, scores = quality(batch(*texts), Quality())
    assert set(scores.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    counted = np.bincount([f.row for f in flags], minlength=len(texts))
    assert scores.tolist() == np.maximum(1 - 0.25 * counted, 0).tolist()


@given(st.text("abc \n", min_size=60, max_size=120), st.integers(4, 8))
def test_a_text_said_often_is_found(text, times):
    text = " ".join(text.split())
    said = " ".join([text] * times)
    assert (rules(said) == ["repeated_text"]) == (repeated_text(said) > 0.65)


def test_shares():
    assert repeated_lines("a\nb\nc") == 0
    assert repeated_lines("aa\naa\naa\nbb") == 0.5
    assert repeated_text("x" * 215) == 1 - 1 / 200
