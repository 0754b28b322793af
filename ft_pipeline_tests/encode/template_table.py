"""`python -m ft_pipeline_tests.encode.template_table`: every chat template that TRL ships, our loss mask beside TRL's, as docs/templates.md."""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ft_pipeline.encode.chat import TODAY
from ft_pipeline.encode.template import Rejected, Template

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
FOLDER = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
NAMES = sorted(p.stem for p in FOLDER.glob("*.jinja") if not p.stem.endswith("_training"))
BLOCKS = ("idefics3", "llava_next", "smolvlm")
"""They take content as a list of parts only; TRL makes such a list for a vision processor (prepare_multimodal_messages)."""
SPECIAL = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]?>|<[a-z_]+\|>|\[gMASK\]|<sop>|</?(?:think|tool_call|tool_response|end_of_turn|start_of_turn|end_of_utterance|s)>|\[/?INST\]"
)


def _said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = {"type": "function", "function": {"name": "find", "arguments": {"name": "zip"}}}
NAME = {"type": "object", "properties": {"name": {"type": "string", "description": "what"}}, "required": ["name"]}
TOOLS = [{"type": "function", "function": {"name": "find", "description": "finds it", "parameters": NAME}}]
ASK, ANSWER = _said("user", "which module?"), _said("assistant", "it is zipfile")
CASES: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [ASK, ANSWER]},
    "two turns": {"messages": [ASK, ANSWER, _said("user", "again?"), _said("assistant", "I said zipfile")]},
    "system": {"messages": [_said("system", "be brief"), ASK, ANSWER]},
    "tool call": {
        "messages": [ASK, _said("assistant", "", tool_calls=[CALL]), _said("tool", "zipfile", name="find"), ANSWER],
        "tools": TOOLS,
    },
    "unicode": {"messages": [_said("user", "\u00fc \u6f22?"), _said("assistant", "\u00fc\u6f22 \U0001f600")]},
    "newline": {"messages": [ASK, _said("assistant", "\n\nit is zipfile\n")]},
    "reasoning": {"messages": [ASK, _said("assistant", "it is zipfile", reasoning_content="a hard one")]},
}
EQUAL, CANNOT, REFUSED, TEXT, LETTER = "equal", "TRL cannot", "refused", "other text", "whole letter"
CHAPTERS = {
    EQUAL: "token ids and mask are TRL's (`SFTTrainer`, `assistant_only_loss=True`)",
    CANNOT: "TRL raises or masks nothing; we train the row",
    REFUSED: "we reject the row with a typed reason (which, below), whatever TRL does",
    LETTER: "TRL leaves out the last bytes of a letter of several tokens that ends a span; we train it whole",
    TEXT: "TRL trains on another text than the model sees in production (why, below)",
}
WHY = {
    (
        "deepseek_r1_distill",
        "tool call",
    ): "TRL's text has lost the tool call: the template renders one only beside `content: null`",
    ("gptoss", "reasoning"): "the template calls it `thinking`; TRL's text has lost the reasoning",
    ("lfm2_2_5", "reasoning"): "the template calls it `thinking`; TRL's text has lost the reasoning",
    **{
        (name, "two turns"): "the template takes `<think>` out of earlier turns: they are context, the last is trained"
        for name in ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")
    },
}
"""Why TRL's text is another one."""


@dataclass(frozen=True)
class Cell:
    """One template on one case."""

    outcome: str
    reason: str = ""
    """Of a refusal."""
    ends: bool | None = None
    """Our stop tokens are trained; None when nothing is."""


