"""Stages: who may move a version, on which evidence, and the way back."""

from __future__ import annotations

import pytest

from ft_pipeline.errors import GateRefused, NotFoundError, UserError
from ft_pipeline.recipe import Recipe
from ft_pipeline.register import promotion
from ft_pipeline.register.artifact import CARD
from ft_pipeline.register.registration import Candidate, Outcome, register
from ft_pipeline.resources import find_recipe
from ft_pipeline_tests import lines

LINE = "acme/router"


@pytest.fixture
def recipe(home, monkeypatch) -> Recipe:
    from ft_pipeline import settings

    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    return find_recipe(settings.load(), LINE)


@pytest.fixture
def make(home, store, catalog, recipe):
    def version(seed: int = 0, **options) -> Outcome:
        made = lines.publish_line(store, catalog, base=lines.plain_base(store), seed=seed, **options)
        candidate = Candidate(
            recipe=recipe,
            adapter=made["adapter"].ref,
            report=made["eval_report"].ref,
            base=made["base_model"].ref,
            run_id=f"run-{seed}",
        )
        return register(candidate, store=store, catalog=catalog, settings=home)

    return version


def test_a_pass_goes_as_far_as_its_policy_says(make, catalog):
    assert make(1, auto_promote=True).model.stage == "production"
    assert make(2, auto_promote=False).model.stage == "staging"
    moves = [(t.to_stage, t.approved_by) for t in catalog.history(f"{LINE}@2")]
    assert moves == [("dev", "policy:dev"), ("staging", "policy:dev")]


def test_registering_again_gives_the_same_version_and_bytes(make, home):
    first, again = make(), make()
    assert first.model == again.model
    assert first.artifact.ref == again.artifact.ref
    home.signing_key.unlink()
    assert make().artifact.ref == first.artifact.ref


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_without_a_pass_nothing_is_registered(make, catalog, verdict):
    with pytest.raises(GateRefused, match="arithmetic") as refused:
        make(verdict=verdict)
    assert f"arithmetic says {verdict}" in str(refused.value)
    assert catalog.models() == []


def test_a_report_about_another_adapter_or_base_is_refused(home, store, catalog, recipe):
    base, other = lines.plain_base(store), lines.plain_base(store, "bumped")
    old, new = (lines.publish_line(store, catalog, base=base, seed=seed) for seed in (1, 2))
    for adapter, live in ((new["adapter"], base), (old["adapter"], other)):
        candidate = Candidate(
            recipe=recipe, adapter=adapter.ref, report=old["eval_report"].ref, base=live.ref, run_id="r"
        )
        with pytest.raises(GateRefused, match="is about"):
            register(candidate, store=store, catalog=catalog, settings=home)


def test_a_moved_base_makes_no_version_but_is_remembered(home, store, catalog, recipe, make):
    version = make(1).model
    made = lines.publish_line(store, catalog, base=lines.plain_base(store), seed=1)
    moved = made | {"base_model": lines.plain_base(store, "bumped")}
    candidate = Candidate(
        recipe=recipe,
        adapter=made["adapter"].ref,
        report=lines.report(store, moved).ref,
        base=moved["base_model"].ref,
        run_id="r",
    )
    with pytest.raises(GateRefused, match="base of acme/router moved"):
        register(candidate, store=store, catalog=catalog, settings=home)
    assert catalog.models() == [version]
    catalog.set_pool("p", version.base_digest)
    catalog.deploy("p", version.id)
    catalog.set_pool("p", candidate.base.digest)


def test_nobody_is_named_as_the_second_person_who_did_not_act(make, catalog, store):
    model = make(auto_promote=False).model
    with pytest.raises(GateRefused, match="approved by nobody"):
        promotion.promote(catalog, model, store=store, actor="ann", reason="ready")


def test_a_promotion_archives_the_version_before_it(make, catalog):
    make(1)
    make(2)
    assert [v.stage for v in catalog.models()] == ["archived", "production"]


def test_a_later_failing_report_stops_a_promotion(make, catalog, store):
    model = make(auto_promote=False).model
    evidence = promotion.read_evidence(store, catalog.ref(model.report_digest))
    catalog.add_report(model.id, model.base_digest, evidence.suite_sha256, False, "e" * 64)
    with pytest.raises(GateRefused):
        promotion.promote(catalog, model, store=store, actor="ann", reason="ready")


def test_no_stage_is_skipped_and_the_end_is_the_end(make, catalog, store):
    model = make().model
    with pytest.raises(UserError, match="no next stage"):
        promotion.promote(catalog, model, store=store, actor="ann", reason="more")
    with pytest.raises(UserError, match="cannot move"):
        promotion.promote(catalog, model, "staging", store=store, actor="ann", reason="back")


def test_rollback_brings_the_version_before_back_and_forth(make, catalog):
    make(1), make(2)
    back = promotion.rollback(catalog, LINE, actor="ann", reason="wrong answers")
    assert (back.model, back.to_stage) == (f"{LINE}@1", "production")
    assert back.approved_by == "transition:3", "the earlier approval stands and is named"
    assert [v.stage for v in catalog.models()] == ["production", "archived"]
    assert promotion.rollback(catalog, LINE, actor="ann", reason="it was not that").model == f"{LINE}@2"
    assert catalog.verify_history() == 11


def test_rollback_to_a_named_version(make, catalog):
    for seed in (1, 2, 3):
        make(seed)
    assert promotion.rollback(catalog, f"{LINE}@1", actor="ann", reason="far back").model == f"{LINE}@1"


def test_nothing_to_roll_back_to(make, catalog):
    make(1)
    with pytest.raises(NotFoundError, match="no earlier production version"):
        promotion.rollback(catalog, LINE, actor="ann", reason="x")
    make(2, auto_promote=False)
    with pytest.raises(UserError, match="never in production"):
        promotion.rollback(catalog, f"{LINE}@2", actor="ann", reason="x")


def test_archiving_takes_a_deployed_version_out_of_service(make, catalog):
    model = make().model
    catalog.set_pool("p", model.base_digest)
    catalog.deploy("p", model.id)
    promotion.archive(catalog, model, actor="ann", reason="retired")
    assert catalog.deployed("p") == []
    assert catalog.model(f"{LINE}@1").stage == "archived"


def test_a_version_that_a_person_archived_stays_archived(make, catalog):
    promotion.archive(catalog, make().model, actor="ann", reason="retired")
    assert make().model.stage == "archived"


def test_the_card_says_what_it_is_and_how_to_verify(make):
    card = make().artifact.file(CARD).read_text()
    assert "base_model_relation: adapter" in card
    for text in ("# acme/router@1", "| exact_duplicate | 3 |", "| arithmetic | PASS |", "[0.300, 0.500]",
                 "raw (raw_dataset)", "ft-pipeline verify acme/router@1", "| LoRA rank | 4 |"):  # fmt: skip
        assert text in card
