"""Any dataset's columns under the names of a layout, and every mistake with its key."""

from __future__ import annotations

import pytest

from ft_pipeline.curate.artifact import Rejection
from ft_pipeline.curate.mapping import open_mapping
from ft_pipeline.curate.normalize import Normal, normalize
from ft_pipeline.errors import RecipeError

ROW = {
    "q": "hi ", "n": 3, "turns": [{"role": "user", "content": "a"}], "d": {"items": ["x", "y"], "none": None}, "my column": "m", "value": "v",
    "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ q }}", "hi "),
        ("{{ turns }}", ROW["turns"]),
        ("{{ n }}", 3),
        ("{{ nothing }}", None),
        ("{{ d['items'][1] }}", "y"),
        ("{{ d.items }}", ["x", "y"]),
        ("{{ value }}", "v"),
        ("{{ row['my column'] }}", "m"),
        ("{{ n > 2 }}", True),
        ("{{ [{'role': 'user', 'content': q}] }}", [{"role": "user", "content": "hi "}]),
        ("{{ turns | map(attribute='role') }}", ["user"]),
        ("{{ '[1, 2]' | fromjson }}", [1, 2]),
        ("{{ d | tojson }}", '{"items": ["x", "y"], "none": null}'),
        ("Q: {{ q }}\n", "Q: hi \n"),
        ("<b>{{ q }}&</b>", "<b>hi &</b>"),
        ("{% for t in turns %}{{ t.role }};{% endfor %}", "user;"),
        ("{{ other | default('x') }}", "x"),
        ("always", "always"),
    ],
)
def test_templates(template, value):
    assert open_mapping({"text": template})(ROW) == {"text": value}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ other }}", "'other' is no column: d, my column"),
        ("a {{ other }}", "'other' is undefined"),
        ("{{ turns[0].name }}", "no attribute 'name'"),
        ("{{ [turns[0].name] }}", "no attribute 'name'"),
        ("a {{ nothing }}", "a null within text"),
        ("a {{ turns }}", "a list or object within text"),
        ("{{ turns }}\n", "a list or object within text"),
        ("{{ n / 0 }}", "ZeroDivisionError"),
        ("{{ q + n }}", "TypeError"),
        ("{{ turns.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ d.keys }}", "is no value of a row"),
        ("{{ q | truncate(1) }}", "AssertionError"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{{ 'x' | fromjson }}", "JSONDecodeError"),
    ],
)
def test_a_row_that_does_not_map_says_why(template, said):
    found = open_mapping({"prompt": "{{ q }}", "text": template})(ROW)
    assert isinstance(found, Rejection)
    assert (found.reason, found.path) == ("mapping_failed", "text")
    assert said in found.value


@pytest.mark.parametrize(
    ("mapping", "what", "cure"),
    [
        ({}, "mapping is empty", "leave it out"),
        ({"promt": "{{ q }}"}, "mapping.promt", "did you mean prompt"),
        ({"prompt": "{{ q"}, "mapping.prompt: '{{ q' is no Jinja template, line 1", "{{ name }}"),
        ({"prompt": "a\n{% if q %}"}, "line 2", "{{ name }}"),
        ({"prompt": "{{ q | shout }}"}, "No filter named 'shout'", "jinja"),
        ({"prompt": "a {{ q | random }}"}, "No filter named 'random'", "jinja"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_at_once(mapping, what, cure):
    with pytest.raises(RecipeError) as caught:
        open_mapping(mapping)
    assert what in caught.value.what
    assert cure in caught.value.cure


def test_only_mapped_keys_go_on():
    mapping = open_mapping({"prompt": "{{ question }}", "completion": "{{ answer }}", "system": "{{ role }}"})
    row = {"question": "hi", "answer": "yo", "role": None, "messages": "not of this layout", "images": ["x"]}
    assert normalize(row, "auto", mapping) == Normal(
        layout="prompt_completion", shape="completion", content={"prompt": "hi", "completion": "yo"}
    )
    assert row["messages"] == "not of this layout"


def test_a_failed_mapping_rejects_the_row_and_none_maps_nothing():
    failed = normalize({"a": 1}, "auto", open_mapping({"text": "{{ b }}"}))
    assert isinstance(failed, Rejection)
    assert failed.reason == "mapping_failed"
    assert open_mapping(None)(ROW) is ROW
