"""Sampling: padding and cache change no log-probability, a seed decides everything, an end is an end."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from ft_pipeline.finetune.loop import make_deterministic
from ft_pipeline.finetune.model import load_trainee
from ft_pipeline.finetune.rollout import Sampling, batch_of_completions, sample, stop_ids
from ft_pipeline.recipe import Lora
from ft_pipeline_tests import tiny

PROMPTS = [[2, 70, 71, 72, 1, 3], [2, 90, 1, 3], [2, *range(60, 90), 1, 3], [5, 3]]
NEVER = frozenset({-1})


@pytest.fixture
def trainee(road):
    make_deterministic(1)
    made = load_trainee(road.base.folder, tiny.recipe(lora=Lora(rank=4, alpha=8, dropout=0.3)).finetune)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in made.trained:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    made.model.train()
    return made


def unpadded_logprobs(trainee, completions, temperature: float) -> list[torch.Tensor]:
    """One forward pass a completion, without padding and without a cache."""
    trainee.model.eval()
    if trainee.flat:
        trainee.model.set_attn_implementation("sdpa")
    made = []
    for completion in completions:
        ids = torch.tensor([[*completion.prompt_ids, *completion.ids]])
        with torch.no_grad():
            logits = trainee.model(input_ids=ids, use_cache=False).logits[0].float() / temperature
        start = len(completion.prompt_ids)
        logs = torch.log_softmax(logits[start - 1 : -1], dim=-1)
        made.append(logs.gather(1, torch.tensor(completion.ids)[:, None])[:, 0])
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_log_probabilities_under_left_padding_are_those_without_padding(trainee, temperature):
    torch.manual_seed(0)
    how = Sampling(count=3, max_new_tokens=7, stops=frozenset({1}), temperature=temperature)
    completions = sample(trainee, PROMPTS, how)
    assert [tuple(c.prompt_ids) for c in completions] == [tuple(p) for p in PROMPTS for _ in range(3)]
    for completion, alone in zip(completions, unpadded_logprobs(trainee, completions, temperature), strict=True):
        assert float((torch.tensor(completion.logprobs) - alone).abs().max()) < 1e-5


@pytest.mark.parametrize("flat", [True, False])
def test_the_training_batch_gives_the_log_probabilities_of_the_sampler(trainee, flat):
    torch.manual_seed(0)
    completions = sample(trainee, PROMPTS, Sampling(count=2, max_new_tokens=5, stops=NEVER))
    if not flat:
        trainee = SimpleNamespace(model=trainee.model, flat=False, device="cpu")
        trainee.model.set_attn_implementation("sdpa")
    rows = batch_of_completions(trainee, completions)
    trainee.model.eval()
    options = {} if rows.segments is None else {"segments": rows.segments}
    with torch.no_grad():
        logits = trainee.model(
            input_ids=rows.input_ids, position_ids=rows.position_ids, attention_mask=None, use_cache=False, **options
        ).logits.flatten(0, 1)[rows.predict]
    logs = torch.log_softmax(logits.float(), -1).gather(1, rows.targets[:, None])[:, 0]
    assert float((logs - torch.tensor([p for c in completions for p in c.logprobs])).abs().max()) < 1e-5


def test_a_greedy_completion_is_that_of_transformers_generate(trainee):
    made = sample(trainee, PROMPTS, Sampling(count=1, max_new_tokens=8, stops=frozenset({1}), greedy=True))
    trainee.model.set_attn_implementation("sdpa")
    trainee.model.eval()
    for prompt, completion in zip(PROMPTS, made, strict=True):
        ids = torch.tensor([prompt])
        theirs = trainee.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=1
        )
        assert completion.ids == theirs[0, len(prompt) :].tolist()


def test_the_seed_decides_the_completions_and_dropout_is_off_while_they_are_drawn(trainee):
    how = Sampling(count=4, max_new_tokens=6, stops=frozenset({1}))
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append([c.ids for c in sample(trainee, PROMPTS, how)])
    assert made[0] == made[1] != made[2]
    assert trainee.model.training and trainee.model.config._attn_implementation == "ft_segments"


def test_a_completion_ends_with_its_stop_token_or_where_it_is_cut(trainee):
    torch.manual_seed(0)
    stops = frozenset(range(0, 384, 3))
    for completion in sample(trainee, PROMPTS, Sampling(count=8, max_new_tokens=5, stops=stops)):
        assert not stops & set(completion.ids[:-1])
        assert completion.finished == (completion.ids[-1] in stops)
        assert completion.finished or len(completion.ids) == 5
        assert len(completion.logprobs) == len(completion.ids)


def test_tokens_are_drawn_as_often_as_the_model_says(trainee):
    torch.manual_seed(0)
    how = Sampling(count=6000, max_new_tokens=1, stops=NEVER, temperature=0.3)
    drawn = Counter(c.ids[0] for c in sample(trainee, [PROMPTS[0]], how))
    trainee.model.set_attn_implementation("sdpa")
    trainee.model.eval()
    with torch.no_grad():
        odds = torch.softmax(trainee.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].float() / 0.3, -1)
    top = odds.topk(5)
    for share, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        assert abs(drawn[token] / 6000 - share) < 4 * (share * (1 - share) / 6000) ** 0.5


def test_the_tokens_that_end_an_answer_are_those_of_the_tokenizer_and_the_template(road):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(road.base.folder)
    end = tokenizer.convert_tokens_to_ids(tiny.END)
    assert stop_ids(tokenizer, SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[end, 7]))) == {end, 7}
    tokenizer.eos_token = tiny.PAD
    assert stop_ids(tokenizer, None) == {tokenizer.convert_tokens_to_ids(tiny.PAD), end}
