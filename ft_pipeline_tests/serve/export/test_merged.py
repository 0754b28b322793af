"""A merged export from the command line to answers: its own signed version, the adapter's answers, found again, taken down with its rows."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from ft_pipeline import lineage, resources
from ft_pipeline.cli.trace import audit
from ft_pipeline.errors import IntegrityError, UserError
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.register.takedown import affected_by
from ft_pipeline.store.manifest import Ref
from ft_pipeline_tests import lines, road


def answers(house, name: str, questions: list[str]) -> list[str]:
    """What the embedded server says."""
    from ft_pipeline.serve.engine import Generation
    from ft_pipeline.serve.main import limits_of, open_engine

    engine = open_engine(house.settings, limits_of(house.settings))
    engine.refresh()
    try:
        asked = [Generation(model=name, prompt=[{"role": "user", "content": q}], max_tokens=8) for q in questions]
        return ["".join(piece.text for piece in engine.answer(one).pieces) for one in asked]
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_merged_weights_are_a_version_of_their_own(finished_run: Path, typed):
    ended = typed("export", road.KEY, "--json")
    assert ended.code == 0, ended.err
    row = json.loads(ended.out)[0]
    assert (row["format"], row["verdict"], row["version"], row["stage"]) == (
        "merged",
        "PASS",
        "acme/router-merged@1",
        "production",
    )
    assert row["kl"] < 1e-6 and row["top1"] == 1.0 and row["perplexity_ratio"] == pytest.approx(1, abs=1e-4)
    house = resources.open_house()
    version = house.catalog.model("acme/router-merged")
    assert (version.artifact_type, version.lora_rank) == ("full_model", None)
    made = house.find(version.adapter_digest)
    assert {"model.safetensors", "config.json", "chat_template.jinja", "completion.json"} <= set(made.manifest.files)
    assert not [name for name in made.manifest.files if name.startswith("adapter")]
    assert str(finished_run) not in made.file("config.json").read_text()
    _is_verified_to_the_raw_bytes(house, made)
    questions = [road.question(n)["messages"][0]["content"] for n in (900, 901)]
    assert answers(house, "acme/router-merged", questions) == answers(house, road.KEY, questions)
    _goes_with_its_rows(house)
    told = house.find(version.registered_digest).file("model_card.md").read_text()
    assert "A merged export of a LoRA adapter for the base model" in told and "base_model_relation: merge" in told
    house.catalog.close()


def _is_verified_to_the_raw_bytes(house, made):
    kinds = [checked.ref.kind for checked in audit(house, "acme/router-merged").checked]
    assert {"raw_dataset", "adapter", "exported_model", "eval_report", "registered_model"} <= set(kinds)
    road.flip_byte(made.file("model.safetensors"))
    with pytest.raises(IntegrityError, match=r"exported_model .*model\.safetensors"):
        audit(house, "acme/router-merged")
    road.flip_byte(made.file("model.safetensors"))


def _goes_with_its_rows(house):
    curated = house.store.fetch(house.catalog.head(road.KEY, "curated_dataset"))
    row = pl.read_parquet(curated.file("train.parquet"))["row_id"][0]
    assert "acme/router-merged@1" in {
        v.label for v in affected_by([row], store=house.store, catalog=house.catalog).versions
    }
    seen = lineage.adapters_that_saw(house.store, house.catalog, row).adapters
    assert {version for one in seen for version in one.versions} == {
        "acme/router@1 (production)", "acme/router-merged@1 (production)",
    }  # fmt: skip


def test_a_recipe_and_an_export_never_share_a_line(home, store, catalog, monkeypatch):
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    base = lines.plain_base(store)
    for line in ("acme/router", "acme/router-merged"):
        lines.recipe_file(home, line)
    made = lines.publish_line(store, catalog, base=base, line="acme/router-merged")
    named = resources.find_recipe(resources.settings.load(), "acme/router-merged")
    candidate = {"report": made["eval_report"].ref, "base": base.ref, "run_id": "r"}
    register(
        Candidate(recipe=named, adapter=made["adapter"].ref, **candidate), store=store, catalog=catalog, settings=home
    )
    recipe = resources.find_recipe(resources.settings.load(), "acme/router")
    exported = Ref(kind="exported_model", fingerprint="1" * 64, digest="2" * 64)
    with pytest.raises(UserError, match=r"acme/router-merged holds versions of the kind adapter"):
        register(
            Candidate(recipe=recipe, adapter=exported, exported_as="merged", **candidate),
            store=store, catalog=catalog, settings=home,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export",), "MODEL is missing"),
        (("export", "acme/router", "--gpu", "h100"), "--gpu h100 without --advise"),
        (("export", "acme/nothing"), "no model acme/nothing"),
    ],
)
def test_what_the_command_cannot_do_is_said(typed, words, said):
    ended = typed(*words)
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err


def test_the_advice_needs_no_model(typed):
    ended = typed("export", "--advise", "--gpu", "h100", "--json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert {row["format"]: row["hardware"] for row in rows}["fp8"] == "multiplies in it"