@functools.cache
def tokenizer_of(name: str) -> Any:
    """A byte-level BPE of about 400 tokens with the special tokens that the template writes, and the template."""
    from transformers import PreTrainedTokenizerFast

    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    special = sorted({"<s>", "</s>", "<pad>", *SPECIAL.findall(text)})
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300 + len(special), special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(["\n\nit is zipfile\n", "assistant\n\nuser\n"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = text
    return fast


@functools.cache
def template_of(name: str) -> Template:
    """Ours."""
    return Template(tokenizer_of(name), "assistant")


def ours(name: str, case: str) -> tuple[list[int], list[int]] | Rejected:
    """Ids and mask, as encode makes them."""
    rendered = template_of(name).render("chat", CASES[case])
    if isinstance(rendered, Rejected):
        return rendered
    row = template_of(name).encode([rendered])[0]
    return row.ids, row.mask.astype(int).tolist()


def theirs(name: str, case: str) -> tuple[list[int], list[int]] | None:
    """Ids and mask as `SFTTrainer._prepare_dataset` makes them (TRL 1.16, sft_trainer.py 941 and 1370-1392); None when it cannot."""
    from jinja2.exceptions import TemplateError
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers
    from trl.data_utils import _tokenize, prepare_multimodal_messages

    tokenizer, row = tokenizer_of(name), CASES[case]
    messages = prepare_multimodal_messages(row["messages"]) if name in BLOCKS else row["messages"]
    try:
        marked = has_generation_markers(tokenizer.chat_template)
        found = _tokenize(
            tokenizer, messages, chat_template=None if marked else get_training_chat_template(tokenizer),
            tools=row.get("tools"), return_assistant_tokens_mask=True, strftime_now=TODAY.strftime,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError):
        return None
    return (found["input_ids"], found["assistant_masks"]) if 1 in found["assistant_masks"] else None


def compared(name: str, case: str) -> Cell:
    """What becomes of the case under both."""
    mine, other = ours(name, case), theirs(name, case)
    if isinstance(mine, Rejected):
        return Cell(REFUSED, mine.reason)
    ends = _ends(tokenizer_of(name), mine)
    if other is None:
        return Cell(CANNOT, ends=ends)
    if mine[0] != other[0]:
        return Cell(TEXT, ends=ends)
    return Cell(EQUAL if mine[1] == other[1] else _by_letters(tokenizer_of(name), mine, other[1]), ends=ends)


def page() -> str:
    """The whole of docs/templates.md."""
    from importlib.metadata import version

    cells = {name: {case: compared(name, case) for case in CASES} for name in NAMES}
    head = "| template | road | " + " | ".join(CASES) + " | end of turn |"
    lines = [head, "|" + "---|" * (len(CASES) + 3)]
    for name, row in cells.items():
        ends = [c.ends for c in row.values() if c.ends is not None]
        trained = "trained" if all(ends) else f"in {sum(ends)} of {len(ends)}"
        lines.append(
            f"| {name} | {template_of(name).road} | {' | '.join(c.outcome for c in row.values())} | {trained} |"
        )
    count = sum(c.outcome in (EQUAL, LETTER) for row in cells.values() for c in row.values())
    refusals = [
        f"- {n}, {case}: `{c.reason}`" for n, row in cells.items() for case, c in row.items() if c.outcome == REFUSED
    ]
    return "\n".join([
        "# Chat templates: our loss mask beside TRL's", "",
        f"All {len(NAMES)} templates that TRL {version('trl')} ships, {len(CASES)} conversations each, on a tiny byte-level tokenizer "
        "with the special tokens of the template. Made by `python -m ft_pipeline_tests.encode.template_table`; "
        "`test_trl_masks.py` holds it.", "",
        *(f"- **{word}**: {meaning}" for word, meaning in CHAPTERS.items()), "",
        f"{count} of {len(NAMES) * len(CASES)} are TRL's own. Roads: `generation_markers` in the template, TRL's `training_template` "
        "where it renders the same text (or adds only the stop token that glm4moe leaves to the next message), `text_prefixes`. "
        f"The date that a template writes is {TODAY} for both.", "", *lines, "",
        "## Other text", "", *(f"- {name}, {case}: {why}" for (name, case), why in sorted(WHY.items())), "",
        "## Refused", "", *refusals, "",
    ])  # fmt: skip


def _ends(tokenizer: Any, row: tuple[list[int], list[int]]) -> bool:
    """Seen in the tokens alone: every run of trained ones holds a special token at its end, white space aside."""
    special, runs = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}, []
    for token, on, before in zip(*row, [0, *row[1]], strict=False):
        if on:
            runs = [*runs, [token]] if not before else [*runs[:-1], [*runs[-1], token]]
    solid = [[t for t in run if tokenizer.decode([t]).strip()] for run in runs]
    return all(run and run[-1] in special for run in solid)


def _by_letters(tokenizer: Any, mine: tuple[list[int], list[int]], other: list[int]) -> str:
    """LETTER when all that we train and TRL does not are bytes that go on a letter, after one that TRL trains."""
    added = [n for n, (a, b) in enumerate(zip(mine[1], other, strict=True)) if a and not b]
    missing = any(b and not a for a, b in zip(mine[1], other, strict=True))
    parts = all("\ufffd" in tokenizer.decode([mine[0][n]]) for n in added)
    return LETTER if parts and not missing else "OTHER MASK"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
