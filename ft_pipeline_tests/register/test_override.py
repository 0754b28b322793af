"""A person overrules a verdict: signed, chained, named wherever the version is shown, and never safety by default."""

from __future__ import annotations

import base64
import json

import pytest

from ft_pipeline import recipe
from ft_pipeline.errors import GateRefused, IntegrityError, NotFoundError, UserError
from ft_pipeline.register import acts, approval, promotion
from ft_pipeline.register.artifact import CARD, open_registered
from ft_pipeline.register.attest import verify_statement
from ft_pipeline.register.keys import trusted_keys
from ft_pipeline.register.override import FILE, PREDICATE_TYPE, override_of, overrule
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import lines

LINE = "acme/router"
WHY = "the suite asks for dates before 1900, which this tenant never does"


@pytest.fixture
def made(home, store, catalog, monkeypatch):
    """A line whose report fails on one gate."""
    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    return lines.publish_line(store, catalog, base=lines.plain_base(store), verdict="FAIL")


@pytest.fixture
def house(home, store, catalog):
    return {"store": store, "catalog": catalog, "settings": home}


def registered(made, house):
    candidate = Candidate(
        recipe=recipe.read(house["settings"].home / "recipes" / "acme-router.yaml"), adapter=made["adapter"].ref, report=made["eval_report"].ref,
        base=made["base_model"].ref, run_id="r",
    )  # fmt: skip
    return register(candidate, **house)


def report_of(made, store, *gates, **policy):
    """A FAIL of these gates (name, kind, verdict) about the line's adapter."""
    body = {"verdict": "FAIL", "policy": "dev", "reason": "x", "gates": [lines._gate(*g) for g in gates]}
    parents = {
        role: made[name].ref
        for role, name in (("adapter", "adapter"), ("base", "base_model"), ("curated", "curated_dataset"))
    }
    spec = Spec(
        kind="eval_report", config={"policy": policy, "gates": [list(g) for g in gates]}, parents=parents, code="t"
    )
    return lines.publish(store, spec, {"verdicts.json": json.dumps(body)})


def test_what_a_person_overruled_is_registered_in_staging_and_named_everywhere(made, house, catalog, store):
    with pytest.raises(GateRefused, match="arithmetic says FAIL"):
        registered(made, house)
    said = overrule(made["eval_report"].ref, ["arithmetic"], line=LINE, reason=WHY, **house)
    outcome = registered(made, house)
    assert outcome.model.stage == "staging", "its policy promotes a PASS by itself, and this is none"
    last = catalog.history(f"{LINE}@1")[-1]
    assert last.approved_by == said.principal and WHY in last.reason and said.actor in last.reason
    card = outcome.artifact.file(CARD).read_text()
    assert "**Overruled by a person:**" in card and WHY in card and "| arithmetic | FAIL |" in card
    assert outcome.artifact.manifest.parents["override"] == said.ref
    assert open_registered(store, outcome.artifact.ref, house["settings"]).model == f"{LINE}@1"
    assert outcome.evidence.verdict == "FAIL", "the report stays as it is"


def test_production_of_it_takes_a_second_person_and_history_names_the_override(made, house, catalog, store):
    said = overrule(made["eval_report"].ref, ["arithmetic"], line=LINE, reason=WHY, **house)
    model = registered(made, house).model
    move = {"store": store, "actor": "ann", "reason": "agreed"}
    with pytest.raises(GateRefused, match="approved by nobody"):
        promotion.promote(catalog, model, **move)
    asked = acts.promote(model.label, actor="ann", reason="agreed", **house)
    assert isinstance(asked, approval.Request), "a policy that promotes a PASS by itself does not promote this"
    done = acts.approve(model.label, actor="bob", **house)
    assert (done.to_stage, done.actor, done.approved_by) == (
        "production",
        "ann",
        "bob",
    ) and said.principal in done.reason
    assert catalog.verify_history() == 3


def test_every_gate_in_the_way_must_be_named_and_each_override_names_the_one_before(made, house, store, catalog):
    report = report_of(
        made, store, ("a", "benchmark", "FAIL"), ("b", "holdout", "INCONCLUSIVE"), ("c", "benchmark", "PASS")
    ).ref
    first = overrule(report, ["a"], line=LINE, reason="one", **house)
    with pytest.raises(GateRefused, match=r"\(b\)"):
        registered(made | {"eval_report": store.fetch(report)}, house)
    second = overrule(report, ["b"], line=LINE, reason="two", **house)
    assert second.gates == ("a", "b") and store.fetch(second.ref).manifest.parents["previous"] == first.ref
    assert registered(made | {"eval_report": store.fetch(report)}, house).model.stage == "staging"
    for gate, said in (("c", "does not stand in the way"), ("a", "was overruled before"), ("d", "does not stand")):
        with pytest.raises(UserError, match=said):
            overrule(report, [gate], line=LINE, reason="three", **house)


