"""kto: two forward passes, a KL from completions of other prompts, weights, and wanted answers that become likelier."""

from __future__ import annotations

import pytest
import torch

from ft_pipeline.encode.artifact import mismatched, read_labelled, read_reference
from ft_pipeline.finetune.artifact import read_completion, read_losses
from ft_pipeline.finetune.methods.compared import compared_rows
from ft_pipeline.finetune.methods.kto import label_losses
from ft_pipeline.finetune.methods.method import method_of
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.recipe import Preference
from ft_pipeline_tests import tiny


def wanting(**preference):
    return tiny.recipe(
        method="kto", epochs=6, resume_certificate=False, preference=Preference(**{"beta": 0.1, **preference})
    )


@pytest.fixture(scope="session")
def reference(road, labelled):
    job = tiny.train_job_here(road.store, wanting(), {"shards": labelled, "base": road.base})
    return road.store.fetch(job.spec.parents["reference"])


def test_a_row_lies_with_the_completion_that_its_reference_measured(labelled, reference, tmp_path):
    rows = list(read_labelled(labelled, "train"))
    partners = mismatched([tuple(row.prompt_ids) for row in rows])
    found = compared_rows(labelled, "train", cache=tmp_path, reference=reference)
    for n, (row, opinion) in enumerate(zip(rows, read_reference(reference, "train"), strict=True)):
        other = rows[partners[n]]
        assert other.prompt_ids != row.prompt_ids and found[n].label == row.label
        assert found[n].ids.tolist() == [
            *row.prompt_ids, *row.completion_ids, *row.prompt_ids, *other.completion_ids
        ]  # fmt: skip
        assert found[n].reference == (opinion.sums["completion"], opinion.sums["mismatched"])


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_wanted_answers_become_likelier_and_unwanted_ones_less(road, labelled, no_mlflow, loss):
    made = tiny.train_here(road.store, wanting(loss=loss), labelled, road.base)
    losses = read_losses(made)
    assert abs(losses[0]["margin"]) < 1e-4 and losses[0]["kl"] < 1e-5
    assert losses[-1]["margin"] > 0.3 and losses[-1]["accuracy"] > 0.9
    assert losses[-1]["reward_wanted"] > 0 > losses[-1]["reward_unwanted"]
    assert losses[-1]["loss"] < losses[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    proof = read_completion(made)
    assert proof.validation_loss < proof.validation_loss_before


def test_the_mismatched_pass_gives_no_gradient_and_is_left_out_where_it_is_not_used(
    road, labelled, reference, tmp_path
):
    computed = {}
    for loss in ("kto", "apo_zero_unpaired"):
        section = wanting(loss=loss).finetune
        method = method_of(section, cache=tmp_path, reference=reference)
        trainee = load_trainee(road.base.folder, section)
        rows = method.items(labelled, "train")[:4]
        batch = method.batch(trainee, rows)
        computed[loss] = batch.tokens
        assert method.loss(trainee, batch).total.requires_grad
    assert computed["kto"] == sum(len(row.ids) for row in rows)
    assert computed["apo_zero_unpaired"] == sum(row.lengths[0] for row in rows)


def test_weights_scale_their_own_rows():
    ratios, labels = torch.tensor([0.5, -0.5]), torch.tensor([True, False])
    plain = label_losses(ratios, labels, (torch.tensor(0.1), Preference(beta=1.0)))
    section = Preference(beta=1.0, desirable_weight=2.0, undesirable_weight=3.0)
    weighted = label_losses(ratios, labels, (torch.tensor(0.1), section))
    assert torch.allclose(weighted, plain * torch.tensor([2.0, 3.0]))
