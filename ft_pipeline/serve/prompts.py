"""The tokens of a request: chat messages through the model's own template, as in training; nobody speaks as another role.

As in training means: tool arguments as an object though clients send text, and the date that training wrote where a template asks
for one. parity.py holds it against real rows when a version is deployed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ft_pipeline.encode.artifact import prompt_text
from ft_pipeline.serve.engine import BadRequest, Generation


def prompt_tokens(tokenizer: Any, request: Generation) -> list[int]:
    """The tokens of the prompt: chat messages through the model's own template. Raises BadRequest."""
    if isinstance(request.prompt, str):
        tokens = tokenizer(request.prompt)["input_ids"]
        if not tokens:
            raise BadRequest("the prompt is empty", param="prompt")
        return tokens
    _refuse_control_tokens(tokenizer, request.prompt)
    try:
        text = prompt_text(tokenizer, request.prompt)
    except Exception as error:
        raise BadRequest(f"the chat template refused the messages: {error}", param="messages") from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _refuse_control_tokens(tokenizer: Any, messages: Sequence[Any]) -> None:
    """A user who writes the template's own markers would speak as another role."""
    for message in messages:
        for token in tokenizer.all_special_tokens:
            if token in str(message.get("content") or ""):
                raise BadRequest(
                    f"a message holds the control token {token!r}",
                    param="messages",
                    why="It would end the turn and let the text speak as another role.",
                    cure="remove it from the text",
                )
