"""Every quantised format for real, in the environment that `make setup-export` makes: made, judged, registered, served, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ft_pipeline import resources
from ft_pipeline.cli.trace import audit
from ft_pipeline_tests import road
from ft_pipeline_tests.serve.export.test_merged import answers

pytestmark = [pytest.mark.export, pytest.mark.timeout(1800)]
FORMATS = ("w8a8", "fp8", "mxfp8", "mxfp4")
FILES = {"model.safetensors", "config.json", "recipe.yaml", "tokenizer.json", "chat_template.jinja", "completion.json"}


def exported(typed, *words: str) -> list[dict]:
    ended = typed("export", road.KEY, *words, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_every_format_is_a_verified_version_that_answers(finished_run: Path, typed):
    rows = exported(typed, *(word for name in FORMATS for word in ("--format", name)))
    rows += exported(typed, "--format", "w4a16", "--group", "32")
    assert {row["format"]: row["verdict"] for row in rows} == dict.fromkeys((*FORMATS, "w4a16"), "PASS")
    house = resources.open_house()
    question = road.question(900)["messages"][0]["content"]
    for row in rows:
        made = house.find(house.catalog.model(row["version"]).adapter_digest)
        assert set(made.manifest.files) >= FILES
        assert made.manifest.counts["quantised_layers"] == 14
        assert (made.manifest.counts["calibration_tokens"] > 0) == (row["format"] in ("w8a8", "w4a16"))
        config = json.loads(made.file("config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "compressed-tensors"
        assert str(finished_run) not in made.file("config.json").read_text()
        assert row["kl"] < 1e-3 and row["top1"] == 1.0
        assert {"raw_dataset", "exported_model"} <= {c.ref.kind for c in audit(house, row["version"]).checked}
        assert answers(house, row["version"], [question]) == answers(house, road.KEY, [question])
    sizes = {row["format"]: row["mb"] for row in rows}
    assert sizes["w4a16"] < sizes["w8a8"] < 0.4, "the merged one has 0.41 MB"
    told = {row["format"]: row["measured"] for row in json.loads(typed("export", road.KEY, "--advise", "--json").out)}
    assert told.pop("merged") == "not measured", "it was made on the way and asked for by nobody"
    assert all(said.startswith("PASS: KL") for said in told.values())
    house.catalog.close()


def test_what_is_refused_is_no_version_and_says_why(finished_run: Path, typed):
    ended = typed("export", road.KEY, "--format", "fp8", "--policy", "strict", "--json")
    assert ended.code == 3 and "171 tokens are fewer than the 500" in ended.err, ended.err
    row = json.loads(ended.out)[0]
    assert (row["verdict"], row["version"]) == ("INCONCLUSIVE", "not registered")
    house = resources.open_house()
    assert [v.label for v in house.catalog.models()] == ["acme/router@1"]
    house.catalog.close()