def test_a_required_gate_that_nobody_measured_may_be_overruled_too(made, house, store):
    report = report_of(
        made, store, ("holdout", "holdout", "FAIL"), ("judge", "judge", "SKIPPED"), required=["judge"]
    ).ref
    assert overrule(report, ["holdout", "judge"], line=LINE, reason="no judge is at hand", **house).gates == (
        "holdout",
        "judge",
    )


def test_safety_is_never_overruled_unless_the_policy_allows_it(made, house, store):
    gate = ("safety", "safety", "FAIL")
    with pytest.raises(GateRefused, match="safety cannot be overruled: policy dev refuses that"):
        overrule(report_of(made, store, gate).ref, ["safety"], line=LINE, reason="trust me", **house)
    allowed = report_of(made, store, gate, safety_override="allowed").ref
    assert overrule(allowed, ["safety"], line=LINE, reason="a red team's own model", **house).gates == ("safety",)


def test_a_reason_is_asked_for_and_a_pass_has_nothing_to_overrule(made, house, store, catalog):
    with pytest.raises(UserError, match="needs a reason"):
        overrule(made["eval_report"].ref, ["arithmetic"], line=LINE, reason="  ", **house)
    good = lines.publish_line(store, catalog, base=made["base_model"], seed=2)["eval_report"].ref
    with pytest.raises(UserError, match="does not stand in the way"):
        overrule(good, ["arithmetic"], line=LINE, reason=WHY, **house)


def test_an_override_is_of_its_report_alone(made, house, store, catalog):
    overrule(made["eval_report"].ref, ["arithmetic"], line=LINE, reason=WHY, **house)
    other = lines.publish_line(store, catalog, base=made["base_model"], seed=3, verdict="FAIL")
    with pytest.raises(GateRefused, match="arithmetic says FAIL"):
        registered(other, house)


def test_a_tampered_override_is_refused(made, house, store, home):
    said = overrule(made["eval_report"].ref, ["arithmetic"], line=LINE, reason=WHY, **house)
    path = store.fetch(said.ref).file(FILE)
    body = json.loads(path.read_bytes())
    claim = json.loads(base64.b64decode(body["payload"]))
    claim["predicate"]["actor"] = "somebody else"
    path.chmod(0o600)
    path.write_text(json.dumps(body | {"payload": base64.b64encode(json.dumps(claim).encode()).decode()}))
    with pytest.raises(IntegrityError):
        registered(made, house | {"store": open_store(home)})


def test_an_override_that_another_key_signed_or_that_was_signed_for_another_report_is_refused(
    made, house, store, catalog, home, tmp_path
):
    from dataclasses import replace

    said = overrule(made["eval_report"].ref, ["arithmetic"], line=LINE, reason=WHY, **house)
    envelope = store.fetch(said.ref).file(FILE).read_bytes()
    assert (
        verify_statement(json.loads(envelope), trusted_keys(home), predicate_type=PREDICATE_TYPE)["predicate"]["reason"]
        == WHY
    )
    other = lines.publish_line(store, catalog, base=made["base_model"], seed=4, verdict="FAIL")
    copied = lines.publish(
        store,
        Spec(kind="override", config={"copied": 1}, parents={"report": other["eval_report"].ref}, code="t"),
        {FILE: envelope.decode()},
    )
    catalog.index(copied.manifest)
    with pytest.raises(GateRefused, match="was signed for the report"):
        registered(other, house)
    stranger = replace(home, signing_key=tmp_path / "keys" / "own.pem")
    forged = lines.publish_line(store, catalog, base=made["base_model"], seed=5, verdict="FAIL")
    overrule(forged["eval_report"].ref, ["arithmetic"], line=LINE, reason=WHY, **(house | {"settings": stranger}))
    with pytest.raises(IntegrityError, match="signature"):
        override_of(forged["eval_report"].ref, **house)


def test_the_command_overrules_registers_and_says_what_is_left(made, typed, store, catalog, house):
    answer = typed("override", LINE, "--gate", "arithmetic", "--reason", WHY, "--json")
    row = json.loads(answer.out)[0]
    assert answer.code == 0 and (row["model"], row["stage"], row["gates"]) == (f"{LINE}@1", "staging", "arithmetic")
    report = report_of(made, store, ("a", "benchmark", "FAIL"), ("safety", "safety", "FAIL"))
    catalog.set_head(LINE, "eval_report", report)
    left = json.loads(typed("override", report.ref.digest[:12], "--gate", "a", "--reason", WHY, "--json").out)[0]
    assert left["still open"] == "safety" and "model" not in left
    refused = typed("override", LINE, "--gate", "safety", "--reason", WHY)
    assert refused.code == 3 and "cannot be overruled" in refused.err
    assert typed("override", "acme/rooter", "--gate", "a", "--reason", WHY).code == NotFoundError("x").exit_code
