"""Words of a list at word boundaries, shown by their first letter; a classifier beside it. The words here are harmless stand-ins."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.curate.flags import Batch
from ft_pipeline.curate.toxicity import Words, masked, open_toxicity, toxicity
from ft_pipeline.errors import DataError, NotFoundError
from ft_pipeline.recipe import Toxicity

LIST = "\ufeff# stand-ins\n\nturnip\nCabbage Head\n  old   boot \n$nail\nradish!\n\u00c4pfel\n\U0001f595\nc++\nboot\n\u0440\u0435\u043f\u0430\nturnip\n"
CONFIG = Toxicity(words="list")


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(LIST, encoding="utf-8")
    return open_toxicity(path)


def text_batch(*texts):
    return Batch(["text"] * len(texts), [{"text": t} for t in texts], [""] * len(texts), list(texts))


def found(words, text):
    flags = toxicity(text_batch(text), CONFIG, words)
    return [text[slice(*f.evidence["span"])] for f in flags]


def test_the_list(words):
    assert set(words.words) == {
        "turnip", "cabbage head", "old boot", "$nail", "radish!", "\u00e4pfel", "\U0001f595", "c++", "boot", "\u0440\u0435\u043f\u0430",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You turnip.", ["turnip"]),
        ("TURNIP! Turnip,turnip", ["TURNIP", "Turnip", "turnip"]),
        ("turnips and returnip, turnip_1 turnip2 \u00fcturnip turnip\u00fc", []),
        ("(turnip) 'turnip' turnip-like \u201cturnip\u201d", ["turnip"] * 4),
        ("a cabbage\n head, a CABBAGE  HEAD, a cabbage-head", ["cabbage\n head", "CABBAGE  HEAD"]),
        ("an old boot and a boot", ["old boot", "boot"]),
        ("cold boot, old boots", ["boot"]),
        ("a$nail $nails $nail", ["$nail", "$nail"]),
        ("radish! radish radish!!", ["radish!", "radish!"]),
        ("\u00c4PFEL \u00e4pfel \u00c4pfelchen apfel", ["\u00c4PFEL", "\u00e4pfel"]),
        ("\u0420\u0435\u043f\u0430, \u0440\u0435\u043f\u0430\u043c", ["\u0420\u0435\u043f\u0430"]),
        ("x\U0001f595y", ["\U0001f595"]),
        ("in C++ and c++11", ["C++", "c++"]),
        ("", []),
    ],
)
def test_word_boundaries(words, text, expected):
    assert found(words, text) == expected


def test_evidence_does_not_print_the_word(words):
    (flag,) = toxicity(text_batch("Oh, cabbage head"), CONFIG, words)
    assert (flag.filter, flag.action, flag.reason.value) == ("toxicity", "note", "toxic")
    assert flag.evidence == {"rule": "word", "path": "text", "span": [4, 16], "value": "c****** h***", "found": 1}
    assert toxicity(text_batch("turnip"), Toxicity(words="list", policy="reject"), words)[0].action == "drop"


def test_tool_arguments_and_their_keys(words):
    call = {"function": {"name": "f", "arguments": {"turnip": {"deep": ["a boot"]}}}}
    content = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    flags = toxicity(Batch(["chat"], [content], [""], [""]), CONFIG, words)
    assert [f.evidence["value"] for f in flags] == ["t*****", "b***"]
    assert "turnip" not in json.dumps([f.evidence for f in flags])


def test_many_findings_are_counted(words):
    flags = toxicity(text_batch("fine", "turnip " * 1000, "boot"), CONFIG, words)
    assert [f.row for f in flags] == [1] * 8 + [2]
    assert flags[0].evidence["found"] == 1000


def test_lists_that_are_none(tmp_path):
    with pytest.raises(NotFoundError, match="no word list"):
        open_toxicity(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(DataError, match="holds no word"):
        open_toxicity(tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"turnip\n\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        open_toxicity(tmp_path / "bytes.txt")


class Classifier:
    """Stands in for a model behind the border."""

    min_score = 0.5

    def scores(self, texts):
        return [min(1.0, text.count("!") / 10) for text in texts]


def test_a_classifier_beside_the_list(words):
    batch = text_batch("fine", "hey !!!!!!!", "turnip !!!!!")
    flags = toxicity(batch, CONFIG, words, classifier=Classifier())
    assert [(f.row, f.evidence["rule"]) for f in flags] == [(1, "classifier"), (2, "word"), (2, "classifier")]
    assert flags[0].evidence == {"rule": "classifier", "value": 0.7, "limit": 0.5}
    assert [f.row for f in toxicity(batch, CONFIG, None, classifier=Classifier())] == [1, 2]
    Classifier.scores, kept = (lambda self, texts: [0.1]), Classifier.scores
    with pytest.raises(DataError, match="1 scores for 3 texts"):
        toxicity(batch, CONFIG, None, classifier=Classifier())
    Classifier.scores = kept


def test_nothing_in_nothing(words):
    assert toxicity(text_batch(), CONFIG, words) == []


def test_long_lines_and_long_lists():
    many = Words(tuple(f"word{i:05}" for i in range(5000)))
    started = time.process_time()
    flags = toxicity(text_batch("word " * 200_000, "x" * 1_000_000, "a word04999 b"), CONFIG, many)
    assert [f.row for f in flags] == [2]
    assert time.process_time() - started < 10


WORD = st.text("ab\u00e4$! \u0431", min_size=1, max_size=5).map(lambda w: " ".join(w.split())).filter(bool)


@given(st.lists(WORD, min_size=1, max_size=5, unique=True), st.text("abB\u00c4\u00e4$! \n\u0431_1", max_size=40))
def test_the_hint_hides_nothing_and_spans_are_words(listed, text):
    words = Words(tuple(sorted(listed, key=lambda w: (-len(w), w))))
    spans = words.spans(text)
    assert [f.evidence["span"] for f in toxicity(text_batch(text), CONFIG, words)] == [list(s) for s in spans][:8]
    for start, end in spans:
        assert " ".join(text[start:end].lower().split()) in listed
        before, after = text[start - 1 : start], text[end : end + 1]
        assert not (before.isalnum() and text[start].isalnum()) and not (after.isalnum() and text[end - 1].isalnum())


def test_masked():
    assert masked("turnip") == "t*****"
    assert masked("$x y") == "$* y"
