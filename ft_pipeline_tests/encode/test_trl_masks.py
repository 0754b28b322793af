"""Our loss mask is TRL's for every template that both can do; where it is not, the reason is known and written in docs/templates.md."""

from __future__ import annotations

import pytest

from ft_pipeline_tests.encode import template_table as table
from ft_pipeline_tests.encode.template_table import CANNOT, CASES, EQUAL, LETTER, NAMES, REFUSED, TEXT, WHY

NO_TOOLS = [
    "cohere",
    "cohere2",
    "gemma",
    "gemma3",
    "idefics3",
    "lfm2",
    "llama3",
    "llava_next",
    "phi3",
    "phi3_5",
    "qwen2_5_vl",
    "smolvlm",
]
"""They leave tool calls out of the text or raise."""
RAISES = ("cohere", "cohere2", "gemma", "gemma3", "idefics3", "llava_next", "smolvlm")
REFUSALS = {
    **{(name, "tool call"): "tool_call_not_rendered" for name in NO_TOOLS},
    **{(name, "tool call"): "template_error" for name in RAISES},
    ("gemma", "system"): "template_error",
    ("qwen3", "tool call"): "assistant_spans_not_found",
}
TRL_HAS_NO_TEMPLATE = ["gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "llama3_1", "llama3_2"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_the_mask_is_that_of_trl_or_the_reason_is_known(name, case):
    found = table.compared(name, case)
    if (name, case) in REFUSALS:
        assert (found.outcome, found.reason) == (REFUSED, REFUSALS[name, case])
    elif name in TRL_HAS_NO_TEMPLATE:
        assert found.outcome == CANNOT
    elif (name, case) in WHY:
        assert found.outcome == TEXT
    else:
        assert found.outcome == (LETTER if (name, case) == ("diffusion_gemma", "unicode") else EQUAL)
    assert found.ends is not False, "the model would not learn to stop"


def test_the_page_says_what_is_so():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), (
        "run python -m ft_pipeline_tests.encode.template_table"
    )


def test_trl_would_train_an_empty_turn_where_we_refuse():
    ids, mask = table.theirs("llama3", "tool call")
    text = table.tokenizer_of("llama3").decode([i for i, on in zip(ids, mask, strict=True) if on])
    assert text == "<|eot_id|>it is zipfile<|eot_id|>"
