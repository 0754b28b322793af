"""Our preference losses are those of TRL 1.16 on the same batch, and two steps of our loop are two steps of its DPOTrainer."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ft_pipeline.encode.artifact import read_labelled, read_pairs, read_reference
from ft_pipeline.finetune.artifact import read_losses
from ft_pipeline.finetune.methods.compared import compared_rows
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.methods.pair_losses import Pairs, odds_ratio, simpo
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.schedule import Schedule
from ft_pipeline.recipe import Preference
from ft_pipeline_tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TOLERANCE = 1e-5
"""Relative, float32."""
COUNT = 8
SMOOTHING = {"robust": 0.1, "exo_pair": 0.1, "aot": 0.1, "aot_unpaired": 0.1}
LOSSES = [
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop",
]  # fmt: skip
QUIET = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": False, "bf16": False, "use_cpu": True,
    "report_to": "none", "save_strategy": "no", "max_length": None, "disable_tqdm": True, "logging_steps": 1,
    "learning_rate": 1e-3, "lr_scheduler_type": "constant", "disable_dropout": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def moved(road, tmp_path_factory):
    """A base model that is not the reference: a policy in the middle of training."""
    return tiny.base_folder(tmp_path_factory.mktemp("moved") / "base", seed=7)


def model_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def trainer_of(kind, config, rows, folders, **changes):
    """A TRL trainer whose policy and reference are those folders."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    policy, reference, out = folders
    return kind(
        model=model_of(policy), ref_model=model_of(reference), train_dataset=Dataset.from_list(rows),
        args=config(output_dir=str(out), **{**QUIET, **changes}), processing_class=AutoTokenizer.from_pretrained(policy),
    )  # fmt: skip


@pytest.fixture(scope="module")
def dpo(road, moved, tmp_path_factory):
    from trl import DPOConfig, DPOTrainer

    out = tmp_path_factory.mktemp("trl")
    return trainer_of(DPOTrainer, DPOConfig, tiny.pair_rows(COUNT), (moved, road.base.folder, out))


def parents(road, shards, method: str, preference: Preference, **changes):
    whole = tiny.recipe(method=method, preference=preference, **changes)
    job = tiny.train_job_here(road.store, whole, {"shards": shards, "base": road.base})
    return whole, road.store.fetch(job.spec.parents["reference"])


def ours(road, shards, moved, cache, preference: Preference, method: str = "dpo"):
    """Mean loss of the first rows and its facts, by our method on the flat road."""
    whole, reference = parents(road, shards, method, preference)
    made = method_of(whole.finetune, cache=cache, reference=reference)
    trainee = load_trainee(moved, whole.finetune)
    items = made.items(shards, "train")[:COUNT]
    with torch.no_grad():
        found = made.loss(trainee, made.batch(trainee, items))
    return float(found.total) / COUNT, {name: float(v) / COUNT for name, v in found.facts.items()}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_dpo_is_that_of_trl(road, pairs, moved, dpo, tmp_path, loss):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = list(read_pairs(pairs, "train"))[:COUNT]
    batch = DataCollatorForPreference(pad_token_id=0)(
        [{"prompt_ids": r.prompt_ids, "chosen_ids": r.chosen_ids, "rejected_ids": r.rejected_ids} for r in rows]
    )
    dpo.loss_types, dpo.loss_weights = [loss], [1.0]
    dpo.beta, dpo.label_smoothing = 0.1, SMOOTHING.get(loss, 0.0)
    dpo._metrics["eval"].clear()
    with torch.no_grad():
        theirs = float(dpo._compute_loss(dpo.model, batch, False))
    section = Preference(beta=0.1, loss=loss, label_smoothing=SMOOTHING.get(loss, 0.0))
    found, facts = ours(road, pairs, moved, tmp_path, section)
    assert found == pytest.approx(theirs, rel=TOLERANCE)
    said = {name: values[-1] for name, values in dpo._metrics["eval"].items()}
    names = {
        "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected", "margin": "rewards/margins",
        "accuracy": "rewards/accuracies", "logp_chosen": "logps/chosen", "logp_rejected": "logps/rejected",
    }  # fmt: skip
    for name, their_name in names.items():
        assert facts[name] == pytest.approx(said[their_name], rel=1e-4, abs=1e-5), name


