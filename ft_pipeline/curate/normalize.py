"""Every layout that datasets come in becomes one of seven shapes: chat, completion, preference, kto, rlvr, stepwise, text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, Shape, rejected
from ft_pipeline.curate.layouts import (
    ANSWERS,
    CONVERSATIONS,
    PROMPT_COMPLETION,
    PROMPTS,
    STEPS,
    alpaca_turns,
    asked,
    asked_and_answered,
    completed,
    conversation_key,
    judged_steps,
    preference_sides,
    verified_answer,
    with_sides,
    with_system,
)
from ft_pipeline.curate.turns import Refused, Turn, is_turns, refuse, text_of, tools_of, turns

MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
"""Columns beside a conversation that hold what its text speaks of."""
Content = dict[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Normal:
    """A row in the one schema."""

    layout: str
    shape: Shape
    content: Content
    changes: tuple[Rejection, ...] = ()
    """What was altered beyond spelling, for the ledger."""


def normalize(row: Row, layout: str, mapping: Callable[[Row], Row | Rejection] | None = None) -> Normal | Rejection:
    """The row in the one schema, after its mapping (`mapping.open_mapping`).

    `auto` goes by the row's keys; any other layout takes what has that layout's keys, whatever further ones. Text is never stripped
    or re-encoded. Alpaca becomes chat: instruction, blank line, input are the user's turn. Messages as prompt/completion become
    chat with weight 0 on assistant turns of the prompt.
    """
    if mapping is not None:
        mapped = mapping(row)
        if isinstance(mapped, Rejection):
            return mapped
        row = mapped
    row = with_sides(row)
    found = layout_of(row)
    if layout not in ("auto", found):
        if not _fits(row, layout):
            return _unknown(row, found, layout)
        found = layout
    if found is None:
        return _unknown(row, found, layout)
    try:
        shape, content = _converted(row, found)
    except Refused as refused:
        return refused.rejection
    except RecursionError:
        return rejected(Reason.WRONG_TYPE, "", "nested deeper than can be followed")
    content, changes = _without_empty_system(content)
    return Normal(layout=found, shape=shape, content=content, changes=changes)


def layout_of(row: Row) -> str | None:
    """The layout that a row's keys speak of, the most telling first: a `text` column beside `instruction` is a rendering."""
    has = {key for key, value in row.items() if value is not None}
    if "chosen" in has and "rejected" in has:
        return "preference"
    if _is_stepwise(row, has):
        return "stepwise"
    if not has.isdisjoint(_TAGS) and _is_kto(row, has):
        return "kto"
    if not has.isdisjoint(ANSWERS) and _is_rlvr(row, has):
        return "rlvr"
    if "messages" in has:
        return "chat"
    if "conversations" in has or "conversation" in has:
        return "sharegpt"
    if "instruction" in has and "output" in has:
        return "alpaca"
    if asked_and_answered(row):
        return "prompt_completion"
    return "text" if "text" in has else None


_TAGS = frozenset({"label", "kto_tag"})
_COMPLETIONS = frozenset({"completion", "response", "output"})


def _is_stepwise(row: Row, has: set[str]) -> bool:
    """A question, the steps of one solution, and a list of what each is worth."""
    lists = any(isinstance(row.get(key), list) for key in STEPS)
    return lists and isinstance(row.get("labels"), list) and not has.isdisjoint(PROMPTS)


def _is_kto(row: Row, has: set[str]) -> bool:
    """A truth value beside one conversation. `label` is also what classes go by: then question and answer stay what they are."""
    if isinstance(row.get("kto_tag"), bool):
        return _answered_layout(row) is not None
    return isinstance(row.get("label"), bool) and (
        conversation_key(row) is not None or ("prompt" in has and ("completion" in has or "response" in has))
    )


def _is_rlvr(row: Row, has: set[str]) -> bool:
    """A prompt with something to check an answer against, and no answer to learn from."""
    if not has.isdisjoint(_COMPLETIONS):
        return False
    key = conversation_key(row) or ("prompt" if is_turns(row.get("prompt")) else None)
    if key is not None:
        return _ends_with_user(row[key])
    told = "ground_truth" in has or (
        isinstance(row.get("reward_model"), Mapping) and "ground_truth" in row["reward_model"]
    )
    return told and not has.isdisjoint(PROMPTS) and asked_and_answered(row) is None


