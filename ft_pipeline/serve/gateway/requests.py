"""What of a request's body reaches vLLM: OpenAI's fields and a few of sampling. Everything else is refused, since vLLM would obey it.

vLLM 0.32 takes embeddings to unpickle (`prompt_embeds`), URLs to fetch (`image_url`), templates to run (`chat_template`), priorities,
cache salts and processor arguments from whoever asks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ft_pipeline.serve.gateway.authority import Caller, Refused
from ft_pipeline.serve.gateway.targets import Target

MOST_CHOICES = 8
_SAMPLING = {
    "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "logit_bias", "logprobs", "n", "seed", "stop", "stream", "stream_options", "user", "response_format", "metadata", "store",
    "service_tier",
}  # fmt: skip
FIELDS = {
    "/v1/chat/completions": _SAMPLING
    | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"},
    "/v1/completions": _SAMPLING | {"prompt", "suffix", "echo"},
}  # fmt: skip
_NOT_FOR_VLLM = {"metadata", "store", "service_tier", "user"}
"""OpenAI's bookkeeping: accepted because it changes no answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A body that was read and found good."""

    path: str
    body: dict[str, Any]
    model: str
    stream: bool
    with_usage: bool
    """The stream ends with a chunk of counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """A request, who asks, and what its name means for them now."""

    asked: Asked
    caller: Caller
    target: Target

    def for_vllm(self, base_name: str) -> bytes:
        """The body for a replica: its name for the weights, counts in every chunk, a cache of its own for each tenant."""
        body = {key: value for key, value in self.asked.body.items() if key not in _NOT_FOR_VLLM}
        # a shared prefix cache answers faster for what another tenant asked: that is a way to guess prompts
        body |= {"model": self.target.upstream or base_name, "cache_salt": f"tenant:{self.caller.tenant}"}
        if self.asked.stream:
            # in every chunk: a client that leaves has still used what it got
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return json.dumps(body).encode()


def read(path: str, raw: bytes) -> Asked:
    """The request of a body. Raises Refused (400)."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON", code="json_invalid") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body is not a JSON object", code="json_invalid")
    for name in sorted(set(body) - FIELDS[path]):
        raise Refused(
            400, f"{name[:100]}: the gateway does not know the field, and it may mean more to the server behind it",
            param=name[:100], code="extra_forbidden",
        )  # fmt: skip
    model, stream, options = body.get("model"), body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(model, str) or not model:
        raise Refused(400, "model: a name is missing", param="model", code="missing")
    if not isinstance(stream, bool):
        raise Refused(400, "stream: true or false", param="stream", code="bool_type")
    if not isinstance(options, dict) or set(options) - {"include_usage"} or (options and not stream):
        raise Refused(400, "stream_options: {include_usage: ...}, with stream: true", param="stream_options")
    _require_text(body)
    with_usage = options.get("include_usage") is True
    return Asked(path=path, body=body, model=model, stream=stream, with_usage=with_usage)


def _require_text(body: dict[str, Any]) -> None:
    """Messages and prompts are text: whatever else vLLM would fetch from where it is told to."""
    choices = body.get("n")
    if choices is not None and not (type(choices) is int and 1 <= choices <= MOST_CHOICES):
        raise Refused(400, f"n: 1 to {MOST_CHOICES}", param="n")
    for message in body["messages"] if isinstance(body.get("messages"), list) else []:
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else []:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise Refused(400, "messages: parts are of type text", param="messages", code="unsupported_part")
