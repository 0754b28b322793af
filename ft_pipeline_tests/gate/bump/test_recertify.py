"""Recertification: what is computed, what is reused, what is published, registered, certified and let into serving."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ft_pipeline.errors import GateRefused
from ft_pipeline.gate.artifact import GateResult, Verdict, read_report
from ft_pipeline.gate.bump import proposals, status
from ft_pipeline.gate.bump.recertify import Case, read_recertification, recertify
from ft_pipeline.gate.bump.reuse import certify
from ft_pipeline.gate.policy import policy_json, read_policy
from ft_pipeline.gate.report import write_report
from ft_pipeline.gate.samples import Pair
from ft_pipeline.gate.verdicts import overall
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import Mark, find_recipe
from ft_pipeline.serve.deploy import deploy
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import lines, tiny

pytestmark = pytest.mark.slow

LINE = "acme/router"
DEV = read_policy("dev")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base_folder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def bump(home, store, catalog, folder, monkeypatch, tmp_path):
    lines.recipe_file(home)
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    return Bump(home, store, catalog, folder=folder, moved=shutil.copytree(folder, tmp_path / "moved"))


class Bump:
    """A line with one version on the tiny base, and a folder in which the base moves."""

    def __init__(self, home, store, catalog, *, folder: Path, moved: Path) -> None:
        self.home, self.store, self.catalog, self.moved = home, store, catalog, moved
        self.old = tiny.publish_base(store, folder)
        self.made = lines.publish_line(store, catalog, base=self.old)
        self.asked: list[str] = []
        self.right: dict[str, float] = {self.old.ref.digest: 0.9}
        """Base -> share of the holdout that the adapter gets right there; the base itself gets none."""
        first = self.evaluate(
            {
                r: self.made[k].ref
                for r, k in (("adapter", "adapter"), ("base", "base_model"), ("curated", "curated_dataset"))
            }
        )
        self.asked.clear()
        catalog.set_head(LINE, "eval_report", first)
        self.version = self.register().model

    def evaluate(self, parents):
        """Stands for the child that asks the models."""
        spec = Spec(kind="eval_report", config=config(), parents=dict(parents), code="t")
        if found := self.store.find(spec):
            return found
        base = parents["base"].digest
        self.asked.append(base)
        right = round(100 * self.right[base])
        pairs = [
            Pair(id=f"q{n}", prompt_sha="s", prompt="?", reference="x", base_output="", base_score=0.0, adapter_output="",
                 adapter_score=float(n < right))
            for n in range(100)
        ]  # fmt: skip
        verdict = Verdict.PASS if right else Verdict.FAIL
        gates = [GateResult(name="holdout", kind="holdout", verdict=verdict, rows=100, reason="counted")]
        with self.store.publish(spec) as draft:
            write_report(draft, overall(gates, DEV, name="dev"), {"holdout": pairs})
        return draft.artifact

    def move(self, change, *, right: float = 0.9):
        """The base moves; its adapter is judged there."""
        change(self.moved)
        new = tiny.publish_base(self.store, self.moved)
        self.right[new.ref.digest] = right
        self.catalog.set_head(LINE, "base_model", new)
        heads = self.catalog.heads(LINE)
        parents = {"adapter": heads["adapter"], "base": new.ref, "curated": heads["curated_dataset"]}
        case = Case(parents=parents, old_base=self.old.ref, config=config(), policy=DEV)
        made = recertify(case, self.store, evaluate=self.evaluate)
        self.catalog.set_head(LINE, "eval_report", made)
        certify(self.catalog, made, passed=read_report(made).passed)
        return made

    def register(self):
        heads = self.catalog.heads(LINE)
        candidate = Candidate(
            recipe=self.recipe(), adapter=heads["adapter"], report=heads["eval_report"], base=heads["base_model"], run_id="r"
        )  # fmt: skip
        return register(candidate, store=self.store, catalog=self.catalog, settings=self.home)

    def recipe(self):
        from ft_pipeline import settings

        return find_recipe(settings.load(), LINE)

    def line(self, **mark) -> status.Dependant:
        marks = {LINE: Mark(**mark)} if mark else {}
        (found,) = status.dependants(self.catalog, self.store, marks)
        return found


def config() -> dict:
    return {"policy_name": "dev", "policy": policy_json(DEV), "holdout": {}, "benchmarks": [], "safety": None}


def other_weights(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({n: t * 1.5 for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def other_words(folder: Path) -> None:
    (folder / "README.md").write_text("better words")


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def test_as_good_on_the_new_base_is_a_new_version_there_with_the_same_bytes(bump):
    made = bump.move(other_weights)
    found = read_recertification(made)
    assert found["verdict"] == "RECERTIFIED" and found["preflight"]["changed"] == ["weights"]
    assert bump.asked == [made.manifest.parents["base"].digest], "the old base's answers are reused"
    assert found["drift"]["holdout"]["difference"] == 0
    new = bump.register().model
    assert (new.label, new.stage, new.adapter_digest) == ("acme/router@2", "production", bump.version.adapter_digest)
    assert new.base_digest == made.manifest.parents["base"].digest
    deploy(new, catalog=bump.catalog, store=bump.store, settings=bump.home)
    assert bump.catalog.pools_of(new.id) == [f"local-{new.base_digest[:12]}"]
    assert bump.line().state == "RECERTIFIED" and not bump.line().is_open


def test_documentation_alone_computes_nothing(bump):
    made = bump.move(other_words)
    assert read_recertification(made)["verdict"] == "CARRY_FORWARD" and bump.asked == []
    assert read_report(made).passed and made.manifest.parents["old_report"].kind == "eval_report"
    assert bump.register().model.base_digest == made.manifest.parents["base"].digest


def test_an_incompatible_base_is_decided_without_asking_a_model(bump):
    made = bump.move(other_template)
    assert read_recertification(made)["verdict"] == "INCOMPATIBLE" and bump.asked == []
    assert "chat template changed" in read_report(made).gate("preflight").reason
    with pytest.raises(GateRefused, match="base of acme/router moved"):
        bump.register()


@pytest.mark.parametrize(("right", "verdict"), [(0.5, "DEGRADED"), (0.0, "RETRAIN")])
def test_an_adapter_that_lost_its_task_stays_where_it_is_and_holds_its_pool_back(bump, right, verdict):
    deploy(bump.version, catalog=bump.catalog, store=bump.store, settings=bump.home)
    made = bump.move(other_weights, right=right)
    new_base = made.manifest.parents["base"].digest
    assert read_recertification(made)["verdict"] == verdict
    with pytest.raises(GateRefused):
        bump.register()
    assert [v.label for v in bump.catalog.models()] == ["acme/router@1"]
    line = bump.line()
    assert line.state == verdict and line.retrain == "ft-pipeline bump retrain acme/router"
    (pool,) = status.pools(bump.catalog, [line])
    assert pool.blocked_by == ("acme/router@1",) and pool.new_base == new_base
    with pytest.raises(GateRefused, match="failed report"):
        bump.catalog.set_pool(pool.pool, new_base)
    bump.catalog.set_pool("elsewhere", new_base)
    with pytest.raises(GateRefused, match="on base"):
        bump.catalog.deploy("elsewhere", bump.version.id)


def test_a_recertified_version_may_have_its_pool_moved(bump):
    deploy(bump.version, catalog=bump.catalog, store=bump.store, settings=bump.home)
    new_base = bump.move(other_weights).manifest.parents["base"].digest
    (pool,) = status.pools(bump.catalog, [bump.line()])
    assert pool.blocked_by == ()
    bump.catalog.set_pool(pool.pool, new_base)
    reports = bump.catalog.reports(bump.version.id)
    assert [(r.base_digest, r.passed) for r in reports] == [(bump.old.ref.digest, True), (new_base, True)]


def test_what_is_open_says_whether_it_waits_runs_or_needs_a_hand(bump):
    assert bump.line().state == "current"
    waiting = bump.line(version="b" * 64, recorded_only=True, running=False)
    assert (waiting.state, waiting.new_base, waiting.is_open) == ("pending", "b" * 64, True)
    assert bump.line(version="b" * 64, recorded_only=True, running=True).state == "running"
    other_weights(bump.moved)
    bump.catalog.set_head(LINE, "base_model", tiny.publish_base(bump.store, bump.moved))
    assert bump.line().state == "undecided" and bump.line().next_step == "ft-pipeline bump judge acme/router"
    assert "| acme/router |" in status.page([bump.line()], [])


def test_a_training_is_proposed_once_and_pins_the_line_to_the_new_base(bump):
    assert list(proposals.proposed(bump.catalog, bump.store, [bump.recipe()])) == []
    bump.move(other_weights, right=0.0)
    (proposal,) = proposals.proposed(bump.catalog, bump.store, [bump.recipe()])
    proposals.repin(bump.catalog, proposal)
    assert bump.catalog.pinned(LINE, "home://bases/tiny") == proposal.revision
    assert proposal.revision == bump.store.recorded(bump.catalog.head(LINE, "base_model")).config["content"]


def test_the_same_case_is_the_same_artifact(bump):
    first = bump.move(other_weights)
    assert bump.move(lambda _: None).ref == first.ref
