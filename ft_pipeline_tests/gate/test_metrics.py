"""Metrics: how near an answer comes to its reference, row by row and as a set, and what a recipe may say about them."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ft_pipeline.errors import DataError, RecipeError
from ft_pipeline.gate import metrics
from ft_pipeline.gate.metrics.function import function_code
from ft_pipeline.gate.metrics.named import BUILDERS
from ft_pipeline.recipe_gate import METRICS, NEEDED, HoldoutGate

NEEDS = {"json_schema": {"schema": {"type": "object", "required": ["a"]}}, "regex": {"pattern": r"\d+ (\w+)"}}


def score(metric: str, reference: str, answer: str, **parameters) -> float:
    return metrics.metric_of(metric, parameters).score(reference, answer)


@pytest.mark.parametrize(("metric", "reference", "answer", "wanted"), [
    ("exact_match", "zip file", " zip\n file ", 1.0), ("exact_match", "zip", "Zip", 0.0), ("exact_match", "e\u0301", "\u00e9", 1.0),
    ("token_f1", "the quick fox", "quick the", 0.8), ("token_f1", "a a b", "a", 0.5), ("token_f1", "a", "", 0.0),
    ("rouge_1", "the quick fox", "quick the", 0.8), ("rouge_2", "the quick fox", "the quick dog", 0.5), ("rouge_2", "yes", "yes", 1.0),
    ("rouge_l", "the cat sat down", "the dog sat", 4 / 7), ("rouge_l", "a b c", "c b a", 1 / 3), ("rouge_l", "", "", 1.0),
    ("json_equal", '{"a": 1, "b": [2.0]}', '```json\n{"b": [2], "a": 1}\n```', 1.0), ("json_equal", '{"a": 1}', '{"a": true}', 0.0),
    ("json_equal", "[]", "no JSON", 0.0), ("numeric", "#### 1,234", "so it is 12, or rather $1234.00", 1.0),
    ("numeric", "5", "5 apples and 6 pears", 0.0), ("numeric", "5", "#### 5\nwhich took 3 steps", 1.0), ("numeric", "5", "none", 0.0),
    ("numeric", "-3", "3", 0.0), ("numeric", "0.001", "1e-3", 1.0),
])  # fmt: skip
def test_scores(metric: str, reference: str, answer: str, wanted: float) -> None:
    assert score(metric, reference, answer) == pytest.approx(wanted)


def test_parameters_change_what_counts() -> None:
    assert score("exact_match", "zip", "Zip", ignore_case=True) == 1
    assert [score("numeric", "100", said, tolerance=0.5) for said in ("100.5", "100.6")] == [1, 0]
    assert [score("numeric", "200", said, relative=0.01) for said in ("198", "197")] == [1, 0]
    assert [score("regex", "", said, pattern=r"\d+ \w+") for said in (" 3 cats ", "I saw 3 cats")] == [1, 0]
    assert [score("regex", "cats", said, pattern=r"\d+ (\w+)", group=1) for said in ("3 cats", "3 dogs")] == [1, 0]
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    assert [
        score("json_schema", "", s, schema=schema) for s in ('{"age": 3}', '{"age": "3"}', "age: 3", '{"age": NaN}')
    ] == [1, 0, 0, 0]


def test_a_reference_without_a_number_or_json_cannot_be_compared_with() -> None:
    assert [metrics.metric_of("numeric", {}).usable(r) for r in ("it is 3", "three")] == [True, False]
    assert [metrics.metric_of("json_equal", {}).usable(r) for r in ("{}", "{")] == [True, False]


@settings(max_examples=60)
@given(some.text(max_size=40), some.text(max_size=40), some.sampled_from(sorted(BUILDERS)))
def test_every_metric_is_a_share_of_any_text(one: str, other: str, name: str) -> None:
    assert 0 <= score(name, one, other, **NEEDS.get(name, {})) <= 1
    if name in ("exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l", "macro_f1"):
        assert score(name, one, one) == 1


REFERENCES = ["the cat sat on the mat", "there is a house on the hill", "it rains today and tomorrow it snows"]
ANSWERS = ["the cat sat on a mat", "a house stands on the hill .", "today it rains , and it snows tomorrow"]


@pytest.mark.parametrize(
    ("name", "parameters"), [("bleu", {}), ("bleu", {"tokenize": "char"}), ("chrf", {}), ("chrf", {"word_order": 2})]
)
def test_corpus_scores_are_those_of_sacrebleu(name: str, parameters) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    theirs = (BLEU if name == "bleu" else CHRF)(**parameters).corpus_score(ANSWERS, [REFERENCES]).score / 100
    ours = metrics.corpus_of(name, parameters)
    assert (
        ours is not None and ours.score(REFERENCES, ANSWERS) == pytest.approx(theirs, abs=1e-12) and 0.2 < theirs < 0.9
    )
    assert ours.score(REFERENCES, REFERENCES) == pytest.approx(1)


def test_macro_f1_counts_a_rare_label_as_much_as_a_common_one() -> None:
    want = ["spam"] * 90 + ["ham"] * 8 + ["egg"] * 2
    said = ["spam"] * 88 + ["ham"] * 7 + ["spam"] * 3 + ["nonsense"] * 2
    ours = metrics.corpus_of("macro_f1", {})
    # hits, said, wanted: spam 88, 91, 90; ham 5, 7, 8; egg 0, 0, 2. scikit-learn 1.9 gives the same
    assert ours is not None
    assert ours.score(want, said) == pytest.approx((2 * 88 / 181 + 2 * 5 / 15 + 0) / 3)


def test_the_table_of_the_recipe_and_the_metrics_are_the_same() -> None:
    assert set(METRICS) == set(BUILDERS) and all(HoldoutGate(metric=n, parameters=NEEDS.get(n, {})) for n in METRICS)
    assert set(NEEDED) == set(NEEDS)


@pytest.mark.parametrize(("metric", "parameters", "said"), [
    ("rouge", {}, "did you mean rouge_"), ("numeric", {"tolerence": 1}, "takes tolerance, relative"), ("bleu", {"tokenize": "flores200"}, "13a"),
    ("regex", {}, "needs the parameter 'pattern'"), ("regex", {"pattern": "("}, "unterminated"), ("regex", {"pattern": "a", "group": 1}, "has 0"),
    ("json_schema", {"schema": {"type": "objekt"}}, "objekt"), ("numeric", {"tolerance": -1}, "negative"), ("chrf", {"word_order": 5}, r"chrF\+\+"),
    ("exact_match", {"ignore_case": "yes"}, "another type"), ("numeric", {"tolerance": True}, "another type"),
])  # fmt: skip
def test_a_wrong_metric_is_refused_where_the_recipe_is_read(metric, parameters, said) -> None:
    with pytest.raises(ValueError, match=said):
        HoldoutGate(metric=metric, parameters=parameters)


OWN = """
def starts(reference, answer, *, letters=1):
    return 1.0 if answer[:letters] == reference[:letters] else 0.0

def broken(reference, answer):
    return answer[0]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "own_metric.py"
    sys.modules.pop("own_metric", None)


def test_a_function_of_the_recipes_own_is_a_metric_versioned_by_its_source(own) -> None:
    assert score("own_metric:starts", "abc", "abd", letters=2) == 1
    before = function_code("own_metric:starts")
    own.write_text("# a remark\n" + OWN)
    assert function_code("own_metric:starts") == before
    own.write_text(OWN.replace("letters=1", "letters=2"))
    assert function_code("own_metric:starts") != before


def test_a_function_that_is_none_or_fails_says_what_to_do(own) -> None:
    with pytest.raises(RecipeError, match="no function 'ends'"):
        metrics.metric_of("own_metric:ends", {})
    with pytest.raises(RecipeError, match="cannot be called"):
        metrics.metric_of("own_metric:starts", {"words": 2})
    with pytest.raises(RecipeError, match="no module nowhere"):
        function_code("nowhere.at_all:f")
    with pytest.raises(DataError, match="failed on the answer '': IndexError"):
        score("own_metric:broken", "a", "")
    with pytest.raises(DataError, match="gave 'x', which is no share"):
        score("own_metric:broken", "a", "x")
