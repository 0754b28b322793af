"""Where each layout keeps the question and the answer, as turns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.turns import Turn, assistant, is_turns, refuse, text_of, turns, user

PROMPT_COMPLETION = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"), ("question", "response"),
    ("problem", "solution"),
)  # fmt: skip
"""The names that a prompt and its completion go by."""
CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "problem")
"""Of a row whose answer is checked, not learned."""
ANSWERS = ("reward_model", "ground_truth", "reference_answer", "answer", "solution")
"""What an answer is checked against, the most telling first: beside an `answer` the `solution` shows the way to it."""
STEPS = ("completions", "steps")
"""The steps of a solution: TRL's name, and the plain one."""
HUMAN_ASSISTANT = re.compile(r"\n\n(Human|Assistant): ?")
"""How Anthropic/hh-rlhf writes a conversation into one string."""
Row = Mapping[str, Any]


def conversation_key(row: Row) -> str | None:
    """The column that holds messages; None without one."""
    return next((key for key in CONVERSATIONS if row.get(key) is not None), None)


def asked_and_answered(row: Row) -> tuple[str, str] | None:
    """The columns of a prompt and its completion; None without both."""
    return next((p for p in PROMPT_COMPLETION if row.get(p[0]) is not None and row.get(p[1]) is not None), None)


def completed(value: Any, path: str) -> list[Turn]:
    """An answer as turns: messages, or the model's text."""
    return turns(value, path) if is_turns(value) else [assistant(text_of(value, path))]


def asked(value: Any, path: str) -> list[Turn]:
    """A prompt as turns: messages, or the user's text."""
    return turns(value, path) if is_turns(value) else [user(text_of(value, path))]


def alpaca_turns(row: Row) -> list[Turn]:
    """History, then instruction, blank line and input as the user's turn. Raises Refused."""
    words = text_of(row["instruction"], "instruction")
    if row.get("input"):
        words = f"{words}\n\n{text_of(row['input'], 'input')}"
    if not row.get("history"):
        return [user(words)]
    made: list[Turn] = []
    for index, pair in enumerate(row["history"]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise refuse(Reason.WRONG_TYPE, f"history[{index}]", pair)
        made += [user(text_of(pair[0], f"history[{index}][0]")), assistant(text_of(pair[1], f"history[{index}][1]"))]
    return [*made, user(words)]


def with_system(row: Row, messages: list[Turn]) -> list[Turn]:
    """The messages behind the row's system column, unless they bring their own."""
    key = "system" if row.get("system") is not None else "system_prompt"
    if row.get(key) is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": text_of(row[key], key)}, *messages]


def with_sides(row: Row) -> Row:
    """A pair as OpenAI's API writes it (`input`, `preferred_output`, `non_preferred_output`) under the names in use here; others as they are."""
    asked_ = row.get("input")
    if not isinstance(asked_, Mapping) or "preferred_output" not in row:
        return row
    rest = {key: value for key, value in row.items() if key != "input"}
    rest |= {"chosen": rest.pop("preferred_output"), "rejected": rest.pop("non_preferred_output", None)}
    return {"prompt": asked_.get("messages"), "tools": asked_.get("tools"), **rest}


def preference_sides(row: Row) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """Prompt, chosen, rejected; a prompt that both sides repeat, or only they have, is taken out of them. Raises Refused."""
    chosen, rejected_ = (_answers(row[side], side) for side in ("chosen", "rejected"))
    prompt = _explicit_prompt(row)
    if prompt and chosen[: len(prompt)] == prompt == rejected_[: len(prompt)]:
        chosen, rejected_ = chosen[len(prompt) :], rejected_[len(prompt) :]
    elif chosen[0]["role"] != "assistant":
        shared = _num_shared(chosen, rejected_)
        prompt, chosen, rejected_ = chosen[:shared], chosen[shared:], rejected_[shared:]
    if not prompt:
        raise refuse(Reason.MISSING_PROMPT, "prompt", sorted(map(str, row)))
    if not chosen or not rejected_:
        raise refuse(Reason.NO_FINAL_ASSISTANT, "rejected" if chosen else "chosen", prompt[-1]["content"])
    return prompt, chosen, rejected_


def _explicit_prompt(row: Row) -> list[Turn]:
    """The prompt of a preference row: text or messages, under any of the names in use; [] when it is implicit."""
    for key in ("prompt", "conversations", "messages"):
        if isinstance(row.get(key), list) and row[key]:
            return turns(row[key], key)
    key = next((key for key in ("prompt", "question", "instruction") if row.get(key) is not None), None)
    if key == "instruction":
        return alpaca_turns(row)
    return [user(text_of(row[key], key))] if key else []


def _answers(value: Any, side: str) -> list[Turn]:
    """The turns of one side: a string, one message, messages, or a conversation written into one string."""
    if isinstance(value, Mapping):
        return turns([value], side)
    if isinstance(value, list):
        return turns(value, side)
    text = text_of(value, side)
    if not HUMAN_ASSISTANT.match(text):
        return [assistant(text)]
    parts = HUMAN_ASSISTANT.split(text)[1:]
    roles = {"Human": user, "Assistant": assistant}
    return [roles[who](said) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _num_shared(chosen: list[Turn], rejected_: list[Turn]) -> int:
    """How many first turns both sides share, leaving an answer to each: the implicit prompt."""
    limit = min(len(chosen), len(rejected_)) - 1
    return next((i for i in range(limit) if chosen[i] != rejected_[i]), limit)


def verified_answer(row: Row) -> str:
    """What an answer is checked against, as text. Raises Refused."""
    path = next(key for key in ANSWERS if row.get(key) is not None)
    value = row[path]
    if path == "reward_model" and isinstance(value, Mapping):
        path, value = f"{path}.ground_truth", value.get("ground_truth")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return text_of(value, path)


def judged_steps(row: Row) -> tuple[list[str], list[bool]]:
    """The steps of a solution and whether each is right, as they are in the row: their number is checked later. Raises Refused."""
    path = next(key for key in STEPS if row.get(key) is not None)
    for key in (path, "labels"):
        if not isinstance(row[key], list):
            raise refuse(Reason.WRONG_TYPE, key, row[key])
    for place, label in enumerate(row["labels"]):
        if not isinstance(label, bool):
            raise refuse(Reason.WRONG_TYPE, f"labels[{place}]", label)
    return [text_of(step, f"{path}[{place}]") for place, step in enumerate(row[path])], list(row["labels"])