def _ends_with_user(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role", last.get("from")) in ("user", "human")


def _fits(row: Row, layout: str) -> bool:
    has = {key for key, value in row.items() if value is not None}
    if layout == "kto":
        return not has.isdisjoint(_TAGS) and _answered_layout(row) is not None
    if layout == "rlvr":
        return not has.isdisjoint(ANSWERS) and (conversation_key(row) is not None or not has.isdisjoint(PROMPTS))
    return any(names <= has for names in _NEEDED[layout])


_NEEDED: Mapping[str, tuple[set[str], ...]] = {
    "chat": ({"messages"},),
    "sharegpt": ({"conversations"}, {"conversation"}),
    "alpaca": ({"instruction", "output"},),
    "prompt_completion": tuple(set(pair) for pair in PROMPT_COMPLETION),
    "preference": ({"chosen", "rejected"},),
    "stepwise": tuple({prompt, steps, "labels"} for prompt in PROMPTS for steps in STEPS),
    "text": ({"text"},),
}


def _answered_layout(row: Row) -> str | None:
    """The layout of a labelled row without its label."""
    if conversation_key(row) is not None:
        return "chat"
    return "alpaca" if _fits(row, "alpaca") else "prompt_completion" if asked_and_answered(row) else None


def _unknown(row: Row, found: str | None, layout: str) -> Rejection:
    keys = ", ".join(sorted(map(str, row)))
    said = f"keys {keys}" if found is None else f"{found}, not {layout}: keys {keys}"
    return rejected(Reason.UNKNOWN_LAYOUT, "", said)


def _converted(row: Row, layout: str) -> tuple[Shape, Content]:
    if (
        layout != "text"
        and not MEDIA.isdisjoint(row)
        and (media := next((k for k in row if k in MEDIA and row[k]), None))
    ):
        raise refuse(Reason.IMAGE, media, str(row[media]))
    shape, content = CONVERSIONS[layout](row)
    if shape not in ("text", "completion") and (tools := tools_of(row)):
        content["tools"] = tools
    return shape, content


def _chat(row: Row) -> tuple[Shape, Content]:
    return "chat", {"messages": with_system(row, turns(row["messages"], "messages"))}


def _sharegpt(row: Row) -> tuple[Shape, Content]:
    key = "conversations" if row.get("conversations") is not None else "conversation"
    return "chat", {"messages": with_system(row, turns(row[key], key))}


def _alpaca(row: Row) -> tuple[Shape, Content]:
    return "chat", {"messages": [*with_system(row, alpaca_turns(row)), *completed(row["output"], "output")]}


def _prompt_completion(row: Row) -> tuple[Shape, Content]:
    """Two texts stay texts; messages, a system text or tools need a chat template."""
    prompt, answer = asked_and_answered(row) or PROMPT_COMPLETION[0]
    told = row.get("system") or row.get("system_prompt") or tools_of(row)
    if not told and not is_turns(row[prompt]) and not is_turns(row[answer]):
        return "completion", {"prompt": text_of(row[prompt], prompt), "completion": text_of(row[answer], answer)}
    before = with_system(row, asked(row[prompt], prompt))
    before = [{**t, "weight": 0} if t["role"] == "assistant" else t for t in before]
    return "chat", {"messages": before + completed(row[answer], answer)}


def _preference(row: Row) -> tuple[Shape, Content]:
    prompt, chosen, rejected_ = preference_sides(row)
    return "preference", {"prompt": with_system(row, prompt), "chosen": chosen, "rejected": rejected_}


def _kto(row: Row) -> tuple[Shape, Content]:
    tag = "kto_tag" if row.get("kto_tag") is not None else "label"
    if not isinstance(row[tag], bool):
        raise refuse(Reason.WRONG_TYPE, tag, row[tag])
    prompt, completion = _labelled_turns(row)
    if not prompt:
        raise refuse(Reason.MISSING_PROMPT, "prompt", sorted(map(str, row)))
    return "kto", {"prompt": with_system(row, prompt), "completion": completion, "label": row[tag]}


def _labelled_turns(row: Row) -> tuple[list[Turn], list[Turn]]:
    """The turns before the answer that the label speaks of, and the answer."""
    if key := conversation_key(row):
        made = turns(row[key], key)
        return made[:-1], made[-1:]
    if _answered_layout(row) == "alpaca":
        return alpaca_turns(row), completed(row["output"], "output")
    prompt, answer = asked_and_answered(row) or PROMPT_COMPLETION[0]
    return asked(row[prompt], prompt), completed(row[answer], answer)


def _rlvr(row: Row) -> tuple[Shape, Content]:
    key = conversation_key(row) or next(key for key in PROMPTS if row.get(key) is not None)
    prompt = turns(row[key], key) if key in CONVERSATIONS else asked(row[key], key)
    return "rlvr", {"prompt": with_system(row, prompt), "answer": verified_answer(row)}


def _stepwise(row: Row) -> tuple[Shape, Content]:
    key = next(key for key in PROMPTS if row.get(key) is not None)
    steps, labels = judged_steps(row)
    return "stepwise", {"prompt": with_system(row, asked(row[key], key)), "steps": steps, "labels": labels}


def _text(row: Row) -> tuple[Shape, Content]:
    return "text", {"text": text_of(row["text"], "text")}


CONVERSIONS: Mapping[str, Callable[[Row], tuple[Shape, Content]]] = {
    "chat": _chat,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "kto": _kto,
    "rlvr": _rlvr,
    "stepwise": _stepwise,
    "text": _text,
}


def _without_empty_system(content: Content) -> tuple[Content, tuple[Rejection, ...]]:
    """Many exports write `system: ""` for no system turn; a turn that says nothing is left out and written down."""
    for key in ("messages", "prompt"):
        found = content.get(key)
        if (
            isinstance(found, list)
            and found[0]["role"] == "system"
            and len(found) > 1
            and not found[0]["content"].strip()
        ):
            kept = {**content, key: found[1:]}
            return kept, (rejected(Reason.EMPTY_SYSTEM, f"{key}[0].content", found[0]["content"]),)
    return content, ()
