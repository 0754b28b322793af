"""The HTTP side over an engine of words: OpenAI's shapes, its official client, its errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import openai
import pytest
import uvicorn

from ft_pipeline.errors import IntegrityError, NotFoundError
from ft_pipeline.serve.app import build_app
from ft_pipeline.serve.engine import Answer, BadRequest, Generation, Piece, Served


class Echo:
    """Answers with the last message, word by word."""

    asked: Generation

    def models(self) -> list[Served]:
        return [
            Served(id="acme/router@3", aliases=("acme/router", "acme/router:production"), stage="production",
                   base_digest="b" * 64, adapter_digest="a" * 64, created=1_700_000_000, owned_by="acme"),
        ]  # fmt: skip

    def resolve(self, name: str) -> Served:
        served = self.models()[0]
        if name not in (served.id, *served.aliases):
            raise NotFoundError(f"the model {name!r} does not answer")
        return served

    def answer(self, request: Generation) -> Answer:
        served = self.resolve(request.model)
        self.asked = request
        text = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
        if text == "long":
            raise BadRequest("too long", param="messages", code="context_length_exceeded")
        return Answer(served=served, pieces=self._pieces(text))

    def counters(self) -> dict[str, float]:
        return {"ft_batches_total": 7}

    def _pieces(self, text: str) -> Iterator[Piece]:
        for word in text.split():
            if word == "break":
                raise IntegrityError("a file was changed")
            yield Piece(text=word + " ")
        yield Piece(text="", finish="stop", prompt_tokens=5, completion_tokens=len(text.split()))


@pytest.fixture(scope="module")
def engine() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def client(engine) -> Iterator[openai.OpenAI]:
    server = uvicorn.Server(uvicorn.Config(build_app(engine), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    server.should_exit = True
    thread.join()


def say(text: str) -> dict:
    return {"model": "acme/router", "messages": [{"role": "user", "content": text}]}


def test_a_whole_answer(client):
    answer = client.chat.completions.create(**say("hello there"))
    assert answer.choices[0].message.content == "hello there "
    assert (answer.choices[0].finish_reason, answer.usage.total_tokens) == ("stop", 7)


def test_a_streamed_answer_with_usage(client):
    chunks = list(client.chat.completions.create(**say("one two"), stream=True, stream_options={"include_usage": True}))
    assert [c.choices[0].delta.content for c in chunks[1:3]] == ["one ", "two "]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 2


def test_text_completions(client):
    assert client.completions.create(model="acme/router@3", prompt="go on").choices[0].text == "go on "
    parts = list(client.completions.create(model="acme/router@3", prompt="go on", stream=True))
    assert "".join(p.choices[0].text for p in parts) == "go on "


def test_what_is_asked_arrives(client, engine):
    client.chat.completions.create(
        **say("hi"), max_completion_tokens=9, temperature=0.5, top_p=0.9, seed=4, stop=["x"], user="me", n=1
    )
    asked = engine.asked
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.seed, asked.stop) == (9, 0.5, 0.9, 4, ("x",))
    client.chat.completions.create(**say("hi"))
    assert (engine.asked.temperature, engine.asked.stop) == (0.0, ())


def test_content_parts_become_one_text(client):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert client.chat.completions.create(**say(parts)).choices[0].message.content == "a b "


def test_models_are_listed_and_found_by_every_name(client):
    assert [m.id for m in client.models.list()] == ["acme/router@3", "acme/router"]
    for name in ("acme/router", "acme/router@3", "acme/router:production"):
        found = client.models.retrieve(name)
        assert (found.owned_by, found.platform["version"]) == ("acme", "acme/router@3")


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="acme/nobody", messages=[{"role": "user", "content": "x"}])
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("acme/nobody")


@pytest.mark.parametrize("wrong", [
    {"temperature": 9}, {"max_tokens": 0}, {"n": 2}, {"messages": []}, {"logprobs": True}, {"presence_penalty": 1},
    {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"stop": [""]}, {"extra_body": {"top_k": 3}},
    {"messages": [{"role": "robot", "content": "x"}]}, {"response_format": {"type": "json_object"}},
])  # fmt: skip
def test_what_cannot_be_honoured_is_400_and_named(client, wrong):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**(say("x") | wrong))
    names = wrong.get("extra_body", wrong)
    assert refused.value.param.split(".")[0] in names
    assert refused.value.type == "invalid_request_error"


def test_too_long_is_400_with_openais_code(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**say("long"))
    assert refused.value.code == "context_length_exceeded"


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(client):
    with pytest.raises(openai.APIError, match="a file was changed"):
        list(client.chat.completions.create(**say("fine so far break now"), stream=True))


def test_an_unknown_route_has_openais_shape(client):
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client.embeddings.create(model="acme/router", input="x")


def test_metrics_count(client):
    text = httpx.get(str(client.base_url).replace("/v1/", "/metrics"), trust_env=False).text
    assert 'ft_requests_total{model="acme/router"}' in text
    assert "ft_batches_total 7" in text
