"""Placements, hours, money and cautions of recipes whose shape and rows are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from ft_pipeline import recipe
from ft_pipeline.errors import NotFoundError, UserError
from ft_pipeline.planning import cost
from ft_pipeline.planning.cautions import RATES, Planned, cautions, kind_of
from ft_pipeline.planning.cost import Ask, micros_per_step, place, placements
from ft_pipeline.planning.estimate import estimate
from ft_pipeline.planning.prices import read_prices
from ft_pipeline.planning.shapes import PUBLIC
from ft_pipeline.planning.work import estimated, run_flops, steps
from ft_pipeline.settings import PACKAGE
from ft_pipeline_tests import road

BOOK = PACKAGE / "planning" / "prices.yaml"
PRICES = read_prices(BOOK)


def made(**changes):
    section = {
        "method": "sft", "lora": {"rank": 16, "alpha": 32}, "learning_rate": 2e-4, "epochs": 1, "windows_per_step": 32,
        "windows_per_micro": 1, "dtype": "bfloat16",
    }  # fmt: skip
    top = {k: changes.pop(k) for k in list(changes) if k in ("curate", "gate")}
    return recipe.parse(road.document(finetune={**section, **changes}, encode={"window_tokens": 4096}, **top), origin="test")  # fmt: skip


def asked(found=None, *, name="Llama-3.1-8B", rows=50_000, **more) -> Ask:
    found = found or made()
    work = estimated(found, rows=rows, row_tokens=500, fill=1.0, known_from="test")
    return Ask(found=found, shape=PUBLIC[name], work=work, prices=PRICES, **more)


def test_the_first_placement_is_the_cheapest_and_all_fit():
    found = placements(asked())
    assert [p.spot for p in found] == sorted(p.spot for p in found) and all(p.fits for p in found)
    assert {p.gpu for p in found} <= set(PRICES.gpus)


def test_hours_are_flops_over_what_the_gpus_reach():
    ask = asked()
    found = place(ask, "H100", (1, "none", "none"))
    model, _ = run_flops(ask.shape, ask.found, ask.work)
    assert found.hours == pytest.approx(model / (989.5e12 * 0.40) / 3600 + 5 / 60)
    assert found.on_demand == pytest.approx(found.hours * 3.89)


def test_model_flops_are_four_for_a_frozen_weight_and_six_for_a_trained_one():
    lora, full = (run_flops(PUBLIC["Llama-3.1-8B"], f, asked(f).work)[0] for f in (made(), made(lora=None)))
    assert 1.4 < full / lora < 1.5


def test_spot_pays_for_what_it_expects_to_lose():
    found = place(asked(rows=2_000_000), "A100-80", (8, "none", "full"))
    assert found.interruptions == pytest.approx(0.10 * found.hours)
    each = cost.checkpoint_hours(found.step_seconds) / 2 + 10 / 60
    assert found.lost_hours == pytest.approx(found.interruptions * each)
    assert found.spot == pytest.approx((found.hours + found.lost_hours) * 8 * 1.49)


def test_a_deadline_takes_more_gpus():
    slow = placements(asked(rows=1_000_000))[0]
    fast = placements(asked(rows=1_000_000, within_hours=slow.hours / 4))[0]
    assert fast.hours <= slow.hours / 4 and fast.gpus > slow.gpus


def test_gpus_take_whole_micro_batches():
    three = made(windows_per_step=6, windows_per_micro=2)
    assert micros_per_step(three) == 3
    assert {p.gpus for p in placements(asked(three))} == {1}


def test_a_wish_for_a_gpu_is_kept_and_an_unknown_one_named():
    assert {(p.gpu, p.gpus) for p in placements(asked(gpu="H200", gpus=4))} == {("H200", 4)}
    with pytest.raises(NotFoundError, match="did you mean H100"):
        placements(asked(gpu="H10O"))


def test_what_fits_nowhere_says_what_comes_nearest():
    found = estimate(asked(made(lora=None, windows_per_step=1), name="Llama-3.1-70B"))
    assert found.best is None and found.nearest is not None and found.nearest.memory.peak > found.nearest.usable


def test_only_what_runs_is_proposed():
    """70 B of full weights are spread over 16 GPUs or more, a layer at a time; fewer are tried every way that runs."""
    seventy = placements(asked(made(lora=None, windows_per_step=64), name="Llama-3.1-70B"))
    assert seventy and {place.sharding for place in seventy} == {"fsdp"} and min(p.gpus for p in seventy) >= 16
    assert placements(asked(made(lora=None, windows_per_step=64), name="Llama-3.1-8B"))
    tried = {place.sharding for place in cost._tried(asked(made(lora=None, windows_per_step=64), gpu="H100"))}
    assert tried == {"none", "zero1", "zero2", "fsdp"}


def test_a_seven_billion_lora_takes_hours_and_a_few_dollars():
    """The design sources: 2 to 4 hours of one A100, 3 to 9 dollars on spot, for up to 100,000 rows."""
    best = placements(asked(name="Llama-2-7B", rows=100_000, gpu="A100-80"))[0]
    assert 2 < best.hours < 4 and 3 < best.spot < 9 and best.gpus == 1


def test_checkpoints_hold_twelve_bytes_a_trained_weight():
    assert cost.checkpoint_bytes(PUBLIC["Llama-3.1-8B"], made(lora=None)) == pytest.approx(96e9, rel=0.01)
    assert cost.checkpoint_bytes(PUBLIC["Llama-3.1-8B"], made(lora={"rank": 32, "alpha": 64})) == pytest.approx(
        1e9, rel=0.01
    )


def test_steps_are_those_of_the_schedule():
    from ft_pipeline.finetune.schedule import Schedule

    for windows in (31, 32, 33, 1000, 12345):
        for section in (made(), made(windows_per_micro=8, epochs=3)):
            assert steps(section, windows) == Schedule(section=section.finetune, windows=windows).steps


def test_sampling_takes_the_longer_part_of_reinforcement():
    policy = made(
        method="grpo", learning_rate=1e-6, reinforce={"max_new_tokens": 512, "rewards": [{"name": "numeric_answer"}]}
    )
    plain = place(asked(rows=1000), "H100", (1, "none", "full"))
    sampled = place(asked(policy, rows=1000), "H100", (1, "none", "full"))
    assert sampled.hours > 3 * plain.hours


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("spot: 0.80", "gpus.L40S.spto: Unexpected keyword argument"), ("mfu: 0.40", "assumed.mfu: Field required"),
    ],
)  # fmt: skip
def test_a_broken_price_book_is_told_by_its_field(tmp_path, change, expected):
    broken = tmp_path / "prices.yaml"
    broken.write_text(BOOK.read_text().replace(change, change.replace("spot", "spto").replace("mfu:", "mfuu:"), 1))
    with pytest.raises(UserError) as told:
        read_prices(broken)
    assert expected.split(":")[0] in told.value.what


def test_a_price_book_that_is_missing_or_no_yaml(tmp_path):
    with pytest.raises(NotFoundError):
        read_prices(tmp_path / "none.yaml")
    (tmp_path / "odd.yaml").write_text("[unclosed")
    with pytest.raises(UserError):
        read_prices(tmp_path / "odd.yaml")


GATED = {"policy": "staging", "safety": {"uri": "home://s.jsonl"}}
CASES = {
    "epochs": (made(epochs=2, gate=GATED), {}),
    "alpha": (made(lora={"rank": 16, "alpha": 16}, gate=GATED), {}),
    "targets": (made(lora={"rank": 16, "alpha": 32, "targets": ["q_proj", "v_proj"]}, gate=GATED), {}),
    "learning_rate": (made(learning_rate=2e-5, gate=GATED), {}),
    "cpt_rank": (made(method="cpt", gate=GATED), {}),
    "holdout": (made(gate=GATED, curate={"splits": {"holdout": 0.001, "validation": 0.0}}), {}),
    "safety": (made(gate={"policy": "staging"}), {}),
    "few_windows": (made(windows_per_step=8192, gate=GATED), {}),
    "micro_batches": (made(gate=GATED), {"gpus": 24}),
    "host_memory": (made(gate=GATED), {"name": "Llama-3.1-70B", "gpus": 8}),
    "grace": (made(windows_per_step=4096, gate=GATED), {"rows": 500_000, "step_seconds": 200.0}),
}


@pytest.mark.parametrize("code", CASES)
def test_each_caution_speaks_alone_and_has_a_cure(code):
    found, more = CASES[code]
    ask = asked(found, name=more.get("name", "Llama-3.1-8B"), rows=more.get("rows", 50_000))
    placed = replace(place(ask, "H100", (8, "fsdp", "full")), step_seconds=more.get("step_seconds", 1.0))
    said = cautions(Planned(found=found, shape=ask.shape, work=ask.work, placed=placed, gpus=more.get("gpus", 1)))
    assert [c.code for c in said] == [code]
    assert said[0].text and said[0].cure


def test_a_recipe_after_the_book_has_no_caution():
    found = made(gate=GATED)
    ask = asked(found)
    assert (
        cautions(Planned(found=found, shape=ask.shape, work=ask.work, placed=place(ask, "H100", (1, "none", "none"))))
        == ()
    )


def test_every_method_has_its_usual_rates():
    from typing import get_args, get_type_hints

    from ft_pipeline.recipe import Finetune

    methods = [m for part in get_args(get_type_hints(Finetune)["method"]) for m in (get_args(part) or (part,))]
    assert "grpo" in methods and "sft" in methods
    for method in methods:
        for lora in (None, made().finetune.lora):
            found = made()
            changed = replace(found.finetune, method=method, lora=lora)
            assert kind_of(replace(found, finetune=changed)) in RATES


def test_packaged_recipes_of_known_models_have_a_placement():
    from ft_pipeline.planning.shapes import public_shape

    seen = 0
    for path in sorted((PACKAGE / "recipes").glob("*.yaml")):
        found = recipe.parse(yaml.safe_load(path.read_text()), origin=path.name)
        if known := public_shape(found.base_model.uri):
            seen += 1
            work = estimated(found, rows=50_000, row_tokens=400, fill=0.97, known_from="test")
            assert placements(Ask(found=found, shape=known[1], work=work, prices=PRICES)), path.name
    assert seen >= 5
