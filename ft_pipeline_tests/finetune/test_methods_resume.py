"""Every method on rows of its own, stopped in the middle and started again, ends in the same bytes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from ft_pipeline.errors import Interrupted
from ft_pipeline.finetune import main
from ft_pipeline.recipe import Distill, Lora, Preference
from ft_pipeline.workers.messages import Mailbox
from ft_pipeline_tests import tiny

NOISY = Lora(rank=4, alpha=8, dropout=0.1)
METHODS = {
    "sft": {},
    "sft dora": {"lora": replace(NOISY, dora=True)},
    "sft qlora": {"lora": replace(NOISY, quantize="nf4")},
    "cpt full": {"lora": None, "learning_rate": 1e-3},
    "dpo": {"preference": Preference(beta=0.1)},
    "dpo full": {"preference": Preference(beta=0.1), "lora": None, "learning_rate": 1e-3},
    "simpo": {"preference": Preference(beta=2.0, gamma=1.0)},
    "orpo": {"preference": Preference(beta=0.1)},
    "kto": {"preference": Preference(beta=0.1)},
    "reward": {},
    "reward full": {"lora": None, "learning_rate": 1e-3},
    "process_reward": {},
    "process_reward full": {"lora": None, "learning_rate": 1e-3},
    "distill": {"distill": Distill(teacher="base", alpha=0.5, top_k=4)},
    "distill full": {"distill": Distill(teacher="base", alpha=0.5, top_k=4), "lora": None, "learning_rate": 1e-3},
}


@pytest.fixture
def rows(road, pairs, labelled, stepwise):
    """Method -> its shards; the others read pairs."""
    windows = road.shards
    return {
        "sft": windows,
        "cpt": windows,
        "distill": windows,
        "kto": labelled,
        "process_reward": stepwise,
        "dpo": pairs,
    }


def job_of(road, rows, name):
    method = name.split()[0]
    changes = {"lora": NOISY, "epochs": 2, "resume_certificate": False, **METHODS[name]}
    shards = rows.get(method, rows["dpo"])
    whole = tiny.recipe(method=method, windows_per_step=4, windows_per_micro=2, **changes)
    return tiny.train_job_here(road.store, whole, {"shards": shards, "base": road.base})


def trained(store, job, *, stop_after: int | None = None):
    """The artifact; a SIGTERM comes to the process itself when so many steps are told."""
    told = Mailbox(job.folder / "messages.jsonl")

    def listening(message):
        told(message)
        if message.kind == "progress" and message.done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        main.body(job, store, listening)
    finally:
        signal.signal(signal.SIGTERM, before)
    return store.find(job.spec)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_stop_in_the_middle_changes_no_byte(road, rows, no_mlflow, tmp_path, name):
    job = job_of(road, rows, name)
    whole = trained(road.store, job)
    whole.folder.rename(tmp_path / "away")
    with pytest.raises(Interrupted, match="stopped after step 3 of"):
        trained(road.store, job, stop_after=3)
    resumed = trained(road.store, job)
    assert resumed.ref == whole.ref
    assert resumed.manifest.execution["attempts"] > whole.manifest.execution["attempts"]
