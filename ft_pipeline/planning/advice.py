"""Which technique to try first: a table of rules over a few answers. The first rule that holds is the advice; the last one always does.

The ladder is prompt, retrieval, supervised fine-tuning, preferences, reinforcement: each rung costs more than the one before, and no
rung replaces those below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Goal = Literal["facts", "format", "style", "label", "preference", "verifiable", "domain"]
Rows = Literal["none", "texts", "examples", "pairs", "prompts", "table"]
Hardware = Literal["cpu", "24gb", "48gb", "80gb", "node"]
Latency = Literal["relaxed", "tight"]
Technique = Literal["classic", "prompt", "rag", "lora", "qlora", "sft", "dpo", "rlvr", "cpt"]

GOALS: Mapping[str, str] = {
    "facts": "answer from documents: facts, prices, policies",
    "format": "a fixed form: JSON, terms of the trade, a template",
    "style": "a tone, a role, a way to behave",
    "label": "put things into classes, or predict a number",
    "preference": "of two good answers the better one",
    "verifiable": "mathematics, code, tool calls: a program can tell right from wrong",
    "domain": "a language or field the model has hardly read",
}
ROWS: Mapping[str, str] = {
    "none": "nothing yet",
    "texts": "plain documents",
    "examples": "questions with the answer that is wanted",
    "pairs": "a better and a worse answer to each question",
    "prompts": "questions with a result that a program checks",
    "table": "columns of numbers and categories",
}
HARDWARE: Mapping[str, str] = {
    "cpu": "this machine, no GPU",
    "24gb": "one GPU of 24 GB",
    "48gb": "one GPU of 48 GB",
    "80gb": "one GPU of 80 GB or more, or rented by the hour",
    "node": "eight GPUs of 80 GB, or more",
}
LATENCY: Mapping[str, str] = {
    "relaxed": "seconds are fine, long prompts too",
    "tight": "every token of a prompt counts",
}
FINE_TUNES: tuple[Technique, ...] = ("lora", "qlora", "sft", "dpo", "rlvr", "cpt")
NAMES: Mapping[Technique, str] = {
    "classic": "classic machine learning", "prompt": "prompt engineering", "rag": "retrieval (RAG)", "lora": "LoRA fine-tuning",
    "qlora": "QLoRA fine-tuning", "sft": "full supervised fine-tuning", "dpo": "preference training (DPO)",
    "rlvr": "reinforcement with verifiable rewards", "cpt": "continued pre-training",
}  # fmt: skip
FEW, SOME, MANY, HUGE = 50, 200, 1_000, 100_000
"""Rows: below FEW there is nothing to learn from; below SOME a prompt with examples does as well; DPO wants MANY pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a person says."""

    goal: Goal
    kind: Rows
    """What the rows are."""
    rows: int
    changes_often: bool
    """The facts change by the week or faster."""
    hardware: Hardware
    latency: Latency


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """When a technique comes first, and why."""

    name: str
    technique: Technique
    holds: Callable[[Answers], bool]
    reason: str
    then: str
    """What comes after, when it is not enough."""


def _learnable(a: Answers, *, least: int = FEW) -> bool:
    """Questions with answers, in a number that teaches."""
    return a.kind == "examples" and a.rows >= least


def _short(a: Answers) -> bool:
    """So few examples that a prompt holds them, and a prompt that long may be paid for."""
    return a.kind == "examples" and a.rows < SOME and a.latency == "relaxed"


RULES: tuple[Rule, ...] = (
    Rule(
        name="table",
        technique="classic",
        holds=lambda a: a.kind == "table",
        reason="Rows of numbers and categories: trees over columns reached 97% in 0.3 s on a CPU where a language model needs a GPU; on text fine-tuning gains 10 to 15 points over them, on columns nothing.",
        then="A small model with LoRA when the columns turn out to be text.",
    ),
    Rule(
        name="facts_change",
        technique="rag",
        holds=lambda a: a.goal == "facts" and a.changes_often,
        reason="Facts that change by the week cannot live in weights: every change would be a training run, and the old answer stays in the model. Documents that are looked up are corrected in a minute.",
        then="A fine-tune on top for tone and form: fine-tuned with retrieval beats either alone.",
    ),
    Rule(
        name="facts",
        technique="rag",
        holds=lambda a: a.goal == "facts",
        reason="Fine-tuning teaches form better than facts, and cannot name its source. Put few and relevant passages into the prompt: what stands in the middle of a long context is lost.",
        then="A fine-tune on top for tone and form: fine-tuned with retrieval beats either alone.",
    ),
    Rule(
        name="verifiable",
        technique="rlvr",
        holds=lambda a: (
            a.kind == "prompts" and a.rows >= SOME and a.goal != "domain" and a.hardware in ("48gb", "80gb", "node")
        ),
        reason="A program can tell right from wrong, so no labels are needed: 8 completions a prompt are drawn and scored, and no reward model can be talked round. Start from a checkpoint that is right sometimes: where all completions fail, nothing is learnt.",
        then="Calibrate the reward first; watch length and KL: what a check lets pass will be found and exploited.",
    ),
    Rule(
        name="verifiable_small",
        technique="prompt",
        holds=lambda a: a.kind == "prompts" and a.goal != "domain",
        reason="Drawing completions costs 10 to 100 times the work of supervised training: not with this few prompts or this little memory. Let the model think aloud, draw several answers and keep the one that the program accepts.",
        then="Accepted answers are examples: from 200 of them on, fine-tune on those.",
    ),
    Rule(
        name="pairs",
        technique="dpo",
        holds=lambda a: a.kind == "pairs" and a.rows >= MANY and a.hardware != "cpu" and a.goal != "domain",
        reason="Better and worse answers are what DPO learns from: as good as PPO for most chat, one model in memory instead of four once the reference is computed beforehand.",
        then="Supervised training on the better answers first, when the base model does not yet answer in this way at all.",
    ),
    Rule(
        name="pairs_few",
        technique="prompt",
        holds=lambda a: a.kind == "pairs" and a.rows < SOME and a.goal != "domain",
        reason="Under 200 pairs are noise to preference training, and a holdout of them decides nothing. Write down what makes the better answers better, and say it in the prompt.",
        then="DPO from 1,000 pairs on; or supervised training on the better answers.",
    ),
    Rule(
        name="domain",
        technique="cpt",
        holds=lambda a: (
            a.goal == "domain"
            and a.kind in ("texts", "examples", "pairs")
            and a.rows >= MANY
            and a.hardware in ("80gb", "node")
        ),
        reason="New vocabulary and a new field need continued pre-training on plain text, of all weights or at a high rank: ChipNeMo read 23 B tokens with all of 13 B weights; low-rank adapters cannot take that in.",
        then="Supervised training afterwards, or the model has the field and not the manners.",
    ),
    Rule(
        name="domain_small",
        technique="rag",
        holds=lambda a: a.goal == "domain" and a.kind in ("none", "texts", "prompts"),
        reason="Too little text, or too little memory, to teach a field: look its documents up instead.",
        then="Continued pre-training with 80 GB and from some ten million tokens on.",
    ),
    Rule(
        name="nothing",
        technique="prompt",
        holds=lambda a: a.kind in ("none", "texts") or a.rows < FEW,
        reason="There is nothing to learn from yet. A prompt with a role, the rule and three examples is an hour's work and the bar that any fine-tune has to clear.",
        then="Collect questions with the answer that is wanted: 1,000 chosen ones did as well as 50,000 unchosen.",
    ),
    Rule(
        name="few_shot",
        technique="prompt",
        holds=_short,
        reason="Under 200 examples: put the best of them into the prompt. The gate could not tell a fine-tune's gain from chance with fewer than 200 held-out rows anyway.",
        then="LoRA once there are some hundreds, or when long prompts cost too much.",
    ),
    Rule(
        name="laptop",
        technique="lora",
        holds=lambda a: a.hardware == "cpu",
        reason="Without a GPU: LoRA on a model of 135 M parameters, a night on a CPU. Enough for classes and fixed forms, not for knowledge.",
        then="Rent a GPU by the hour: LoRA on 7 to 8 B costs a few dollars.",
    ),
    Rule(
        name="small_gpu",
        technique="qlora",
        holds=lambda a: a.hardware == "24gb",
        reason="24 GB hold a model of 8 B in four bits only: a third less memory than LoRA (14 GB against 21 at 7 B), 1.5 times the time, adapters as good.",
        then="LoRA on 48 GB or more when time matters; four bits save nothing in serving.",
    ),
    Rule(
        name="all_weights",
        technique="sft",
        holds=lambda a: a.hardware == "node" and _learnable(a, least=HUGE),
        reason="A hundred thousand examples and eight GPUs: enough for all weights (16 bytes each), should LoRA leave a gap that was measured. Every tenant then needs a replica of the whole model.",
        then="Run LoRA on the same data beside it: it is the default, and the gap is often none.",
    ),
    Rule(
        name="default",
        technique="lora",
        holds=lambda _a: True,
        reason="The default: one copy of the base, an adapter of under 1% of its size, on all linear layers, which matter more than rank. It forgets less than training every weight, and hundreds of adapters share one server.",
        then="DPO on pairs afterwards, when answers are right but not the ones that are liked.",
    ),
)
"""In order; a rule need only say what those before it have left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The first advice, and what else would be worth a try."""

    rule: str
    technique: Technique
    name: str
    reason: str
    then: str
    instead: tuple[str, ...]
    """Names of the other techniques whose rules hold too, the nearest first; at most two."""


def advise(answers: Answers) -> Advice:
    """Exactly one first advice for any answers."""
    holding = [rule for rule in RULES if rule.holds(answers)]
    first, others = holding[0], dict.fromkeys(NAMES[rule.technique] for rule in holding[1:])
    others.pop(NAMES[first.technique], None)
    return Advice(
        rule=first.name, technique=first.technique, name=NAMES[first.technique], reason=first.reason, then=first.then,
        instead=tuple(others)[:2],
    )  # fmt: skip
