"""Several sources under one raw dataset: nothing is copied twice, everything is an ancestor."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ft_pipeline import lineage, recipe, settings
from ft_pipeline.acquire import dataset
from ft_pipeline.acquire.artifact import SOURCES, raw_files, sources_of
from ft_pipeline.errors import IntegrityError, RecipeError
from ft_pipeline.recipe import Dataset, Source

DEMO = settings.PACKAGE / "recipes" / "demo-docs-router.yaml"
MIX = {"name": "safe", "uri": "home://safe.jsonl"}


@pytest.fixture
def mixed(home):
    home.home.mkdir(parents=True, exist_ok=True)
    for name, rows in {"own": 3, "safe": 2, "more": 4}.items():
        (home.home / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(rows)))
    more = Source(name="more", uri="home://more.jsonl", share=0.3, cap=3, mapping={"text": "{{ text }}"})
    return dataclasses.replace(
        recipe.read(DEMO),
        dataset=Dataset(uri="home://own.jsonl"),
        mix=(Source(name="safe", uri="home://safe.jsonl"), more),
    )


def all_of(found, home, store):
    return dataset.acquire_all(found, settings=home, store=store)


def test_without_a_mix_it_is_the_datasets_own_artifact(home, store, mixed):
    alone = all_of(dataclasses.replace(mixed, mix=()), home, store)
    assert alone.ref == dataset.acquire(mixed.dataset, settings=home, store=store).ref
    (only,) = sources_of(store, alone.ref)
    assert (only.name, only.artifact.ref, only.files) == ("dataset", alone.ref, raw_files(alone))


def test_a_mix_names_its_sources_in_order(home, store, mixed):
    made = all_of(mixed, home, store)
    assert list(made.manifest.files) == [SOURCES]
    sizes = [(home.home / f"{name}.jsonl").stat().st_size for name in ("own", "safe", "more")]
    assert made.manifest.counts == {"files": 3, "bytes": sum(sizes), "sources": 3}
    found = sources_of(store, made.ref)
    assert [s.name for s in found] == ["dataset", "safe", "more"]
    assert [
        len(s.files[f"{n}.jsonl"].read_text().splitlines()) for s, n in zip(found, ("own", "safe", "more"), strict=True)
    ] == [3, 2, 4]
    listed = json.loads(made.file(SOURCES).read_text())["sources"]
    assert [s["digest"] for s in listed] == [s.artifact.ref.digest for s in found]


def test_a_mix_is_named_by_what_is_in_it(home, store, mixed):
    first = all_of(mixed, home, store)
    assert all_of(mixed, home, store).ref == first.ref
    less = dataclasses.replace(
        mixed, mix=(mixed.mix[0], dataclasses.replace(mixed.mix[1], share=0.1, cap=None, mapping=None))
    )
    assert all_of(less, home, store).ref == first.ref, "how much is drawn of a source is curate's"
    turned = dataclasses.replace(mixed, mix=mixed.mix[::-1])
    assert all_of(turned, home, store).ref != first.ref
    (home.home / "safe.jsonl").write_text('{"text": "other"}\n')
    assert all_of(mixed, home, store).ref != first.ref


def test_every_source_is_an_ancestor(home, store, mixed):
    made = all_of(mixed, home, store)
    assert [c.ref for c in lineage.verify(store, made.ref)] == [*made.manifest.parents.values(), made.ref]
    assert set(lineage.tree(store, made.ref).parents) == {"dataset", "safe", "more"}
    sources_of(store, made.ref)[1].files["safe.jsonl"].write_text("{}")
    with pytest.raises(IntegrityError, match=r"safe\.jsonl was changed|safe\.jsonl is cut short"):
        lineage.verify(store, made.ref)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ([MIX, MIX], "two sources are called safe"),
        ([{**MIX, "name": "dataset"}], "dataset is the recipe's own"),
        ([{**MIX, "name": "a/b"}], "source 'a/b': lower-case letters"),
        ([{**MIX, "name": "Safe"}], "source 'Safe'"),
        ([{**MIX, "share": 1.0}], "share 1.0 must be between 0 and 1"),
        ([{**MIX, "cap": 0}], "cap 0 must be at least 1"),
        ([{**MIX, "share": 0.5}, {**MIX, "name": "b", "share": 0.5}], "the shares add up to 1"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(mix, said):
    import yaml

    with pytest.raises(RecipeError) as caught:
        recipe.parse({**yaml.safe_load(DEMO.read_text()), "mix": mix}, origin="test")
    assert said in caught.value.what
