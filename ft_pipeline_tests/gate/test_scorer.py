"""Scores against the plain way: one choice, one pass, the whole log-softmax."""

from __future__ import annotations

import random

import pytest
import torch

from ft_pipeline.errors import DataError
from ft_pipeline.gate import scorer, scorer_rows
from ft_pipeline.gate.benchmarks import Question
from ft_pipeline_tests import tiny


@pytest.fixture(scope="module")
def model_and_tokenizer(base_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        yield model, AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture
def questions() -> list[Question]:
    picked = random.Random(1)
    return [
        Question(
            id=str(n), context=" ".join(picked.sample(tiny.SENTENCES, picked.randint(0, 4))),
            choices=tuple(f"{picked.choice(['', ' ', 'x'])}{w} {n}" for w in picked.sample(tiny.WORDS, picked.randint(2, 5))), answer=0,
        )
        for n in range(40)
    ]  # fmt: skip


def plain(model, choice: scorer_rows.Scored) -> float:
    ids = torch.tensor([choice.ids])
    logs = torch.log_softmax(model(input_ids=ids).logits.float(), dim=-1)[0]
    return sum(logs[i - 1, choice.ids[i]].item() for i in range(choice.start, len(choice.ids)))


@pytest.mark.slow
def test_shared_and_single_rows_score_as_the_plain_way_in_any_order(
    model_and_tokenizer, questions, monkeypatch
) -> None:
    model, tokenizer = model_and_tokenizer
    encoded = scorer_rows.encoded(tokenizer, questions, limit=512)
    wanted = [plain(model, c) for choices in encoded for c in choices]
    monkeypatch.setattr(scorer_rows, "BATCH_TOKENS", 300)
    shared = scorer.log_likelihoods(model, encoded, lambda *_: None)
    assert shared == pytest.approx(wanted, abs=1e-4)
    monkeypatch.setattr(scorer, "SHARED_CONTEXT", set())
    assert scorer.log_likelihoods(model, encoded, lambda *_: None) == pytest.approx(wanted, abs=1e-4)
    monkeypatch.undo()
    order = random.Random(2).sample(range(len(questions)), len(questions))
    one = {s.id: s for s in scorer.answers(model, tokenizer, questions, tick=lambda *_: None)}
    other = scorer.answers(model, tokenizer, [questions[i] for i in order], tick=lambda *_: None)
    assert [one[s.id] for s in other] == other


@pytest.mark.slow
def test_the_scored_tokens_are_those_of_the_choice(model_and_tokenizer) -> None:
    _, tokenizer = model_and_tokenizer
    for context, choice in (("open a file", " zipfile"), ("", "json"), ("open a fi", "le and close it")):
        question = Question(id="a", context=context, choices=(choice, "other"), answer=0)
        found = scorer_rows.encoded(tokenizer, [question], limit=512)[0][0]
        assert 1 <= found.start < len(found.ids)
        assert tokenizer.decode(found.ids[found.start :]).endswith(choice.strip()[-2:])


@pytest.mark.slow
def test_a_question_longer_than_the_model_is_named(model_and_tokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    long = Question(id="q9", context="open a file " * 600, choices=(" a", " b"), answer=0)
    with pytest.raises(DataError, match="question q9 has"):
        scorer.answers(model, tokenizer, [long], tick=lambda *_: None)


@pytest.mark.slow
def test_generation_is_the_plain_greedy_one_whatever_the_company(model_and_tokenizer, monkeypatch) -> None:
    from ft_pipeline.gate import generate

    model, tokenizer = model_and_tokenizer
    prompts = [tokenizer(s[: 5 + 7 * n])["input_ids"] for n, s in enumerate(tiny.SENTENCES)] + [[3]]
    stops = generate.stop_ids(tokenizer, model)
    assert stops == {tokenizer.eos_token_id}
    wanted = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(8):
            step = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if step in stops:
                break
            ids.append(step)
        wanted.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    monkeypatch.setattr(generate, "BATCH_ROWS", 3)
    assert generate.greedy(model, tokenizer, prompts, max_new_tokens=8, tick=lambda *_: None) == wanted
    mixed = [5, 0, 6, 2, 4, 1, 3]
    said = generate.greedy(model, tokenizer, [prompts[i] for i in mixed], max_new_tokens=8, tick=lambda *_: None)
    assert said == [wanted[i] for i in mixed]
    with pytest.raises(DataError, match="exceed the model's 512"):
        generate.greedy(model, tokenizer, [[3] * 510], max_new_tokens=8, tick=lambda *_: None)
