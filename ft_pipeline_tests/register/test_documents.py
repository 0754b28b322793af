"""What a registered model says of itself: card and plots, ML-BOM, Croissant, lineage page."""

from __future__ import annotations

import json
import re

import pytest

from ft_pipeline.register.artifact import CARD, CARD_PAGE, CROISSANT, GATE_PLOT, LOSS_PLOT, ML_BOM
from ft_pipeline.register.card_plots import forest_svg, loss_svg
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline_tests import lines

LINE = "acme/router"


@pytest.fixture
def outcome(home, store, catalog, monkeypatch):
    from ft_pipeline import settings

    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    made = lines.publish_line(store, catalog, base=lines.plain_base(store))
    candidate = Candidate(
        recipe=find_recipe(settings.load(), LINE), adapter=made["adapter"].ref, report=made["eval_report"].ref,
        base=made["base_model"].ref, run_id="run-1",
    )  # fmt: skip
    return register(candidate, store=store, catalog=catalog, settings=home)


def read(outcome, name: str) -> str:
    return outcome.artifact.file(name).read_text(encoding="utf-8")


def test_the_card_comes_as_markdown_and_as_a_page_with_its_pictures(outcome):
    assert f"![Loss over the steps]({LOSS_PLOT})" in read(outcome, CARD)
    page = read(outcome, CARD_PAGE)
    assert page.count("<svg") == 2 and "<script" not in page
    for said in (
        f"<h1>{LINE}@1</h1>",
        "arithmetic",
        'class="PASS"',
        "exact_duplicate",
        "LoRA rank",
        "raw (raw_dataset)",
    ):
        assert said in page
    assert "arithmetic  PASS" in read(outcome, GATE_PLOT)


def test_the_loss_is_drawn_with_its_ends():
    losses = [{"step": n, "loss": 3.0 - n / 100, **({"validation_loss": 2.5} if n == 50 else {})} for n in range(101)]
    picture = loss_svg(losses)
    assert "step 100" in picture and ">3<" in picture and ">2<" in picture and picture.count("<circle") == 1
    assert len(re.findall(r"[\d.]+,[\d.]+", picture)) == 101
    assert loss_svg([{}]).count("no loss was recorded") == 1
    assert loss_svg(losses) == picture


def test_a_gate_that_was_not_measured_leaves_no_mark():
    gates = [
        {"name": "a<b", "verdict": "FAIL", "low": -0.2, "high": -0.1, "difference": -0.15},
        {"name": "s", "verdict": "SKIPPED"},
    ]
    picture = forest_svg(gates)
    assert "a&lt;b  FAIL" in picture and "SKIPPED" not in picture
    assert "no gate was measured" in forest_svg(gates[1:])


def test_the_bill_of_materials_names_every_ancestor_and_who_was_made_of_whom(outcome):
    bom = json.loads(read(outcome, ML_BOM))
    assert (bom["bomFormat"], bom["specVersion"], bom["metadata"]["component"]["version"]) == ("CycloneDX", "1.6", "1")
    refs = {bom["metadata"]["component"]["bom-ref"], *(c["bom-ref"] for c in bom["components"])}
    kinds = {ref.split("@")[0] for ref in refs}
    assert kinds >= {
        "adapter",
        "base_model",
        "raw_dataset",
        "curated_dataset",
        "packed_shards",
        "checkpoints",
        "eval_report",
    }
    assert (
        all(set(d["dependsOn"]) <= refs for d in bom["dependencies"])
        and {d["ref"] for d in bom["dependencies"]} == refs
    )
    metrics = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {m["type"] for m in metrics} == {"holdout", "arithmetic"} and metrics[0]["confidenceInterval"]["lowerBound"]


def test_the_bill_of_materials_fits_the_schema(outcome):
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(read(outcome, ML_BOM)) is None


def test_croissant_points_from_the_data_to_the_model(outcome):
    document = json.loads(read(outcome, CROISSANT))
    assert document["sha256"] == outcome.model.dataset_digest
    assert document["subjectOf"]["name"] == f"{LINE}@1" and document["license"] == "mit"


def test_the_lineage_page_shows_every_artifact_with_digest_size_date_and_code(outcome, home, typed, store):
    ended = typed("lineage", f"{LINE}@1", "--html", str(home.home / "out" / "l.html"))
    assert ended.code == 0, ended.err
    page = (home.home / "out" / "l.html").read_text(encoding="utf-8")
    assert page.count("<rect") == outcome.artifact.manifest.counts["ancestors"] + 1
    for manifest in store.all():
        assert manifest.digest in page and manifest.created_at[:16].replace("T", " ") in page
    assert re.search(r"\d+(\.\d)? (B|kB) in \d+ files", page) and "code " in page
