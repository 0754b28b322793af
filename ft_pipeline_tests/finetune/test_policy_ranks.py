"""Policies as replicas: each process samples its own rollouts, together they train as one process does, and a stop loses nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.finetune.compatibility import refuse_incompatible
from ft_pipeline.finetune.rewards.calibrate import calibrate
from ft_pipeline.finetune.rollout_store import read_rollouts, read_tax, rollouts_spec
from ft_pipeline.recipe import Lora
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.files import Bucket
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import policies, ranked
from ft_pipeline_tests.finetune.test_parallel import _made, _run_entries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"lora": Lora(rank=4, alpha=8, dropout=0.1)},
    "ppo": {"lora": Lora(rank=4, alpha=8, dropout=0.1)},
}
UPDATES = 6
STOP_STEP = 1
"""In the middle of a cycle."""
SAME = 1e-6
"""Largest difference of a step's loss or reward. The sums of gradients differ in their last bits; no sampled token may differ."""


@dataclass
class Trained:
    """What became of the cases, by (method, road)."""

    folder: Path
    parts: dict[str, Artifact] = field(default_factory=dict)
    jobs: dict[tuple[str, str], Job] = field(default_factory=dict)
    made: dict[tuple[str, str], Artifact] = field(default_factory=dict)

    def store(self, *names: str) -> Store:
        """A store with the parents, in a place of its own."""
        root = self.folder / "-".join(names)
        if not root.exists():
            shutil.copytree(self.folder / "parents", root / "store")
        return Store(Bucket(str(root / "store")), root / "work")


def recipe_of(method: str):
    plan = policies.plan(updates_per_rollout=UPDATES, kl_weight=0.05)
    return tiny.recipe(
        method=method, reinforce=plan, windows_per_step=8, windows_per_micro=2, epochs=1, learning_rate=2e-3, **CASES[method]
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[Trained]:
    """Each case in two processes: whole, and stopped at one process in the middle of a cycle and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FT_MLFLOW", "off")
        found = Trained(tmp_path_factory.mktemp("policies"))
        store = Store(Bucket(str(found.folder / "parents")), found.folder / "work")
        base = tiny.publish_base(store, tiny.base_folder(found.folder / "base"))
        found.parts = {"base": base, "shards": policies.prompts(store, base, count=20, validation=4)}
        calibrate(store, policies.plan().rewards[0], home=store.work)
        entries = []
        for name in CASES:
            for road, stop in (("whole", None), ("halved", {"rank": 1, "step": STOP_STEP})):
                store = found.store(name, road)
                job = tiny.train_job_here(store, recipe_of(name), found.parts, threads=1, processes=2, sharding="ddp")
                found.jobs[name, road] = job
                entries.append(ranked.entry(job, store, "a", stop=stop))
            entries.append(ranked.entry(job, store, "b"))  # of the one that was stopped
        _run_entries(found.folder / "work.json", entries)
        found.made = {where: _made(found.store(*where), job) for where, job in found.jobs.items()}
        yield found


def apart(a: Artifact, b: Artifact) -> float:
    """Largest difference of a loss or of a mean reward."""
    one, other = read_losses(a), read_losses(b)
    assert len(one) == len(other) == 12
    found = max(abs(x[name] - y[name]) for x, y in zip(one, other, strict=True) for name in ("loss", "reward", "kl"))
    print("largest difference:", found)
    return found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_a_policy_as_one_does(trained, name):
    store = trained.store(name, "alone")
    alone = tiny.train_here(store, recipe_of(name), trained.parts["shards"], trained.parts["base"], threads=1)
    assert apart(trained.made[name, "whole"], alone) < SAME
    rollouts = [
        s.find(rollouts_spec(a.ref, 1000))
        for s, a in ((store, alone), (trained.store(name, "whole"), trained.made[name, "whole"]))
    ]
    one, other = ([(r["row_id"], r["completion"]) for r in read_rollouts(found.folder)] for found in rollouts)
    assert one == other and len(one) == 2 * 8 * 4
    tax = [read_tax(found)["rollout_bytes_per_step"] for found in rollouts]
    assert tax[1] == pytest.approx(tax[0], rel=0.1)


@pytest.mark.parametrize("name", CASES)
def test_a_stop_in_the_middle_of_a_cycle_is_resumed_bit_for_bit_by_both(trained, name):
    job = trained.jobs[name, "halved"]
    for path in (job.folder, job.folder / "ranks" / "1"):
        steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 13))  # none was made twice
    (resumed,) = re.findall(r"resumed after step (\d+) of 12", (job.folder / "messages.jsonl").read_text())
    assert STOP_STEP <= int(resumed) < UPDATES
    assert trained.made[name, "halved"].ref == trained.made[name, "whole"].ref


def test_shards_of_a_policy_are_refused_with_the_cure():
    with pytest.raises(RecipeError, match="refused") as refused:
        refuse_incompatible(recipe_of("ppo"), Placement(processes=2, sharding="fsdp"))
    assert "hang" in refused.value.why and "sharding: ddp" in refused.value.cure
    refuse_incompatible(recipe_of("ppo"), Placement(processes=2, sharding="ddp"))
