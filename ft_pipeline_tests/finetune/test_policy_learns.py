"""Each policy method, with an adapter, makes right answers likelier: addition of two digits, by a model that gets three in ten right to begin with."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from ft_pipeline.finetune.checkpoint import Checkpoints
from ft_pipeline.finetune.loop import Run, make_deterministic, train
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.metrics import Metrics
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.policies import OBJECTIVES
from ft_pipeline.finetune.rollout import sample
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.recipe import Lora
from ft_pipeline.recipe_reinforce import Reward
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.messages import ignore
from ft_pipeline_tests import tiny
from ft_pipeline_tests.finetune import policies

pytestmark = pytest.mark.slow
NEVER = SimpleNamespace(asked=False)
SUMS = [(a, b) for a in range(10) for b in range(10)]
random.Random(0).shuffle(SUMS)
WARM_EPOCHS = 60
CHANGES = {"kdrl": {"teacher_weight": 0.02}, "dapo": {"overlong_tokens": 0}}


@pytest.fixture(scope="module")
def beginner(road):
    """A model that SFT has taught a little, and the sums as prompts: 80 to train on, 20 that only evaluation sees."""
    store, question = road.store, "{} + {} ="
    chats = [
        {"messages": [{"role": "user", "content": question.format(a, b)}, {"role": "assistant", "content": str(a + b)}]}
        for a, b in SUMS
    ]
    shards = tiny.publish_shards(store, tiny.publish_curated(store, chats), road.base)
    warm = warmed(store, road.base, shards, road.folder / "warm")
    rows = [{"prompt": [{"role": "user", "content": question.format(a, b)}], "answer": str(a + b)} for a, b in SUMS]
    prompts = tiny.publish_shards(store, tiny.publish_curated(store, rows, validation=20, shape="rlvr"), warm)
    return SimpleNamespace(store=store, base=warm, shards=prompts)


def warmed(store: Store, base: Artifact, shards: Artifact, folder: Path) -> Artifact:
    """The base model after SFT of every weight, as a base model."""
    section = tiny.recipe(
        lora=None, learning_rate=3e-3, epochs=WARM_EPOCHS, windows_per_step=1, windows_per_micro=1, schedule="constant"
    ).finetune
    make_deterministic(1)
    shutil.copytree(base.folder, folder)
    for name in ("manifest.json", "digests.json"):
        (folder / name).unlink(missing_ok=True)
    trainee = load_trainee(base.folder, section)
    method = method_of(section, cache=folder.with_name("warm-windows"))
    items = method.items(shards, "train")
    train(
        Run(
            trainee=trainee, method=method, schedule=Schedule(section=section, windows=len(items)), train=items, validation=[],
            checkpoints=Checkpoints(folder.with_name("warm-checkpoints"), "f" * 64, ignore),
            metrics=Metrics(folder=folder.parent, steps=1, listener=ignore), stop=NEVER,
        )
    )  # fmt: skip
    save_file(trainee.tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return tiny.publish_base(store, folder)


def success(run: Run, asks) -> float:
    """Share of right answers among 16 samples of each prompt."""
    torch.manual_seed(123)
    asks = list(asks)
    completions = [
        c for _ in range(2) for c in sample(run.trainee, [a.prompt_ids for a in asks], run.method.sampling())
    ]
    each = run.method.plan.completions
    right = [
        run.method.tools.text(c.ids).strip() == asks[n // each % len(asks)].answer for n, c in enumerate(completions)
    ]
    return sum(right) / len(right)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", [name for name, objective in OBJECTIVES.items() if objective.rewarded])
def test_the_rate_of_right_answers_rises(beginner, tmp_path, method):
    plan = {"max_new_tokens": 4, "rewards": (Reward(name="exact_answer"),), "completions": 8, **CHANGES.get(method, {})}
    run = policies.run_over(
        beginner, tmp_path, NEVER, method=method, lora=Lora(rank=16, alpha=32), epochs=12, windows_per_step=16, windows_per_micro=16,
        learning_rate=2e-3, schedule="constant", reinforce=plan,
        teacher=beginner.base if OBJECTIVES[method].teacher else None,
    )  # fmt: skip
    before, unseen = success(run, run.train), success(run, run.validation)
    assert 0.15 < before < 0.45
    state = train(run)
    after = success(run, run.train)
    print(f"{method}: {before:.3f} -> {after:.3f}; unseen {unseen:.3f} -> {success(run, run.validation):.3f}")
    assert after > before + 0.12
    first, last = (sum(e["reward"] for e in part) / 5 for part in (state.losses[:5], state.losses[-5:]))
    assert last > first + 0.08
