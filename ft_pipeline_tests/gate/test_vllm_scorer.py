"""The vLLM scorer against an engine object that speaks vLLM's requests and results, prefix cache and its stale values included.

The real engine was not run here: what is tested is what is asked of it and what is believed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ft_pipeline.errors import DataError, UserError
from ft_pipeline.gate import vllm_scorer
from ft_pipeline.gate.benchmarks import Question
from ft_pipeline_tests import tiny

BLOCK = 16


def truth(before: tuple[int, ...], token: int, arm: int) -> float:
    """A log-probability that depends on every token before it and on the adapter."""
    digest = hashlib.sha256(repr((before, token, arm)).encode()).digest()
    return -int.from_bytes(digest[:4], "big") / 2**29


@dataclass
class FakeLLM:
    """vllm.LLM: prompt log-probabilities of cached blocks are not what the model says, as in vllm#42019."""

    options: dict[str, Any]
    lying: bool = False
    requests: list[Any] = field(default_factory=list)
    cache: set[tuple[Any, ...]] = field(default_factory=set)

    def generate(self, prompts, params, *, lora_request, use_tqdm):
        return [self._one(tuple(p["prompt_token_ids"]), s, lora_request) for p, s in zip(prompts, params, strict=True)]

    def _one(self, ids, params, lora):
        self.requests.append((ids, params, lora))
        arm = lora.number if lora else 0
        cached = 0 if params.get("skip_reading_prefix_cache") else self._cached(ids, arm)
        self.cache |= {(arm, ids[: n * BLOCK]) for n in range(1, len(ids) // BLOCK + 1)}
        said = None
        if "prompt_logprobs" in params:
            said = [None] + [
                {ids[i]: SimpleNamespace(logprob=truth(ids[:i], ids[i], arm) - (99 if i <= cached else 0))}
                for i in range(1, len(ids))
            ]
        wanted = params.get("logprob_token_ids", [])
        made = [{t: SimpleNamespace(logprob=truth(ids, t, arm) - self.lying) for t in wanted}]
        return SimpleNamespace(prompt_logprobs=said, num_cached_tokens=cached, outputs=[SimpleNamespace(logprobs=made)])

    def _cached(self, ids, arm):
        """Whole blocks only, and never the last token."""
        return max(
            (n * BLOCK for n in range(1, (len(ids) - 1) // BLOCK + 1) if (arm, ids[: n * BLOCK]) in self.cache),
            default=0,
        )


@pytest.fixture
def vllm(monkeypatch):
    """A module in vLLM's place."""
    module, requests = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.LLM = lambda **options: FakeLLM(options)
    module.SamplingParams = lambda **options: options
    requests.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    for name, one in (("vllm", module), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", requests)):
        monkeypatch.setitem(sys.modules, name, one)
    return module


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))


def adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = {"r": 32, "target_modules": ["q_proj"], "modules_to_save": None, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def questions(*, single: bool, count: int = 24) -> list[Question]:
    ends = [*"ABCD"] if single else [f" {w} and {w}" for w in tiny.WORDS[:4]]
    prefix = " ".join(tiny.SENTENCES)
    return [
        Question(
            id=str(n), prefix=prefix, context=f" question {n * 7}:", choices=tuple(ends), answer=n % 4, metric="acc"
        )
        for n in range(count)
    ]


def expected(tokenizer, question: Question, arm: int) -> list[float]:
    sums = []
    for choice in vllm_scorer.encoded(tokenizer, [question], limit=4096)[0]:
        sums.append(sum(truth(choice.ids[:i], choice.ids[i], arm) for i in range(choice.start, len(choice.ids))))
    return sums


def opened(tokenizer, tmp_path, *adapters):
    return vllm_scorer.opened(tmp_path, tokenizer, adapters=adapters, limit=4096)


def said(samples) -> list[list[float]]:
    return [json.loads(s.output)["log_likelihood"] for s in samples]


@pytest.mark.parametrize("single", [True, False])
def test_every_score_is_the_model_s_and_none_is_from_a_cached_position(vllm, tokenizer, tmp_path, single) -> None:
    engine, asked = opened(tokenizer, tmp_path), questions(single=single)
    made = vllm_scorer.answers(engine, asked, adapter=None, tick=lambda *_: None)
    for question, values in zip(asked, said(made), strict=True):
        assert values == pytest.approx(expected(tokenizer, question, 0), abs=1e-5)
    again = vllm_scorer.answers(engine, asked, adapter=None, tick=lambda *_: None)
    assert [s.score for s in again] == [s.score for s in made]
    hits = [
        r for r in engine.llm.requests if r[1].get("prompt_logprobs") == 0 and not r[1]["skip_reading_prefix_cache"]
    ]
    assert bool(hits) is not single


def test_choices_of_one_token_are_one_request(vllm, tokenizer, tmp_path) -> None:
    engine, asked = opened(tokenizer, tmp_path), questions(single=True)
    arm = vllm_scorer.Arm(engine, None)
    arm.scored(vllm_scorer.encoded(tokenizer, asked, limit=4096))
    assert len(engine.llm.requests) == len(asked)
    assert all(r[1]["max_tokens"] == 1 and len(r[1]["logprob_token_ids"]) == 4 for r in engine.llm.requests)


def test_an_engine_that_contradicts_itself_is_not_used(vllm, tokenizer, tmp_path) -> None:
    engine = opened(tokenizer, tmp_path)
    engine.llm.lying = True
    with pytest.raises(DataError, match=r"1\.000 nats apart"):
        vllm_scorer.answers(engine, questions(single=True), adapter=None, tick=lambda *_: None)


def test_one_load_serves_the_base_and_every_adapter(vllm, tokenizer, tmp_path) -> None:
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", r=8, rank_pattern={"q_proj": 48})
    engine = opened(tokenizer, tmp_path, one, two)
    assert engine.llm.options["max_lora_rank"] == 64 and engine.llm.options["enable_lora"]
    asked = questions(single=True)
    scores = [said(vllm_scorer.answers(engine, asked, adapter=a, tick=lambda *_: None)) for a in (None, one, two)]
    numbers = {r[2].path: r[2].number for r in engine.llm.requests if r[2]}
    assert len({*numbers.values()}) == 2
    for arm, values in zip((0, numbers[str(one)], numbers[str(two)]), scores, strict=True):
        assert values[3] == pytest.approx(expected(tokenizer, asked[3], arm), abs=1e-5)


@pytest.mark.parametrize("changes", [
    {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": "embed_tokens"}, {"modules_to_save": ["lm_head"]}, {"r": 1024},
])  # fmt: skip
def test_adapters_that_vllm_would_score_wrongly_are_refused(vllm, tokenizer, tmp_path, changes) -> None:
    with pytest.raises(DataError, match="vLLM"):
        opened(tokenizer, tmp_path, adapter(tmp_path / "one", **changes))


def test_without_vllm_the_cure_is_said(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="vLLM is not installed"):
        opened(tokenizer, tmp_path)
