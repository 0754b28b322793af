"""One real vLLM server over a tiny base: `make test-vllm`. Every answer is compared with HF and PEFT, one request at a time, in this process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ft_pipeline.errors import StorageError
from ft_pipeline.store.catalog import ModelVersion
from ft_pipeline_tests import lines, road
from ft_pipeline_tests.serve import pool

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2400)]
TOKENS, PROMPTS = 24, 4
SLOTS = {"FT_VLLM_SLOTS": "2", "FT_VLLM_ADAPTERS": "3", "FT_VLLM_RANK": "16"}


class OneByOne:
    """The base and each adapter alone, as transformers and PEFT give them: greedy, no cache."""

    def __init__(self, house: pool.Pool) -> None:
        self.house, self._models, self._said = house, {}, {}

    def tokens(self, model: str, prompt: tuple[int, ...], *, number: int = TOKENS) -> list[int]:
        import torch

        key = (model, prompt, number)
        if key not in self._said:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                for _ in range(number):
                    last = self._model(model)(input_ids=ids).logits[:, -1]
                    ids = torch.cat([ids, last.argmax(dim=-1, keepdim=True)], dim=1)
            self._said[key] = ids[0, len(prompt) :].tolist()
        return self._said[key]

    def _model(self, name: str) -> Any:
        if name not in self._models:
            from peft import PeftModel
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(self.house.base.folder).eval()
            if "/" in name:
                digest = self.house.catalog.model(name).adapter_digest
                model = PeftModel.from_pretrained(model, self.house.store.fetch(self.house.catalog.ref(digest)).folder)
            self._models[name] = model
        return self._models[name]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[pool.Pool]:
    made = pool.new_pool(tmp_path_factory.mktemp("vllm") / "home")
    yield made
    made.catalog.close()


@pytest.fixture(scope="module")
def versions(house) -> list[ModelVersion]:
    """Of five lines: more than the two slots and the three places in memory."""
    return [pool.version(house, seed, line=f"acme/line{seed}") for seed in range(5)]


@pytest.fixture(scope="module")
def server(house, versions) -> Iterator[pool.Replica]:
    replica = pool.Replica(house, **SLOTS).start()
    yield replica
    replica.stop()
    replica.client.close()


@pytest.fixture(scope="module")
def alone(house) -> OneByOne:
    return OneByOne(house)


def prompts() -> list[tuple[int, ...]]:
    """Of different lengths; token ids of the tiny tokenizer beyond its control tokens."""
    return [tuple(range(20 + 7 * n, 40 + 12 * n)) for n in range(PROMPTS)]


def wrong(server: pool.Replica, alone: OneByOne, models: list[str], *, at_once: int) -> list[str]:
    """The requests that were not answered as one by one, of every model with every prompt."""
    asked = list(itertools.product(prompts(), models))
    with ThreadPoolExecutor(at_once) as threads:
        said = list(threads.map(lambda one: server.tokens(one[1], one[0], number=TOKENS), asked))
    return [
        f"{model} after {len(prompt)} tokens: {got}"
        for (prompt, model), got in zip(asked, said, strict=True)
        if got != alone.tokens(model, prompt)
    ]


def test_the_adapters_and_the_base_say_different_things(alone, house, versions):
    said = [alone.tokens(model, prompts()[0]) for model in (house.base_model, *(v.label for v in versions))]
    assert len({tuple(tokens) for tokens in said}) == len(said)


def test_two_adapters_and_the_base_answer_together_as_they_do_alone(server, alone, house, versions):
    models = [house.base_model, versions[0].label, house.base_model, versions[1].label]
    assert wrong(server, alone, models, at_once=16) == []


def test_more_adapters_than_places_come_and_go(server, alone, house, versions):
    labels = [v.label for v in versions]
    assert wrong(server, alone, labels * 2, at_once=1) == []
    assert wrong(server, alone, [house.base_model, *labels], at_once=16) == []
    assert {k: v.rpartition("/")[2] for k, v in server.models().items() if "@" in k} == {
        v.label: v.adapter_digest for v in versions
    }, "the folders are named by digests"


def test_chat_reads_a_prompt_as_training_wrote_it(server, alone, house, versions):
    from transformers import AutoTokenizer

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "which module is it?"}]
    adapter = house.store.fetch(house.catalog.ref(versions[0].adapter_digest)).folder
    expected = AutoTokenizer.from_pretrained(adapter).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]  # fmt: skip
    body = {"model": versions[0].label, "messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}  # fmt: skip
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["prompt_token_ids"] == expected
    assert answer["choices"][0]["token_ids"] == alone.tokens(versions[0].label, tuple(expected), number=8)


def test_log_probabilities_of_prompts_do_not_end_the_engine(server, alone, versions):
    """Of several at once: one alone happens to broadcast."""

    def ask(start: int) -> Any:
        body = {"model": versions[0].label, "prompt": list(range(start, start + 40)), "max_tokens": 8, "temperature": 0, "prompt_logprobs": 1}  # fmt: skip
        return server.client.post("/v1/completions", json=body)

    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(ask, range(20, 36)))
    assert {response.status_code for response in said} == {200}
    assert {len(response.json()["choices"][0]["prompt_logprobs"]) for response in said} == {40}
    assert wrong(server, alone, [versions[0].label], at_once=1) == []


@pytest.mark.parametrize(
    "name",
    ["acme/unknown@1", "acme/line0", "acme/line0:production", "acme/line0@2", "../line0@1", "../../etc/passwd", "/etc/passwd",
     "acme/line0@1/../line1@1", "acme/line0@1\n", "acme/line0@1\x00"],
)  # fmt: skip
def test_names_that_are_no_version_get_404(server, name):
    assert server.status(name) == 404


def test_a_path_of_an_adapter_is_no_name(server, house, versions):
    folder = house.store.fetch(house.catalog.ref(versions[0].adapter_digest)).folder
    assert server.status(str(folder)) == 404


def test_a_version_in_dev_gets_404(server, house, versions):
    draft = pool.dev_version(house, versions[0])
    assert server.status(draft.label) == 404
    assert f"refused the adapter '{draft.label}': {draft.label} is in dev" in server.log.read_text()


def test_a_version_on_another_base_gets_404(server, house):
    other = pool.version(house, 1, line="acme/elsewhere", base=lines.plain_base(house.store, "another"))
    assert server.status(other.label) == 404
    assert f"{other.label} stands on base {other.base_digest[:12]}" in server.log.read_text()


def test_a_changed_adapter_gets_404_and_answers_when_it_is_restored(server, alone, house):
    made = pool.version(house, 9, line="acme/changed")
    weights = house.store.fetch(house.catalog.ref(made.adapter_digest)).folder / "adapter_model.safetensors"
    road.flip_byte(weights)
    assert server.status(made.label) == 404
    assert "adapter_model.safetensors was changed" in server.log.read_text()
    road.flip_byte(weights)
    assert wrong(server, alone, [made.label], at_once=1) == []


def test_what_vllm_cannot_serve_gets_404_with_the_reason_in_the_log(server, house):
    made = pool.version(house, 3, line="acme/dora", use_dora=True)
    assert server.status(made.label) == 404
    assert f"vLLM cannot serve {made.label}: vLLM has no DoRA" in server.log.read_text()


def test_an_adapter_that_was_unloaded_comes_back_by_itself(server, alone, versions):
    label = versions[0].label
    assert server.status(label) == 200
    assert server.client.post("/v1/unload_lora_adapter", json={"lora_name": label}).status_code == 200
    assert label not in server.models()
    assert wrong(server, alone, [label], at_once=4) == []


def test_a_restarted_replica_finds_its_adapters_by_itself(server, alone, house, versions):
    server.stop()
    server.start()
    assert list(server.models()) == [house.base_model], "it starts with none"
    assert wrong(server, alone, [house.base_model, *(v.label for v in versions)], at_once=16) == []


def test_vllm_itself_still_gives_base_rows_the_last_adapters_weights():
    """When this fails, the patch is no longer needed."""
    import torch
    from vllm.lora.ops.torch_ops import bgmv_shrink

    from ft_pipeline.serve.vllm_plugin.cpu_patches import without_base_rows

    inputs, weights, indices = torch.ones(3, 8), torch.ones(2, 1, 4, 8), torch.tensor([-1, 0, 1])
    plain, guarded = torch.zeros(3, 4), torch.zeros(3, 4)
    bgmv_shrink(inputs, weights, plain, indices, 1.0)
    without_base_rows(bgmv_shrink)(inputs, weights, guarded, indices, 1.0)
    assert plain[0].sum() == 32, "the base row got weights"
    assert guarded[0].sum() == 0
    assert torch.equal(plain[1:], guarded[1:])


def test_a_catalog_that_does_not_answer_is_no_refusal(monkeypatch, tmp_path):
    from ft_pipeline.serve.vllm_plugin.resolver import CatalogResolver

    monkeypatch.setenv("FT_HOME", str(tmp_path))
    monkeypatch.setenv("FT_CATALOG", "postgresql+psycopg2://nobody@127.0.0.1:1/none")
    with pytest.raises(StorageError):
        asyncio.run(CatalogResolver().resolve_lora("base", "acme/router@1"))
