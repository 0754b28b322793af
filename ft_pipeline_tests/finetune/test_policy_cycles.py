"""Several updates on a rollout: the ratio departs from 1, the clip is counted, a stop in the middle of a cycle loses nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ft_pipeline.errors import Interrupted
from ft_pipeline.finetune.loop import train
from ft_pipeline.finetune.resume_certificate import certified
from ft_pipeline.finetune.resume_proof import told
from ft_pipeline.finetune.rollout_store import read_rollouts
from ft_pipeline.finetune.schedule import Schedule, noise_seed
from ft_pipeline.planning.work import steps as planned
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import policies

pytestmark = pytest.mark.slow

NEVER = SimpleNamespace(asked=False)
DROPOUT = Lora(rank=4, alpha=8, dropout=0.1)
CYCLE = {"windows_per_step": 4, "windows_per_micro": 2, "epochs": 2}


@pytest.fixture(scope="module")
def asks(road):
    """A few prompts with answers, and a teacher of the same tokenizer."""
    return SimpleNamespace(
        store=road.store, base=road.base, shards=policies.prompts(road.store, road.base, count=8, validation=2),
        teacher=tiny.publish_base(road.store, tiny.base_folder(road.folder / "other", seed=5)),
    )  # fmt: skip


class StoppedAfter:
    """A stop that is asked for as soon as a run has made so many steps."""

    def __init__(self) -> None:
        self.run, self.step = None, 1 << 30

    @property
    def asked(self) -> bool:
        return self.run is not None and len(self.run.metrics.recent(1000)) >= self.step


def run_of(asks, folder, method="grpo", *, updates=2, stop=NEVER, **changes):
    reinforce = {"updates_per_rollout": updates, **changes.pop("reinforce", {})}
    return policies.run_over(asks, folder, stop, method=method, reinforce=reinforce, **{**CYCLE, **changes})


def bytes_of(run) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in run.trainee.live_tensors().items()}


@pytest.mark.parametrize(
    ("method", "lora", "updates"),
    [
        ("grpo", DROPOUT, 2),
        ("ppo", DROPOUT, 3),
        ("ppo", None, 2),
        ("on_policy_distill", DROPOUT, 2),
    ],
)
def test_a_stop_at_each_step_of_a_cycle_ends_in_the_same_bytes(asks, tmp_path, method, lora, updates):
    more = {"lora": lora, "epochs": 1}
    if method == "on_policy_distill":
        more |= {"reinforce": {"rewards": ()}, "teacher": asks.teacher}
    whole = run_of(asks, tmp_path / "whole", method, updates=updates, **more)
    expected = train(whole)
    assert expected.step == len(whole.train) // 4 * updates
    for step in range(1, updates + 1):
        stop = StoppedAfter()
        stopped = run_of(asks, tmp_path / str(step), method, updates=updates, stop=stop, **more)
        stop.run, stop.step = stopped, step
        with pytest.raises(Interrupted):
            train(stopped)
        resumed = run_of(asks, tmp_path / str(step), method, updates=updates, **more)
        state = train(resumed)
        assert resumed.metrics.first_step == step
        assert state == expected and bytes_of(resumed) == bytes_of(whole), f"stopped after step {step}"


def test_a_rollout_is_drawn_once_for_its_updates_and_written_once(asks, tmp_path):
    run = run_of(asks, tmp_path, updates=2)
    run.method.tools.rollouts.recording = True
    losses = train(run).losses
    rows = read_rollouts(tmp_path / "rollouts")
    assert len(losses) == run.schedule.steps == 2 * 2 * len(run.train) // 4
    assert {row["step"] for row in rows} == set(range(1, len(losses) + 1, 2))
    for first, second in zip(losses[::2], losses[1::2], strict=True):
        assert first["reward"] == second["reward"] and first["length"] == second["length"]
        assert first["ratio_change"] < 1e-5 < second["ratio_change"]
        assert first["clipped"] == 0


def test_the_share_that_is_clipped_is_that_of_ratios_counted_by_hand(asks, tmp_path):
    run = run_of(asks, tmp_path, updates=2, lora=Lora(rank=4, alpha=8), reinforce={"clip_low": 0.05, "clip_high": 0.1})
    torch.manual_seed(noise_seed(run.schedule.section.seed, 0))
    batch = run.method.batch(run.trainee, run.train[:4])
    with torch.no_grad():
        for parameter in run.trainee.trained:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.manual_seed(noise_seed(run.schedule.section.seed, run.schedule.micros_per_step))
    assert run.method.batch(run.trainee, run.train[:4]) is batch
    found = run.method.loss(run.trainee, batch)
    held, apart, count = 0, 0.0, 0
    rows = torch.log_softmax(run.method.tools.logits(run.trainee, batch.rows), -1)
    now = iter(rows.gather(1, batch.rows.targets[:, None])[:, 0].exp().tolist())
    for row, length in enumerate(batch.lengths):
        for token in range(length):
            ratio = next(now) / float(batch.sampled[row, token].exp())
            worth = float(batch.advantages[row])
            held += (ratio > 1.1 and worth > 0) or (ratio < 0.95 and worth < 0)
            apart, count = apart + abs(ratio - 1), count + 1
    assert 0 < held < count
    assert float(found.facts["clipped"]) / batch.prompts == pytest.approx(held / count)
    assert float(found.facts["ratio_change"]) / batch.prompts == pytest.approx(apart / count, rel=1e-4)


def test_a_schedule_with_updates_takes_the_same_rows_for_each_and_ends_its_epochs_behind_them():
    changes = {"method": "grpo", "windows_per_step": 4, "windows_per_micro": 2}
    plain, kept = (tiny.recipe(reinforce=policies.plan(updates_per_rollout=n), **changes) for n in (1, 3))
    once, thrice = (Schedule(section=recipe.finetune, windows=22) for recipe in (plain, kept))
    assert (planned(plain, 22), planned(kept, 22)) == (once.steps, thrice.steps)
    assert thrice.steps == 3 * once.steps and thrice.sampler_exhausted and once.sampler_exhausted
    for step in range(once.steps):
        for update in range(3):
            for place in range(2):
                rows = thrice.windows_of((3 * step + update) * 2 + place)
                assert rows.tolist() == once.windows_of(step * 2 + place).tolist()
        assert thrice.epoch(3 * step) == once.epoch(step)
        assert thrice.ends_epoch(3 * (step + 1)) == once.ends_epoch(step + 1)
        assert not thrice.ends_epoch(3 * step + 1)


@pytest.mark.parametrize(
    ("method", "updates", "lora"), [("grpo", 1, DROPOUT), ("dapo", 1, DROPOUT), ("ppo", 4, DROPOUT), ("remax", 2, None)]
)
def test_the_certificate_of_a_policy_is_bit_exact(asks, tmp_path, method, updates, lora):
    run = run_of(asks, tmp_path, method, updates=updates, lora=lora, resume_certificate=True)
    facts = certified(run, base=asks.base.folder, folder=tmp_path)
    assert told(facts).startswith("bit-exact (LlamaForCausalLM of the same class, cpu")
    assert facts["scope"]["method"] == method and run.method.cycle.kept == {}


def test_the_certificate_of_a_policy_whose_reward_is_no_function_of_the_completion_says_so(asks, tmp_path):
    run = run_of(asks, tmp_path, updates=1, resume_certificate=True)
    calls = []

    def fickle(completions, **_columns):
        calls.append(1)
        return [float(len(calls) * (n + 1) % 7) for n in range(len(completions))]

    run.method.tools.scores = [fickle]
    assert told(certified(run, base=asks.base.folder, folder=tmp_path)).startswith("not provable")