def test_the_sft_term_is_that_of_trl(road, pairs, moved, dpo, tmp_path):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = list(read_pairs(pairs, "train"))[:COUNT]
    batch = DataCollatorForPreference(pad_token_id=0)(
        [{"prompt_ids": r.prompt_ids, "chosen_ids": r.chosen_ids, "rejected_ids": r.rejected_ids} for r in rows]
    )
    dpo.loss_types, dpo.loss_weights, dpo.beta, dpo.label_smoothing = ["sigmoid", "sft"], [1.0, 0.7], 0.1, 0.0
    with torch.no_grad():
        theirs = float(dpo._compute_loss(dpo.model, batch, False))
    found, _ = ours(road, pairs, moved, tmp_path, Preference(beta=0.1, sft_weight=0.7))
    assert found == pytest.approx(theirs, rel=TOLERANCE)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_a_loss_of_kto_is_that_of_trl(road, labelled, moved, tmp_path, loss):
    from trl import KTOConfig, KTOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    section = Preference(beta=0.1, loss=loss, desirable_weight=1.5, undesirable_weight=0.8)
    _, reference = parents(road, labelled, "kto", section)
    lines = compared_rows(labelled, "train", cache=tmp_path, reference=reference)[:COUNT]
    examples = []
    for row, line in zip(list(read_labelled(labelled, "train"))[:COUNT], lines, strict=True):
        other = line.ids[line.lengths[0] + len(row.prompt_ids) :].tolist()
        examples.append(
            {
                "prompt_ids": row.prompt_ids,
                "completion_ids": row.completion_ids,
                "KL_completion_ids": other,
                "label": row.label,
            }
        )
    trainer = trainer_of(
        KTOTrainer, KTOConfig, tiny.labelled_rows(COUNT), (moved, road.base.folder, tmp_path / "trl"),
        loss_type=loss, beta=0.1, desirable_weight=1.5, undesirable_weight=0.8,
    )  # fmt: skip
    with torch.no_grad():
        theirs = float(
            trainer._compute_loss(trainer.model, DataCollatorForUnpairedPreference(pad_token_id=0)(examples), False)
        )
    found, facts = ours(road, labelled, moved, tmp_path, section, method="kto")
    assert found == pytest.approx(theirs, rel=TOLERANCE)
    if loss == "kto":
        assert facts["kl"] == pytest.approx(trainer._metrics["eval"]["kl"][-1], rel=1e-4, abs=1e-5)


def drawn_pairs() -> Pairs:
    torch.manual_seed(0)
    tokens = torch.randint(3, 20, (2, COUNT)).float()
    logps = -torch.rand(2, COUNT) * tokens - 0.01
    zero = torch.zeros(COUNT)
    return Pairs(
        chosen=logps[0], rejected=logps[1], reference_chosen=zero, reference_rejected=zero,
        chosen_tokens=tokens[0], rejected_tokens=tokens[1],
    )  # fmt: skip


@pytest.fixture
def experimental(monkeypatch):
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")


def test_simpo_is_that_of_trl(experimental):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    pairs, section = drawn_pairs(), Preference(beta=2.0, gamma=0.8, label_smoothing=0.1)
    this = SimpleNamespace(
        alpha=0.0, beta=2.0, loss_type="simpo", simpo_gamma=0.8, label_smoothing=0.1,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    theirs, *_ = CPOTrainer.cpo_loss(this, pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens)
    assert torch.allclose(simpo(pairs, section), theirs, rtol=TOLERANCE)


def test_orpo_is_that_of_trl(experimental):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    pairs, section = drawn_pairs(), Preference(beta=0.3)
    this = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    means = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    theirs, *_ = ORPOTrainer.odds_ratio_loss(this, *means)
    assert torch.allclose(odds_ratio(pairs, section), -theirs, rtol=TOLERANCE)


def test_two_steps_are_two_steps_of_trl(road, pairs, tmp_path, no_mlflow):
    """The same 16 pairs in the same order, every weight trained: losses, rewards and the weights afterwards."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    curated = tiny.pair_rows(16)
    shards = tiny.publish_shards(road.store, tiny.publish_curated(road.store, curated, shape="preference"), road.base)
    whole, _ = parents(
        road, shards, "dpo", Preference(beta=0.1), lora=None, epochs=1, schedule="constant", warmup_share=0.0,
        learning_rate=1e-3,
    )  # fmt: skip
    made = tiny.train_here(road.store, whole, shards, road.base)
    schedule = Schedule(section=whole.finetune, windows=16)
    order = [int(i) for micro in range(4) for i in schedule.windows_of(micro)]
    trainer = trainer_of(
        DPOTrainer, DPOConfig, [curated[i] for i in order], (road.base.folder, road.base.folder, tmp_path),
        num_train_epochs=1, beta=0.1, warmup_steps=0, train_sampling_strategy="sequential", seed=0,
    )  # fmt: skip
    assert isinstance(trainer.train_dataset, Dataset)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    steps = read_losses(made)
    assert len(history) == len(steps) == 2
    for step, entry in zip(steps, history, strict=True):
        assert step["loss"] == pytest.approx(entry["loss"], rel=1e-4)
        assert step["margin"] == pytest.approx(entry["rewards/margins"], rel=1e-3, abs=1e-5)
        assert step["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-3)
    theirs = trainer.model.state_dict()
    for name, tensor in load_file(made.file("model.safetensors")).items():
        assert float((tensor - theirs[name]).abs().max()) < 2e-5, name


def test_the_reference_is_what_trl_measures(road, pairs, dpo, tmp_path):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = list(read_pairs(pairs, "train"))[:COUNT]
    _, reference = parents(road, pairs, "dpo", Preference(beta=0.1))
    batch = DataCollatorForPreference(pad_token_id=0)(
        [{"prompt_ids": r.prompt_ids, "chosen_ids": r.chosen_ids, "rejected_ids": r.rejected_ids} for r in rows]
    )
    theirs = torch.stack(dpo.compute_ref_log_probs(dpo.ref_model, batch))
    found = torch.tensor([list(r.sums.values()) for r in read_reference(reference, "train")][:COUNT]).T
    assert torch.allclose(found.float(), theirs, rtol=TOLERANCE)
