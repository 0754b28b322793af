"""What answers follows the catalog: promotion, rollback, refusal, restart-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from ft_pipeline.errors import IntegrityError, NotFoundError
from ft_pipeline.register import promotion
from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline.serve import deploy
from ft_pipeline.serve.batching import Closed
from ft_pipeline.serve.engine import Generation, Piece
from ft_pipeline.serve.live import LiveEngine
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline_tests import lines

LINE = "acme/router"


@dataclass
class Words:
    """Stands at the border to torch: says which base and adapter it was asked for."""

    base: Artifact
    added: list[str] = field(default_factory=list)
    pinned: frozenset[str] = frozenset()
    closed: bool = False
    batcher: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(steps=0, rows=0, largest=0, waiting=0, running=0, alive=True)
    )

    def add(self, adapter: Artifact, *, recertified: bool = False) -> None:
        self.added.append(adapter.ref.digest)

    def pin(self, keys: frozenset[str]) -> None:
        self.pinned = keys

    def answer(self, request: Generation, adapter: str | None) -> Iterator[Piece]:
        if self.closed:
            raise Closed
        assert adapter is None or adapter in self.added
        return iter([Piece(text=adapter or "base", finish="stop")])

    def close(self, *, wait: bool = True) -> None:
        self.added.clear()
        self.closed = True


@pytest.fixture
def engine(catalog, store, home) -> LiveEngine:
    return LiveEngine(catalog=catalog, store=store, settings=home, open_server=Words)


@pytest.fixture
def make(home, store, catalog, monkeypatch):
    from ft_pipeline import settings

    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))

    def version(seed: int, *, line: str = LINE, base: str = "base", full: bool = False, **options):
        lines.recipe_file(home, line)
        made = lines.publish_line(store, catalog, base=lines.plain_base(store, base), line=line, seed=seed, **options)
        recipe = find_recipe(settings.load(), line)
        if full:
            recipe = replace(recipe, finetune=replace(recipe.finetune, lora=None))
        candidate = Candidate(
            recipe=recipe, adapter=made["adapter"].ref, report=made["eval_report"].ref,
            base=made["base_model"].ref, run_id="r",
        )  # fmt: skip
        return register(candidate, store=store, catalog=catalog, settings=home).model

    return version


def says(engine: LiveEngine, name: str) -> str:
    return "".join(p.text for p in engine.answer(Generation(model=name, prompt="x")).pieces)


def test_production_answers_by_its_names_and_its_base_too(engine, make):
    model = make(1)
    assert engine.refresh()
    for name in (LINE, f"{LINE}@1", f"{LINE}:production"):
        assert says(engine, name) == model.adapter_digest
    assert says(engine, f"{LINE}:base") == says(engine, f"base-{model.base_digest[:12]}") == "base"
    assert not engine.refresh(), "nothing changed"


def test_promotion_and_rollback_need_no_restart(engine, make, catalog):
    first = make(1)
    engine.refresh()
    second = make(2)
    engine.refresh()
    assert says(engine, LINE) == second.adapter_digest
    with pytest.raises(NotFoundError, match="@1 is in archived"):
        says(engine, f"{LINE}@1")
    promotion.rollback(catalog, LINE, actor="ann", reason="worse")
    engine.refresh()
    assert says(engine, LINE) == first.adapter_digest
    assert [v.label for v in deploy.live(catalog)] == [f"{LINE}@1"]


def test_staging_answers_only_when_it_is_named(engine, make):
    model = make(1, auto_promote=False)
    engine.refresh()
    assert says(engine, f"{LINE}:staging") == says(engine, f"{LINE}@1") == model.adapter_digest
    with pytest.raises(NotFoundError, match="is in staging"):
        says(engine, LINE)


def test_an_unknown_name_gets_the_nearest(engine, make):
    make(1)
    engine.refresh()
    with pytest.raises(NotFoundError, match="did you mean acme/router"):
        says(engine, "acme/ruter")


def test_a_changed_adapter_is_refused_and_the_others_live(engine, make, store, catalog):
    good, bad = make(1), make(2, line="acme/other")
    path = store.fetch(catalog.ref(bad.adapter_digest)).folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    engine.refresh()
    assert says(engine, LINE) == good.adapter_digest
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        says(engine, "acme/other")
    assert [v.label for v in deploy.live(catalog)] == [good.label]


def test_a_version_signed_by_a_stranger_is_refused(engine, make, home):
    make(1)
    for key in home.signing_key.parent.iterdir():
        key.unlink()
    engine.refresh()
    with pytest.raises(IntegrityError, match="signature"):
        says(engine, LINE)


def test_lines_on_different_bases_live_side_by_side(engine, make, catalog):
    one, two = make(1), make(2, line="acme/other", base="another")
    engine.refresh()
    assert says(engine, LINE) == one.adapter_digest
    assert says(engine, "acme/other") == two.adapter_digest
    assert len(catalog.pools()) == 2
    assert engine.counters()["ft_bases_loaded"] == 2
    promotion.archive(catalog, two, actor="ann", reason="retired")
    engine.refresh()
    assert engine.counters()["ft_bases_loaded"] == 1


def test_a_line_moves_to_a_new_base(engine, make, catalog):
    make(1)
    engine.refresh()
    two = make(2, base="bumped")
    engine.refresh()
    assert says(engine, LINE) == two.adapter_digest
    assert [v.label for v in deploy.live(catalog)] == [f"{LINE}@2"]


def test_production_is_pinned_and_staging_is_not(engine, make, catalog):
    first = make(1)
    engine.refresh()
    second = make(2, line="acme/other", auto_promote=False)
    engine.refresh()
    assert says(engine, "acme/other@1") == second.adapter_digest
    server = engine._servers[first.base_digest]
    assert server.pinned == {first.adapter_digest}
    promotion.archive(catalog, first, actor="ann", reason="retired")
    engine.refresh()
    assert server.pinned == frozenset()


def test_an_archived_version_is_not_deployed_again_by_a_late_request(engine, make, catalog):
    make(1)
    engine.refresh()
    late = engine._route(LINE)
    make(2)
    engine.refresh()
    assert late.version.label == f"{LINE}@1"
    with pytest.raises(NotFoundError, match="@1 is in archived"):
        says(engine, late.version.label)
    assert [v.label for v in deploy.live(catalog)] == [f"{LINE}@2"]


def test_a_request_follows_its_line_to_another_base(engine, make):
    one = make(1)
    engine.refresh()
    two = make(2, base="bumped")
    server, route = engine._servers[one.base_digest], engine._routes[LINE]
    refresh_at_the_last_moment = engine._server

    def swapped(asked):
        if asked is route:
            engine.refresh()
            return server
        return refresh_at_the_last_moment(asked)

    engine._server = swapped
    assert says(engine, LINE) == two.adapter_digest


def test_a_full_fine_tune_is_a_model_of_its_own(engine, make, catalog):
    adapter, whole = make(1), make(2, line="acme/whole", full=True)
    engine.refresh()
    assert whole.artifact_type == "full_model"
    assert says(engine, LINE) == adapter.adapter_digest
    assert says(engine, "acme/whole") == "base", "no adapter on it"
    assert engine._servers[whole.adapter_digest].base.ref.digest == whole.adapter_digest
    promotion.archive(catalog, whole, actor="ann", reason="retired")
    engine.refresh()
    assert set(engine._servers) == {adapter.base_digest}
