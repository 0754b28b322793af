"""The model that is trained: its adapters are PEFT's, as large as published; its loss without logits is the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from ft_pipeline.encode.artifact import read_windows
from ft_pipeline.finetune import head
from ft_pipeline.finetune.adapters import lora_parameters, with_lora
from ft_pipeline.finetune.batches import batch_of
from ft_pipeline.finetune.methods.causal import Causal, loss_sum, token_losses
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.noise import noisy_embeddings
from ft_pipeline.planning.trace import Storages
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny

LLAMA_2_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)
LLAMA_3_8B = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256,
)  # fmt: skip


@pytest.fixture
def windows(road):
    return list(read_windows(road.shards, "train"))


@pytest.mark.parametrize(
    ("config", "lora", "published"),
    [
        (LLAMA_2_7B, Lora(rank=8, alpha=16), 19_988_480),
        (LLAMA_2_7B, Lora(rank=8, alpha=16, targets=("q_proj", "v_proj")), 4_194_304),
        (LLAMA_3_8B, Lora(rank=16, alpha=32), 41_943_040),
        (LLAMA_3_8B, Lora(rank=32, alpha=64), 83_886_080),
    ],
)
def test_an_adapter_has_as_many_weights_as_was_published(config, lora, published):
    with torch.device("meta"):
        model = with_lora(AutoModelForCausalLM.from_config(config), lora)
    assert lora_parameters(model) == published == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("changes", [{}, {"dora": True}, {"rslora": True}, {"targets": ("q_proj", "v_proj")}])
def test_an_adapter_counts_and_scales_as_pefts_own(road, changes):
    from peft import LoraConfig, get_peft_model

    ours = load_trainee(road.base.folder, tiny.recipe(lora=Lora(rank=4, alpha=8, **changes)).finetune)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(changes.get("targets", ())) or "all-linear", task_type="CAUSAL_LM",
        use_dora="dora" in changes, use_rslora="rslora" in changes,
    )  # fmt: skip
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(road.base.folder), config)
    assert lora_parameters(ours.model) == theirs.get_nb_trainable_parameters()[0]
    scales = {module.scaling["default"] for module in ours.model.modules() if hasattr(module, "lora_A")}
    assert scales == {8 / math.sqrt(4) if "rslora" in changes else 2.0}
    assert any("magnitude" in name for name in ours.tensors()) == ("dora" in changes)


@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_losses_in_chunks_are_the_plain_ones(monkeypatch, trains_head, dtype, limit, chunk):
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk * 4 * 300)
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 32, dtype=dtype), torch.randn(300, 32, dtype=dtype)
    targets = torch.randint(300, (50,))

    def found(loss_of):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains_head)]
        loss = loss_of(*leaves)
        (loss.sum() / 13).backward()
        return loss.detach(), [leaf.grad.float() for leaf in leaves if leaf.grad is not None]

    plain, expected = found(lambda h, w: cross_entropy(linear(h, w).float(), targets, reduction="none"))
    each, single = found(lambda h, w: head.token_nll(h, w, targets))
    total, whole = found(lambda h, w: head.summed_nll(h, w, targets))
    assert torch.allclose(each, plain, rtol=1e-6, atol=0) and torch.isclose(total, plain.sum(), rtol=1e-6)
    for made in (single, whole):
        assert len(made) == len(expected) == 1 + trains_head
        assert all(float((a - b).norm() / b.norm()) < limit for a, b in zip(made, expected, strict=True))


def test_losses_of_no_token_are_zero_and_have_a_gradient():
    hidden = torch.randn(0, 8, requires_grad=True)
    total = head.summed_nll(hidden, torch.randn(20, 8), torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0 and hidden.grad is not None
    assert head.token_nll(hidden, torch.randn(20, 8), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_logits_are_never_there_at_once(monkeypatch):
    tokens, vocabulary, width = 512, 8192, 16
    monkeypatch.setattr(head, "CHUNK_BYTES", 32 * 4 * vocabulary)
    weight, targets = torch.randn(vocabulary, width), torch.randint(vocabulary, (tokens,))

    def peak(loss_of):
        hidden = torch.randn(tokens, width, requires_grad=True)
        with Storages() as counted:
            loss_of(hidden).backward()
        return counted.peak

    plain = peak(lambda h: cross_entropy(linear(h, weight), targets, reduction="sum"))
    whole = 4 * tokens * vocabulary
    assert plain > 1.9 * whole
    assert peak(lambda h: head.summed_nll(h, weight, targets)) < 0.25 * whole
    assert peak(lambda h: head.token_nll(h, weight, targets).sum()) < 0.3 * whole


@pytest.mark.parametrize("changes", [{}, {"lora": None}, {"dtype": "bfloat16"}, {"lora": None, "dtype": "bfloat16"}])
def test_a_model_has_the_gradients_of_its_logits(road, windows, changes):
    trainee = load_trainee(road.base.folder, tiny.recipe(**changes).finetune)
    assert head.loss_head(trainee.model) is not None
    batch = batch_of(windows[:4], flat=trainee.flat)

    def gradients(loss_of):
        trainee.model.zero_grad()
        with trainee.precision():
            loss = loss_of()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in trainee.trained if p.grad is not None])

    def plainly():
        made = trainee.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, segments=batch.segments
        ).logits[0]
        return cross_entropy(made.index_select(0, batch.predict).float(), batch.targets, reduction="sum")

    expected, found = gradients(plainly), gradients(lambda: loss_sum(trainee.model, batch))
    limit = 2**-6 if "dtype" in changes else 1e-5
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) < limit
    with torch.no_grad(), trainee.precision():
        assert float(token_losses(trainee.model, batch).sum()) == pytest.approx(expected[0], rel=1e-6)


def test_a_model_that_caps_its_logits_keeps_its_own_head():
    sizes = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
    capped = AutoModelForCausalLM.from_config(Gemma2Config(**sizes))
    plain = AutoModelForCausalLM.from_config(Gemma2Config(**sizes, final_logit_softcapping=None))
    assert not head.attach(capped) and type(capped.get_output_embeddings()) is torch.nn.Linear
    assert head.attach(plain) and plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


def test_noise_on_embeddings_is_scaled_by_the_row_seeded_and_off_in_validation(road, windows):
    trainee = load_trainee(road.base.folder, tiny.recipe(neftune_alpha=5.0).finetune)
    model, embedding = trainee.model, trainee.model.get_input_embeddings()
    for flat in (True, False):
        batch = batch_of(windows[:3], flat=flat)
        plain = embedding(batch.input_ids)

        def noise(seed, batch=batch, plain=plain):
            torch.manual_seed(seed)
            with noisy_embeddings(model, batch, alpha=5.0):
                return embedding(batch.input_ids) - plain

        model.train()
        made = noise(1)
        assert torch.equal(made, noise(1)) and not torch.equal(made, noise(2))
        lines = (
            made.flatten(0, 1) if flat else torch.cat([m[: len(w.ids)] for m, w in zip(made, windows, strict=False)])
        )
        for row, length in zip(lines.split([n for w in windows[:3] for n in w.lengths]), sum((w.lengths for w in windows[:3]), ()), strict=True):  # fmt: skip
            bound = 5.0 / math.sqrt(length * 64)
            assert 0.9 * bound < float(row.abs().max()) < bound + 1e-5
        model.eval()
        assert not noise(1).any()
    assert torch.equal(embedding(batch.input_ids), plain)


def test_noise_changes_the_training_loss_only(road, windows, tmp_path):
    trainee = load_trainee(road.base.folder, tiny.recipe().finetune)
    batch = batch_of(windows[:2], flat=True)
    quiet, noisy = Causal(tmp_path), Causal(tmp_path, alpha=10.0)
    for training in (True, False):
        trainee.model.train(training)
        losses = [float(method.loss(trainee, batch).total) for method in (quiet, noisy)]
        assert (losses[0] != losses[1]) == training


def test_a_turn_of_weight_0_is_not_trained(road):
    def turns(weight):
        messages = [("user", "which module?"), ("assistant", "first answer"), ("user", "again?"), ("assistant", "json")]
        rows = [{"role": role, "content": text} for role, text in messages]
        return {"messages": [{**rows[0]}, {**rows[1], "weight": weight}, *rows[2:]]}

    made = {}
    for weight in (0, 1):
        curated = tiny.publish_curated(road.store, [turns(weight)] * 2)
        (window, *_) = read_windows(tiny.publish_shards(road.store, curated, road.base), "train")
        made[weight] = batch_of([window], flat=True).targets.tolist()
    assert 0 < len(made[0]) < len(made[1])
    half = len(made[0]) // 2
    assert made[1][-half:] == made[0][-half:]
