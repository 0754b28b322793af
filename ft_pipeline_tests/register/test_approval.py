"""Two people: one asks for production, another approves; who asked, who moved first or what changed since refuses it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile

import pytest

from ft_pipeline.errors import GateRefused, IntegrityError, NotFoundError, UserError
from ft_pipeline.recipe import Recipe
from ft_pipeline.register import acts, approval
from ft_pipeline.register.approval import FILE, KIND, Request, pending
from ft_pipeline.register.bundle import export
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import lines

LINE = "acme/router"
ONE = f"{LINE}@1"


@pytest.fixture
def recipe(home, monkeypatch) -> Recipe:
    from ft_pipeline import settings

    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    return find_recipe(settings.load(), LINE)


@pytest.fixture
def make(home, store, catalog, recipe):
    def version(seed: int = 1, auto_promote: bool = False):
        made = lines.publish_line(store, catalog, base=lines.plain_base(store), seed=seed, auto_promote=auto_promote)
        candidate = Candidate(
            recipe=recipe, adapter=made["adapter"].ref, report=made["eval_report"].ref, base=made["base_model"].ref, run_id="r",
        )  # fmt: skip
        return register(candidate, store=store, catalog=catalog, settings=home).model

    return version


@pytest.fixture
def house(home, store, catalog):
    return {"store": store, "catalog": catalog, "settings": home}


def ask(house, name: str = ONE, actor: str = "ann") -> Request:
    made = acts.promote(name, "production", actor=actor, reason="the holdout is better", **house)
    assert isinstance(made, Request)
    return made


def stage(catalog, name: str = ONE) -> str:
    return catalog.model(name).stage


def test_one_asks_another_approves_and_history_names_both_and_the_request(make, house, catalog):
    make()
    asked = ask(house)
    assert stage(catalog) == "staging" and asked.report_digest == catalog.model(ONE).report_digest
    assert ask(house).ref == asked.ref, "asking again is the same request"
    assert [r.actor for r in pending(**house)] == ["ann"]
    moved = acts.approve(ONE, actor="bob", reason="looked at it", **house)
    assert (moved.from_stage, moved.to_stage, moved.actor, moved.approved_by) == ("staging", "production", "ann", "bob")
    assert moved.reason == f"the holdout is better; bob: looked at it ({asked.principal})"
    assert stage(catalog) == "production" and pending(**house) == []
    assert catalog.seals()[-1]["journal_seq"] == catalog.journal()[-1].seq, "the move is under a signature"
    with pytest.raises(GateRefused, match="is in production now"):
        acts.approve(ONE, actor="eve", **house)


@pytest.mark.parametrize("again", ["ann", "Ann", "dagster:ann", " dagster:Ann "])
def test_who_asked_cannot_approve_under_whatever_door(make, house, catalog, again):
    make()
    ask(house)
    with pytest.raises(GateRefused, match="cannot approve it"):
        acts.approve(ONE, actor=again, **house)
    assert stage(catalog) == "staging"


@pytest.mark.parametrize("nobody", ["", " ", "policy:dev", "override:abc", "transition:3", "dagster:"])
def test_a_policy_or_nobody_is_no_person(make, house, nobody):
    make()
    with pytest.raises(UserError, match="not a person"):
        ask(house, actor=nobody)
    ask(house)
    with pytest.raises(UserError, match="not a person"):
        acts.approve(ONE, actor=nobody, **house)


def test_a_report_that_came_since_makes_it_stale_whatever_it_says(make, house, catalog):
    model = make()
    ask(house)
    suite = catalog.reports(model.id)[-1].suite_sha256
    for passed in (False, True):
        catalog.add_report(model.id, model.base_digest, suite, passed, ("e" if passed else "f") * 64)
        with pytest.raises(GateRefused, match="came after it"):
            acts.approve(ONE, actor="bob", **house)
    assert "came after it" in pending(**house)[0].stale
    ask(house)
    assert acts.approve(ONE, actor="bob", **house).to_stage == "production"


def test_a_line_that_moved_since_makes_it_stale(make, house, catalog):
    make(1), make(2)
    ask(house)
    ask(house, f"{LINE}@2")
    acts.approve(f"{LINE}@2", actor="bob", **house)
    with pytest.raises(GateRefused, match=f"{LINE}@2 is in production now, it was nothing then"):
        acts.approve(ONE, actor="bob", **house)
    ask(house)
    acts.approve(ONE, actor="bob", **house)
    assert [v.stage for v in catalog.models()] == ["production", "archived"]


def test_an_old_request_is_asked_anew(make, house, monkeypatch):
    make()
    ask(house)
    monkeypatch.setattr(approval, "OPEN_DAYS", -1)
    with pytest.raises(GateRefused, match="days old"):
        acts.approve(ONE, actor="bob", **house)


def test_nobody_asked(make, house):
    make()
    with pytest.raises(NotFoundError, match="nobody asked") as refused:
        acts.approve(ONE, actor="bob", **house)
    assert "promote" in refused.value.cure
    with pytest.raises(NotFoundError, match="did you mean acme/router@1"):
        acts.approve(f"{LINE}@7", actor="bob", **house)


def test_a_second_asker_is_shown_the_first(make, house):
    make()
    ask(house)
    with pytest.raises(UserError, match="ann asked for production") as refused:
        ask(house, actor="bob")
    assert "approve" in refused.value.cure


def test_what_a_policy_decides_waits_for_nobody(make, house, catalog):
    make(auto_promote=True)
    assert stage(catalog) == "production"


def test_a_copied_or_changed_request_counts_for_nothing(make, house, store, catalog):
    one = make(1)
    two = make(2)
    asked = ask(house)
    envelope = store.fetch(asked.ref).file(FILE).read_text()
    parents = {"registered": catalog.ref(two.registered_digest)}
    copied = lines.publish(store, Spec(kind=KIND, config={"copied": 1}, parents=parents, code="t"), {FILE: envelope})
    catalog.index(copied.manifest)
    with pytest.raises(IntegrityError, match="lies beside another version"):
        acts.approve(f"{LINE}@2", actor="bob", **house)
    forged = json.loads(envelope)
    forged["payload"] = forged["payload"][:-8] + "AAAAAAA="
    parents = {"registered": catalog.ref(one.registered_digest)}
    spec = Spec(kind=KIND, config={"forged": 1}, parents=parents, code="t")
    catalog.index(lines.publish(store, spec, {FILE: json.dumps(forged)}).manifest)
    with pytest.raises(IntegrityError, match="signature"):
        acts.approve(ONE, actor="bob", **house)


def test_verify_and_the_bundle_hold_the_move_against_the_signed_request(make, house, store, catalog, tmp_path):
    model = make()
    asked = ask(house)
    acts.approve(ONE, actor="bob", reason="seen", **house)
    model = catalog.model(ONE)
    assert approval.verify_requests(model, **house) == 1
    export(model, tmp_path / "out.zip", **house)
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        file.extractall(tmp_path / "bundle")
    script = [sys.executable, "-I", "-S", str(tmp_path / "bundle" / "verify.py")]
    said = subprocess.run(script, capture_output=True, text=True, timeout=60).stdout
    assert said.endswith("VERIFIED\n") and "1 signed requests for production" in said
    assert f"approvals/{asked.ref.digest}.json" in (tmp_path / "bundle" / "index.html").read_text()
    shutil.rmtree(store.fetch(asked.ref).folder)
    with pytest.raises(NotFoundError, match="promotion_request"):
        approval.verify_requests(model, **house)


def test_typed(make, typed, monkeypatch, catalog):
    make()
    asked = typed("promote", ONE, "--to", "production", "--reason", "better")
    assert (asked.code, stage(catalog)) == (0, "staging") and f"ft-pipeline approve {ONE}" in asked.out
    same = typed("approve", ONE)
    assert same.code == 3 and "cannot approve it" in same.err
    waiting = json.loads(typed("approvals", "--json").out)
    assert [(w["model"], w["asked_by"], w["stale"]) for w in waiting] == [(ONE, "tester", "")]
    monkeypatch.setenv("FT_ACTOR", "bob")
    done = typed("approve", ONE, "--reason", "seen", "--json")
    moved = json.loads(done.out)[0]
    assert (done.code, moved["to_stage"], moved["actor"], moved["approved_by"]) == (0, "production", "tester", "bob")
    assert typed("promote", ONE, "--approved-by", "eve").code == 2
    assert "nothing waits" in typed("approvals").out
