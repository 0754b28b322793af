"""What may be asked of an export, what is refused and how, and how a job reaches the environment that quantises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ft_pipeline.errors import RecipeError, UserError
from ft_pipeline.gate.artifact import Verdict
from ft_pipeline.serve.export import advice
from ft_pipeline.serve.export.formats import FORMATS, LIBRARY, export_of, exported_spec, require_fit
from ft_pipeline.serve.export.policy import Fidelity, judged, parse_policy, policy_for, policy_names, read_policy
from ft_pipeline.settings import PROJECT
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.job import Job, Placement, read_job
from ft_pipeline.workers.local import LocalWorker
from ft_pipeline.workers.messages import ignore
from ft_pipeline.workers.placed import PlacedWorker

PARENTS = {"base": Ref(kind="base_model", fingerprint="1" * 64, digest="2" * 64)}


def found(**changes) -> Fidelity:
    """An export as good as its source, over 200 tokens."""
    same = {"rows": 20, "tokens": 200, "kl": 0.0, "top1": 1.0, "reference_perplexity": 3.0, "perplexity": 3.0}
    return Fidelity(**{**same, **changes})


def verdicts(fidelity: Fidelity, policy: str = "standard") -> dict[str, str]:
    return {gate.name: str(gate.verdict) for gate in judged(fidelity, read_policy(policy))}


def test_every_choice_is_another_artifact_and_a_habit_is_written_out():
    asked = [
        export_of("merged"), export_of("w8a8"), export_of("w8a8", algorithm="rtn"), export_of("w4a16"), export_of("w4a16", group=32),
        export_of("w4a16", calibration_windows=64), export_of("fp8"), export_of("mxfp8"), export_of("mxfp4"),
    ]  # fmt: skip
    assert len({exported_spec(one, PARENTS).fingerprint for one in asked}) == len(asked)
    assert exported_spec(export_of("w4a16"), PARENTS).config == {
        "format": "w4a16", "scheme": "W4A16", "algorithm": "gptq", "group": 128, "calibration_windows": 256,
        "dtype": "bfloat16", "library": LIBRARY,
    }  # fmt: skip
    assert exported_spec(export_of("merged"), PARENTS).config == {"format": "merged", "algorithm": "none"}


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("w8a16", {}, "no export format 'w8a16'"),
        ("merged", {"algorithm": "gptq"}, "algorithm gptq with the format merged"),
        ("w8a8", {"algorithm": "awq"}, "no algorithm 'awq'"),
        ("w8a8", {"group": 32}, "w8a8 has no group of 32"),
        ("fp8", {"calibration_windows": 8}, "8 calibration windows with algorithm rtn"),
    ],
)
def test_what_makes_no_sense_is_refused(name, choices, said):
    with pytest.raises(UserError, match=said):
        export_of(name, **choices)


def test_a_model_that_does_not_divide_into_groups_is_told_the_group_that_fits():
    with pytest.raises(UserError, match="hidden_size is 64") as refused:
        require_fit(export_of("w4a16"), {"hidden_size": 64, "intermediate_size": 256})
    assert refused.value.cure == "--group 64"
    require_fit(export_of("w4a16", group=32), {"hidden_size": 64, "intermediate_size": 256})
    require_fit(export_of("fp8"), {"hidden_size": 65})


def test_the_release_in_the_identity_is_the_one_that_is_installed():
    lines = (PROJECT / "requirements-export.lock").read_text().split()
    assert LIBRARY in lines
    assert all("==" in line and "://" not in line and "@" not in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, {}),
        ({"kl": 0.06}, {"kl": "FAIL"}),
        ({"top1": 0.94}, {"top1": "FAIL"}),
        ({"perplexity": 3.2}, {"perplexity": "FAIL"}),
        ({"tokens": 99}, dict.fromkeys(("kl", "top1", "perplexity"), "INCONCLUSIVE")),
        ({"tokens": 99, "kl": 1.0}, {"kl": "FAIL", "top1": "INCONCLUSIVE", "perplexity": "INCONCLUSIVE"}),
        ({"kl": float("nan")}, {"kl": "ERROR"}),
    ],
)
def test_each_limit_stops_alone_and_few_tokens_never_pass(changes, wrong):
    passed = dict.fromkeys(("kl", "top1", "perplexity"), "PASS")
    assert verdicts(found(**changes)) == {**passed, **wrong}


def test_the_reason_holds_the_number_and_the_limit():
    gates = {gate.name: gate for gate in judged(found(kl=0.0617, perplexity=3.3), read_policy("standard"))}
    assert "0.0617 nats" in gates["kl"].reason and "allows 0.05" in gates["kl"].reason
    assert "from 3 to 3.3 (+10.00%)" in gates["perplexity"].reason
    assert gates["top1"].verdict is Verdict.PASS


def test_strict_gates_have_strict_exports_and_loose_ones_wait_for_a_person():
    assert {name: policy_for(name) for name in ("dev", "staging", "production", "regulated")} == {
        "dev": "standard", "staging": "standard", "production": "strict", "regulated": "strict",
    }  # fmt: skip
    policies = {name: read_policy(name) for name in policy_names()}
    assert policies["strict"].kl < policies["standard"].kl < policies["loose"].kl
    assert policies["strict"].top1 > policies["standard"].top1 > policies["loose"].top1
    assert {name: p.auto_promote for name, p in policies.items()} == {"strict": True, "standard": True, "loose": False}


def test_a_policy_that_says_nothing_sensible_is_refused():
    document = {"kl": 0.1, "top1": 1.5, "perplexity_ratio": 1.1, "minimum_tokens": 1, "auto_promote": True}
    with pytest.raises(RecipeError, match=r"top1 1\.5 a share"):
        parse_policy(document, origin="mine")
    with pytest.raises(RecipeError, match="fidelity policy mine: "):
        parse_policy({**document, "top1": 0.9, "tpo1": 0.9}, origin="mine")


def export_job(home, **changes) -> Job:
    spec = Spec(kind="exported_model", config={"format": "fp8"}, parents=PARENTS, code="t")
    return Job(
        name="fp8 acme/router@1", module="ft_pipeline.serve.export.main", spec=spec, section={}, facts={},
        folder=home.work / "runs" / spec.fingerprint, placement=Placement(**changes), environment="export",
    )  # fmt: skip


def test_without_the_environment_the_cure_is_named(home, store, tmp_path):
    where = replace(home, export_python=tmp_path / "nothing" / "python")
    with pytest.raises(UserError, match="needs another environment") as refused:
        LocalWorker(where, store).run(export_job(home), ignore)
    assert "make setup-export" in refused.value.cure


def test_in_a_cluster_it_has_an_image_of_its_own(home, store):
    where = replace(home, store_uri="s3://bucket/x")
    with pytest.raises(UserError, match="needs another image") as refused:
        PlacedWorker(where, store).run(export_job(home, worker="kubernetes"), ignore)
    assert "FT_EXPORT_IMAGE" in refused.value.cure


def test_a_job_remembers_its_environment_and_older_ones_are_ours(home):
    job = export_job(home)
    job.folder.mkdir(parents=True)
    path = job.write()
    assert read_job(path).environment == "export"
    body = json.loads(path.read_text())
    del body["environment"]
    path.write_text(json.dumps(body))
    assert read_job(path).environment == "ours"


@pytest.mark.parametrize(
    ("gpu", "format_name", "hardware"),
    [
        ("a100", "fp8", "unpacks it to 16 bits"), ("h100-80gb", "fp8", "multiplies in it"), ("a100", "w8a8", "multiplies in it"),
        ("b200", "w8a8", "does not run it"), ("t4", "w4a16", "unpacks it to 16 bits"), ("h200", "mxfp8", "does not run it"),
        ("b200", "mxfp8", "multiplies in it"), ("v100", "fp8", "does not run it"),
    ],
)  # fmt: skip
def test_the_hardware_column_is_what_the_sources_say(gpu, format_name, hardware):
    rows = {row["format"]: row for row in advice.rows(gpu, {})}
    assert set(rows) == set(FORMATS)
    assert rows[format_name]["hardware"] == hardware


def test_the_advice_needs_all_three_layers():
    good = {"kl": 0.01, "top1": 0.99, "perplexity_ratio": 1.01, "mb": 1.0, "verdict": "PASS"}
    told = {
        row["format"]: row["advice"]
        for row in advice.rows("h100", {"fp8": good, "w4a16": good, "w8a8": {**good, "verdict": "FAIL"}})
    }
    assert told["fp8"] == "yes: all three layers agree"
    assert told["w4a16"] == "for memory and small batches, not for throughput"
    assert told["w8a8"] == "no: FAIL for this model"
    assert told["mxfp8"] == "no: the GPU does not run it"
    assert told["mxfp4"].startswith("measure it")
    assert [row["gb_of_70b"] for row in advice.rows(None, {}) if row["format"] in ("merged", "fp8", "w4a16")] == [
        140,
        35,
        70,
    ]


def test_every_entry_of_the_table_names_a_source_that_is_listed():
    text = "\n".join(advice.lessons())
    for row in advice.rows(None, {}):
        assert row["sources"] and all(f"[{name}]" in text for name in row["sources"].split(", "))
    with pytest.raises(UserError, match="no GPU 'h1000'"):
        advice.rows("h1000", {})
