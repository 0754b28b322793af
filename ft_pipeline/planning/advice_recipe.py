"""The recipe that an advice ends in: a whole YAML file with the reason of each decision beside it."""

from __future__ import annotations

from dataclasses import dataclass

from ft_pipeline.planning.advice import FINE_TUNES, SOME, Answers, Technique

BASES = {
    "small": ("hf://HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0; 135 M parameters train on a CPU"),
    "usual": ("hf://Qwen/Qwen3-8B", "Apache-2.0"),
}
LAYOUTS = {"sft": "auto", "dpo": "preference", "rlvr": "rlvr", "cpt": "text"}
"""By technique; the adapters read what sft reads."""
FINETUNE: dict[Technique, str] = {
    "lora": """\
  method: sft
  lora: {{rank: {rank}, alpha: {alpha}}}          # on every linear layer; alpha = 2 x rank
  learning_rate: {lora_rate}                      # {lora_why}
""",
    "qlora": """\
  method: sft
  lora: {{rank: {rank}, alpha: {alpha}, quantize: nf4}}   # the base in four bits
  learning_rate: 2.0e-4                         # the rate of the QLoRA paper at 7 to 13 B
""",
    "sft": """\
  method: sft
  lora: null                                    # every weight: 16 bytes each while it trains
  learning_rate: 2.0e-5                         # a tenth of LoRA's
""",
    "dpo": """\
  method: dpo
  lora: {{rank: 16, alpha: 32{nf4}}}
  learning_rate: 5.0e-6                         # DPO at the rates of supervised training unlearns the language
  preference: {{beta: 0.1}}                       # how far it may leave the base
""",
    "rlvr": """\
  method: grpo
  lora: {{rank: 16, alpha: 32}}
  learning_rate: 1.0e-5                         # low: what is rewarded is found fast enough
  reinforce:
    max_new_tokens: {new}
    completions: {completions}                              # drawn for each prompt; 16 to 64 where right answers are rare
    rewards: [{{name: numeric_answer}}]           # `ft-pipeline rewards list`; calibrate it before training
""",
    "cpt": """\
  method: cpt
  lora: {{rank: 256, alpha: 512}}                 # new knowledge needs rank; null trains every weight
  learning_rate: 1.0e-4                         # half the instruction rate: what the base knows is worth keeping
""",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What the recipe is called and reads."""

    tenant: str = "mine"
    name: str = "first"
    dataset: str = "home://rows.jsonl"
    base: str | None = None
    """None: one that fits the hardware."""


def recipe_text(answers: Answers, technique: Technique, place: Place) -> str:
    """The YAML of a recipe. ValueError for an advice that is no fine-tune."""
    if technique not in FINE_TUNES:
        raise ValueError(f"{technique} needs no recipe")
    uri, why = BASES["small" if answers.hardware == "cpu" else "usual"]
    if place.base:
        uri, why = place.base, "as you say"
    small = answers.hardware == "cpu"
    rank = {"label": 8, "format": 16, "style": 16}.get(answers.goal, 32)
    window, micro = _window(answers, technique)
    per_step = _per_step(answers, micro)
    new, completions = (320, 4) if answers.hardware == "48gb" else (384, 8)
    section = FINETUNE[technique].format(
        nf4=", quantize: nf4" if answers.hardware == "24gb" else "", new=new, completions=completions,
        rank=rank, alpha=2 * rank,
        lora_rate="5.0e-4" if small else "2.0e-4",
        lora_why="small models bear, and need, higher rates" if small else "ten times the rate of training every weight",
    )  # fmt: skip
    holdout = min(0.3, max(0.02, round(1.2 * SOME / max(answers.rows, 1), 3)))
    return f"""\
# Written by `ft-pipeline advise` for {answers.rows:,} rows. `ft-pipeline plan FILE` says what it needs and costs.
tenant: {place.tenant}
name: {place.name}
description: {_description(answers)}
base_model:
  uri: {uri}  # {why}
dataset:
  uri: {place.dataset}
  layout: {LAYOUTS.get(technique, "auto")}
curate:
  splits: {{validation: 0.02, holdout: {0.0 if technique == "cpt" else holdout}}}   # {"text has no right answer to hold out" if technique == "cpt" else "200 held-out rows or more decide the gate"}
encode:
  window_tokens: {window}
  overlong: {"reject" if technique in ("dpo", "rlvr") else "truncate"}
{"  loss: all" + chr(10) if technique == "cpt" else ""}finetune:
{section}  epochs: {_epochs(answers, technique)}
  windows_per_step: {per_step}
  windows_per_micro: {micro}
  dtype: {"float32" if small else "bfloat16"}
gate:
  policy: {"dev" if technique == "cpt" or answers.rows * holdout < SOME else "staging"}
  holdout: {{metric: {"exact_match" if answers.goal in ("label", "verifiable") else "rouge_l"}, max_new_tokens: {new if technique == "rlvr" else 16 if answers.goal == "label" else 128}}}
# benchmarks: [{{name: general, uri: "home://suite.jsonl"}}]     what it could do before must not get lost
# safety: {{uri: "home://safety.jsonl"}}                         ten bad examples are enough to lose refusals
"""


def _description(answers: Answers) -> str:
    return f"First try for {answers.goal} with {answers.rows} {answers.kind}."


def _window(answers: Answers, technique: Technique) -> tuple[int, int]:
    """(window tokens, windows in a forward pass) that fit the hardware without recomputing activations."""
    if answers.hardware == "cpu":
        return 512, 2
    if technique == "rlvr":
        return 256, 1
    room = {"24gb": 1024, "48gb": 2048}.get(answers.hardware, 4096)
    if technique == "dpo":
        return room // 2, 1
    return min(room, 2048), 1 if technique in ("sft", "cpt") else max(1, room // 2048)


def _per_step(answers: Answers, micro: int) -> int:
    """Windows in a step: 16 where there are rows for it, and a multiple of what eight GPUs take at a time."""
    wanted = 16 if answers.rows >= 2_000 else 8 if answers.rows >= 500 else 2
    return max(micro, wanted * (2 if answers.hardware == "node" else 1) // micro * micro)


def _epochs(answers: Answers, technique: Technique) -> int:
    """One above 10,000 rows, and one for preferences and rewards: a second over-optimises."""
    if technique in ("dpo", "rlvr", "cpt") or answers.rows > 10_000:
        return 1
    return 2 if answers.rows >= 1_000 else 3
