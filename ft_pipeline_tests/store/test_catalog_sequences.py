"""Any sequence of legal and illegal moves, reports and deployments leaves the catalog sound: hypothesis draws the sequences."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ft_pipeline.errors import FtError
from ft_pipeline.store.catalog import Catalog, NewModel
from ft_pipeline.store.catalog_database import open_database
from ft_pipeline.store.catalog_rows import NEXT, STAGES

BASES, SUITES = ("a" * 64, "b" * 64), ("5" * 64, "6" * 64)
SEQUENCES = int(os.environ.get("FT_TEST_SEQUENCES", "40"))
"""1,000 take four minutes of a busy core (236 s of CPU, 25 moves each): `FT_TEST_SEQUENCES=1000 pytest ...`."""
FOLDER = tempfile.TemporaryDirectory(prefix="ft-sequences-")
EMPTY = Path(FOLDER.name) / "catalog.db"
versions = st.integers(1, 4)


class Moves(RuleBasedStateMachine):
    """Two lines with two versions each, two bases, two pools; `certified` is what the newest report said."""

    @initialize()
    def open(self) -> None:
        if not EMPTY.is_file():
            open_database(f"sqlite:///{EMPTY}").close()
        self.folder = Path(tempfile.mkdtemp(prefix="ft-sequence-"))
        shutil.copy(EMPTY, self.folder / "c.db")
        self.catalog = Catalog(open_database(f"sqlite:///{self.folder / 'c.db'}").engine)
        for number in range(4):
            self.catalog.register(
                NewModel(
                    tenant="demo", name=("router", "tagger")[number // 2], base_digest=BASES[0], dataset_digest="d" * 64,
                    adapter_digest=f"{number:064x}", report_digest="e" * 64, recipe_sha256="f" * 64, run_id="run",
                    code="code", lora_rank=8,
                )
            )  # fmt: skip
        self.stage = dict.fromkeys(range(1, 5), "none")
        self.said: dict[tuple[int, str, str], bool] = {}
        self.suite: dict[int, str] = {}
        self.line = {1: (1, 2), 2: (1, 2), 3: (3, 4), 4: (3, 4)}

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()
            shutil.rmtree(self.folder)

    @rule(
        model=versions,
        base=st.sampled_from(BASES),
        suite=st.sampled_from(SUITES),
        passed=st.sampled_from([True, True, False]),
        n=st.integers(0, 3),
    )
    def report(self, model: int, base: str, suite: str, passed: bool, n: int) -> None:
        self.catalog.add_report(model, base, suite, passed, f"{n:064x}")
        self.said[model, base, suite] = passed

    @rule(
        model=versions,
        to=st.sampled_from(STAGES),
        actor=st.sampled_from(["ann", "bob", ""]),
        by=st.sampled_from(["bob", "policy:p", None]),
    )
    def move(self, model: int, to: str, actor: str, by: str | None) -> None:
        before = self.catalog.model_by_id(model).stage
        try:
            moved = self.catalog.transition(model, to, actor=actor, reason="x", approved_by=by)
        except FtError:
            return
        assert to in NEXT[before] and actor, "an illegal move was accepted"
        self.stage[model] = to
        if to == "production":
            assert by and by != actor, "nobody else approved"
            for other in self.line[model]:
                if other != model and self.stage[other] == "production":
                    self.stage[other] = "archived"
            self.suite[model] = next(r.suite_sha256 for i, r in self._numbered(model) if i == moved.report_id)
        if to in ("staging", "production"):
            backed = next(r for i, r in self._numbered(model) if i == moved.report_id)
            assert backed.base_digest == BASES[0] and self.said[model, BASES[0], backed.suite_sha256], "no evidence"

    @rule(model=versions)
    def straight_to_production(self, model: int) -> None:
        """What a person would do, so that sequences get to deployments."""
        self.report(model, BASES[0], SUITES[0], True, 0)
        for stage in ("dev", "staging", "production"):
            self.move(model, stage, "ann", "bob")

    @rule(pool=st.sampled_from(["one", "two"]), base=st.sampled_from(BASES))
    def set_pool(self, pool: str, base: str) -> None:
        served = self.catalog.deployed(pool)
        before = self.catalog.pools().get(pool)
        try:
            self.catalog.set_pool(pool, base)
        except FtError:
            assert served, "an empty pool may move"
            return
        if before != base:
            assert all(self._certified(m.id, base) for m in served), (
                "a pool moved under a version that did not pass there"
            )

    @rule(pool=st.sampled_from(["one", "two"]), model=versions)
    def deploy(self, pool: str, model: int) -> None:
        known = model in [m.id for m in self.catalog.deployed(pool)]
        try:
            self.catalog.deploy(pool, model)
        except FtError:
            return
        assert known or self._certified(model, self.catalog.pools()[pool]), "deployed without a pass on the pool's base"

    @precondition(lambda self: any(self.catalog.pools_of(m) for m in range(1, 5)))
    @rule(pool=st.sampled_from(["one", "two"]), model=versions)
    def undeploy(self, pool: str, model: int) -> None:
        self.catalog.undeploy(pool, model)

    @invariant()
    def the_stage_is_where_the_last_move_led(self) -> None:
        if not hasattr(self, "catalog"):
            return
        found = {m.id: m.stage for m in self.catalog.models()}
        assert found == self.stage
        for model, stage in found.items():
            history = self.catalog.history(model)
            assert (history[-1].to_stage if history else "none") == stage

    @invariant()
    def one_version_of_a_line_is_in_production_and_only_such_are_deployed(self) -> None:
        if not hasattr(self, "catalog"):
            return
        live = [m.line for m in self.catalog.models() if m.stage == "production"]
        assert len(live) == len(set(live))
        served = [m for pool in self.catalog.pools() for m in self.catalog.deployed(pool)]
        assert all(m.stage == "production" for m in served)

    @invariant()
    def the_chains_hold(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.verify_history()
            self.catalog.verify_rows()

    def _certified(self, model: int, base: str) -> bool:
        return self.stage[model] == "production" and self.said.get((model, base, self.suite[model]), False)

    def _numbered(self, model: int):
        import sqlalchemy as sa

        from ft_pipeline.store.catalog_tables import eval_reports

        with self.catalog.read() as db:
            query = sa.select(eval_reports.c.id).where(eval_reports.c.model_id == model).order_by(eval_reports.c.id)
            ids = list(db.execute(query).scalars())
        return list(zip(ids, self.catalog.reports(model), strict=True))


TestSequences = Moves.TestCase
TestSequences.settings = settings(max_examples=SEQUENCES, stateful_step_count=25, deadline=None)
