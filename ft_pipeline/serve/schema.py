"""The bodies of OpenAI's chat and completions requests: what is honoured, and what is refused because it would be ignored."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ft_pipeline.serve.engine import BadRequest, Generation

Zero = Annotated[float, Field(ge=0, le=0)]
Neutral = Literal[False] | None


class StreamOptions(BaseModel):
    """`include_usage` asks for a last chunk with the counts."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class ResponseFormat(BaseModel):
    """Only text can be promised."""

    model_config = ConfigDict(extra="allow")
    type: str


class Sampling(BaseModel):
    """What both kinds of request share. A field that would change the answer and is not supported is refused, never ignored."""

    model_config = ConfigDict(extra="forbid")
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    def _generation(self, prompt: Any, max_tokens: int | None) -> Generation:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 4 or not all(stop):
            raise BadRequest("stop takes one to four texts, none of them empty", param="stop")
        if self.stream_options and not self.stream:
            raise BadRequest("stream_options needs stream: true", param="stream_options")
        if self.response_format and self.response_format.type != "text":
            raise BadRequest(
                f"response_format {self.response_format.type!r} is not supported by this server",
                param="response_format",
                why="JSON mode promises valid JSON; that takes constrained decoding, which none of the installed libraries has.",
                cure="ask for JSON in the messages and check the answer, or serve the model with vLLM",
            )
        return Generation(
            model=self.model,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(stop),
        )


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; text only."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it: one text, and `system` for `developer`, which they do not know."""
        content = self.content if not isinstance(self.content, list) else "".join(p.text for p in self.content)
        role = "system" if self.role == "developer" else self.role
        rest = {k: v for k, v in self.model_dump(exclude={"role", "content", "refusal"}).items() if v is not None}
        return {"role": role, "content": content, **rest}


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    def generation(self) -> Generation:
        """The request for the engine."""
        messages = tuple(m.for_template() for m in self.messages)
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        asked = self._generation(messages, self.max_completion_tokens or self.max_tokens)
        return replace(asked, logprobs=self.top_logprobs or 0) if self.logprobs else asked


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: str
    echo: Neutral = None
    logprobs: None = None
    best_of: Literal[1] | None = None

    def generation(self) -> Generation:
        """The request for the engine."""
        return self._generation(self.prompt, self.max_tokens)
