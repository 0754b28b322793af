"""From a request to a recipe: what is legal gives a whole recipe that names nothing of the server's; what is not is refused with the field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.errors import FtError, RecipeError
from ft_pipeline.finetune.artifact import refuse_unsupported
from ft_pipeline.jobs.ask import Ask, Examination, Hyper, Rows
from ft_pipeline.jobs.compose import base_of, compose
from ft_pipeline.jobs.offer import Base, Offer, read_offer
from ft_pipeline.jobs.permit import places
from ft_pipeline.jobs.placements import placement_for
from ft_pipeline.recipe import Recipe, identity, parse
from ft_pipeline.settings import PACKAGE

TRAIN = Rows(id="file-train", uri="blob://" + "1" * 64, count=8_800)
OTHER = Rows(id="file-other", uri="blob://" + "2" * 64)
FOREIGN = "blob://" + "3" * 64
OFFER = Offer(
    bases={"tiny": Base(uri="home://bases/tiny", size="tiny"), "big": Base(uri="hf://acme/big")},
    suites={"cloze": "home://suites/cloze.jsonl", "safety": "home://suites/safety.jsonl"},
    benchmark="cloze", safety="safety", policies=("staging", "dev"),
)  # fmt: skip
PERMITTED = {TRAIN.uri, OTHER.uri, *OFFER.suites.values()}
HOSTILE = (
    "/etc/passwd", "file:///etc/passwd", "home://../../etc/passwd", "home://catalog.db", "home://keys/signing.pem", "s3://other/rows",
    "http://169.254.169.254/latest/meta-data", "https://evil.example/rows.jsonl", "store://" + "4" * 64, FOREIGN, "~/.ssh/id_rsa",
    "hf://acme/secret", "hf://datasets/../../x", "../rows.jsonl", "",
)  # fmt: skip


def find(file_id: str) -> Rows:
    known = {rows.id: rows for rows in (TRAIN, OTHER)}
    if file_id not in known:
        raise RecipeError(f"no file {file_id}")
    return known[file_id]


def made(offer: Offer = OFFER, **changes: Any) -> Recipe:
    ask = Ask(**{"tenant": "acme", "model": "tiny", "training": TRAIN, **changes})
    return compose(ask, offer, find=find).recipe


def asked(**sections: Any) -> Recipe:
    return made(sections=sections)


def test_a_bare_request_is_the_preset_of_its_base_written_down() -> None:
    tiny, big = made(), made(model="big")
    assert (tiny.key, tiny.finetune.learning_rate, tiny.finetune.epochs) == ("acme/tiny-lora", 2.5e-3, 2)
    assert (big.finetune.learning_rate, big.finetune.dtype, big.encode.window_tokens) == (2e-4, "bfloat16", 2048)
    assert (tiny.gate.policy, [b.name for b in tiny.gate.benchmarks]) == ("staging", ["cloze"])
    assert tiny.gate.safety and tiny.gate.safety.uri == OFFER.suites["safety"]


@pytest.mark.parametrize(
    ("method", "section", "rate"),
    [
        ("lora", "sft", 2e-4),
        ("qlora", "sft", 2e-4),
        ("sft", "sft", 2e-5),
        ("dpo", "dpo", 5e-6),
        ("cpt", "cpt", 1e-4),
        ("grpo", "grpo", 1e-5),
    ],
)
def test_every_method_of_the_specification(method: str, section: str, rate: float) -> None:
    rewards = ({"name": "exact_answer"},) if method == "grpo" else ()
    found = made(model="big", method=method, rewards=rewards)
    assert (found.finetune.method, found.finetune.learning_rate) == (section, rate)
    assert (found.finetune.lora is None) == (method == "sft")
    assert bool(found.finetune.lora and found.finetune.lora.quantize == "nf4") == (method == "qlora")
    refuse_unsupported(found)


def test_the_specifications_own_request() -> None:
    hyper = Hyper(
        n_epochs=1, learning_rate_multiplier=1.0, lora_rank=32, lora_alpha=64,
        lora_target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )  # fmt: skip
    examined = Examination(run_mmlu_regression=True, task_eval_file=OTHER, safety_scan=True)
    found = made(model="big", hyper=hyper, validation=OTHER, examination=examined)
    lora = found.finetune.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, len(lora.targets), found.finetune.epochs) == (32, 64, 7, 1)
    assert [(b.name, b.task) for b in found.gate.benchmarks] == [("mmlu", "mmlu")]
    assert [(s.name, s.uri, s.split) for s in found.mix] == [
        ("validation", OTHER.uri, "validation"),
        ("holdout", OTHER.uri, "holdout"),
    ]
    assert (found.curate.splits.validation, found.curate.splits.holdout) == (0.0, 0.0)


def test_the_suffix_names_the_line_and_without_one_the_next_job_is_its_next_version() -> None:
    assert made(suffix="My Support Bot!").name == "my-support-bot"
    assert made().key == made(seed=7).key
    assert made(model="big", method="cpt").name == "big-cpt"
    with pytest.raises(RecipeError, match="no letter or digit"):
        made(suffix="---")


def test_a_learning_rate_multiplier_scales_the_preset() -> None:
    assert made(hyper=Hyper(learning_rate_multiplier=0.5)).finetune.learning_rate == 1.25e-3


def test_sections_are_laid_over_and_a_whole_recipe_is_taken_as_it_is() -> None:
    laid = asked(finetune={"weight_decay": 0.5}, encode={"window_tokens": 128})
    assert (laid.finetune.weight_decay, laid.finetune.learning_rate, laid.encode.window_tokens) == (0.5, 2.5e-3, 128)
    whole = identity(laid)
    for name in ("schedule", "on_base_change"):
        del whole[name]
    whole["dataset"]["uri"] = TRAIN.id
    whole["gate"] = {"policy": "dev"}
    assert asked(**whole).gate.benchmarks == ()


def test_the_demos_own_recipe_can_be_posted_with_its_file() -> None:
    document = yaml.safe_load((PACKAGE / "recipes" / "demo-docs-router.yaml").read_text())
    del document["tenant"], document["schedule"], document["dataset"]["uri"]
    offer = read_offer(PACKAGE / "jobs" / "offer.yaml")
    found = made(offer, model="tiny-docs", sections=document)
    assert (found.key, found.finetune.epochs, found.gate.policy) == ("acme/docs-router", 9, "local")
    assert found.dataset.uri == TRAIN.uri
    assert found.dataset.licence == "PSF-2.0"


def test_the_same_thing_may_not_be_said_twice() -> None:
    with pytest.raises(RecipeError, match="n_epochs and platform"):
        made(hyper=Hyper(n_epochs=3), sections={"finetune": {"epochs": 2}})


@pytest.mark.parametrize("uri", HOSTILE)
@pytest.mark.parametrize(
    "section",
    [
        lambda uri: {"dataset": {"uri": uri}},
        lambda uri: {"base_model": {"uri": uri}},
        lambda uri: {"mix": [{"name": "more", "uri": uri}]},
        lambda uri: {"curate": {"contamination": {"benchmarks": [{"name": "x", "uri": uri}]}}},
        lambda uri: {"curate": {"toxicity": {"words": uri or "."}}},
        lambda uri: {"gate": {"benchmarks": [{"name": "x", "uri": uri or "."}]}},
        lambda uri: {"gate": {"safety": {"uri": uri}}},
        lambda uri: {
            "finetune": {
                "method": "grpo",
                "reinforce": {
                    "max_new_tokens": 4,
                    "rewards": [{"name": "matches", "parameters": {"pattern": "a"}, "probes": uri or "."}],
                },
            }
        },
    ],
    ids=["dataset", "base", "mix", "contamination", "words", "benchmark", "safety", "probes"],
)
def test_no_place_of_the_server_or_of_another_tenant_can_be_named(section: Any, uri: str) -> None:
    with pytest.raises(RecipeError):
        asked(**section(uri))


@pytest.mark.parametrize(
    "sections",
    [
        {"dataset": {"revision": "5" * 64}},
        {"base_model": {"revision": "5" * 64}},
        {"mix": [{"name": "more", "uri": OTHER.id, "revision": "5" * 64}]},
    ],
    ids=["dataset", "base", "mix"],
)
def test_no_artifact_is_reached_by_its_revision(sections: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="revision"):
        asked(**sections)


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"gate": {"holdout": {"metric": "os:system"}}}, "gate.holdout.metric"),
        (
            {
                "finetune": {
                    "method": "grpo",
                    "reinforce": {"max_new_tokens": 4, "rewards": [{"name": "os:system", "probes": OTHER.id}]},
                }
            },
            "reinforce.rewards",
        ),
        ({"gate": {"judge": {"judge": {"kind": "scripted", "model": "os:system"}}}}, "gate.judge"),
        (
            {
                "gate": {
                    "judge": {
                        "judge": {
                            "kind": "endpoint",
                            "model": "m",
                            "base_url": "http://10.0.0.1/v1",
                            "key_variable": "FT_API_PEPPER",
                        }
                    }
                }
            },
            "gate.judge",
        ),
        (
            {
                "gate": {
                    "safety": {
                        "uri": OFFER.suites["safety"],
                        "scorer": "endpoint",
                        "model": {"kind": "endpoint", "model": "m", "base_url": "http://x/v1"},
                    }
                }
            },
            "gate.safety.model",
        ),
        (
            {
                "gate": {
                    "holdout": {
                        "metric": "json_schema",
                        "parameters": {"schema": {"allOf": [{"$ref": "http://10.0.0.1/s"}]}},
                    }
                }
            },
            "gate.holdout.parameters",
        ),
        ({"gate": {"policy": "spec"}}, "gate.policy"),
        ({"finetune": {"epochs": 10**9}}, "finetune.epochs"),
        ({"schedule": "0 3 * * 1"}, "schedule"),
        ({"tenant": "other"}, "tenant"),
    ],
)
def test_no_code_no_secret_no_outside_address_and_no_endless_job(sections: dict[str, Any], field: str) -> None:
    with pytest.raises(RecipeError, match=field):
        asked(**sections)


def test_an_operator_may_allow_code_and_judges() -> None:
    open_offer = replace(OFFER, allow=("hub", "code", "judges"))
    judge = {"kind": "endpoint", "model": "m", "base_url": "http://judge/v1", "key_variable": "JUDGE_KEY"}
    gate = {"holdout": {"metric": "mine.metrics:score"}, "judge": {"judge": judge}}
    found = made(open_offer, sections={"gate": gate})
    assert found.gate.holdout.metric == "mine.metrics:score"
    with pytest.raises(RecipeError, match="mix more"):
        made(replace(OFFER, allow=()), sections={"mix": [{"name": "more", "uri": "hf://datasets/a/b"}]})


def test_files_of_ones_own_and_public_data_sets_may_be_mixed_in() -> None:
    mix = [{"name": "own", "uri": OTHER.id}, {"name": "hub", "uri": "hf://datasets/a/b", "revision": "a" * 40}]
    found = asked(mix=mix, gate={"benchmarks": [{"name": "mine", "uri": OTHER.id}]})
    assert [s.uri for s in found.mix] == [OTHER.uri, "hf://datasets/a/b"]
    assert found.gate.benchmarks[0].uri == OTHER.uri
    with pytest.raises(RecipeError, match="no file file-elses"):
        asked(mix=[{"name": "x", "uri": "file-elses"}])


@pytest.mark.parametrize(
    "name", ["nope", "/models/llama", "file:///m", "hf://acme/other", "acme/tiny-lora@3", "../tiny"]
)
def test_only_offered_bases_are_trained(name: str) -> None:
    with pytest.raises(RecipeError):
        base_of(name, OFFER)


def test_what_a_tenant_may_say_of_the_placement(home: Any) -> None:
    assert placement_for(home, {"checkpoint_steps": 10, "keep_best": True}, OFFER.most).checkpoint_steps == 10
    for said in ({"worker": "kubernetes"}, {"threads": 64}, {"processes": 64}, {"nodes": 2}, {"gpu": "h100-80gb"}):
        with pytest.raises(RecipeError, match="placement"):
            placement_for(home, said, OFFER.most)


count = st.integers(1, 100)
hypers = st.builds(
    Hyper,
    n_epochs=st.none() | count,
    batch_size=st.none() | st.integers(1, 8192),
    learning_rate_multiplier=st.none() | st.floats(1e-3, 1000),
    lora_rank=st.none() | st.integers(1, 512),
    lora_alpha=st.none() | st.integers(1, 4096),
    lora_target_modules=st.none() | st.just(("q_proj",)),
)


@given(
    hyper=hypers, method=st.sampled_from(["lora", "qlora", "dpo", "cpt", "grpo"]), model=st.sampled_from(["tiny", "big"]),
    seed=st.integers(0, 2**31 - 1), rows=st.none() | st.integers(0, 10**8), suffix=st.none() | st.text(max_size=64),
    held=st.booleans(), tested=st.booleans(),
)  # fmt: skip
@settings(max_examples=150)
def test_any_legal_request_gives_a_recipe_that_can_be_read_again(**said: Any) -> None:
    rewards = ({"name": "exact_answer"},) if said["method"] == "grpo" else ()
    ask = Ask(
        tenant="acme", model=said["model"], training=replace(TRAIN, count=said["rows"]), method=said["method"], hyper=said["hyper"],
        rewards=rewards, seed=said["seed"], suffix=said["suffix"], validation=OTHER if said["held"] else None,
        examination=Examination(task_eval_file=OTHER) if said["tested"] else None,
    )  # fmt: skip
    try:
        found = compose(ask, OFFER, find=find).recipe
    except RecipeError as error:
        assert "no letter or digit" in error.what
        return
    assert parse(json.loads(json.dumps(identity(found))), origin="row") == found
    refuse_unsupported(found)
    assert {place.uri for place in places(found)} <= PERMITTED
    assert found.finetune.windows_per_step % found.finetune.windows_per_micro == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8) | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
sections = st.dictionaries(
    st.sampled_from(
        ["mix", "curate", "encode", "finetune", "gate", "dataset", "base_model", "name", "description", "x"]
    ),
    json_values,
    max_size=4,
)


@given(said=sections)
@settings(max_examples=300)
def test_whatever_is_posted_is_refused_in_words_or_names_only_what_is_permitted(said: dict[str, Any]) -> None:
    try:
        found = made(sections=said)
    except FtError as error:
        assert error.what
        return
    assert {place.uri for place in places(found)} <= PERMITTED
    assert found.base_model.uri == OFFER.bases["tiny"].uri
