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
from ft_pipeline.serve.engine import Answer, BadRequest, Busy, Generation, Piece, Served, TokenLogprob
from ft_pipeline.serve.intake import Intake
from ft_pipeline.serve.limits import Limits


class Echo:
    """Answers with the last message, word by word."""

    asked: Generation
    broken = ""

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
        if text == "later":
            raise Busy(256, retry_after_seconds=3)
        if text == "long":
            raise BadRequest("too long", param="messages", code="context_length_exceeded")
        return Answer(served=served, pieces=self._pieces(text))

    def counters(self) -> dict[str, float]:
        return {"ft_batches_total": 7}

    def trouble(self) -> str:
        return self.broken

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
    assert all(c.usage is None for c in chunks[:-1])


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
    {"temperature": 9}, {"max_tokens": 0}, {"n": 2}, {"messages": []}, {"top_logprobs": 3}, {"presence_penalty": 1},
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


def page(client, path: str) -> httpx.Response:
    return httpx.get(str(client.base_url).replace("/v1/", path), trust_env=False)


def test_metrics_count_by_tenant_version_and_outcome(client):
    client.chat.completions.create(**say("one two three"))
    text = page(client, "/metrics").text
    who = 'tenant="acme",model="acme/router@3"'
    assert f'ft_requests_total{{{who},outcome="stop"}}' in text
    assert f"ft_completion_tokens_total{{{who}}}" in text
    for family in ("ft_request_seconds", "ft_first_token_seconds", "ft_queue_seconds"):
        assert f"# TYPE {family} histogram" in text
        count = next(line for line in text.splitlines() if line.startswith(f"{family}_count{{{who}}}")).split()[-1]
        assert f'{family}_bucket{{{who},le="+Inf"}} {count}' in text
    assert "# TYPE ft_batches_total counter\nft_batches_total 7" in text


def test_health_says_when_nothing_can_answer(client, engine):
    assert (page(client, "/health").status_code, page(client, "/healthz").json()["status"]) == (200, "ok")
    engine.broken = "the decoding thread has ended"
    try:
        assert page(client, "/health").status_code == 503
        assert "thread has ended" in page(client, "/health").text
    finally:
        engine.broken = ""


def test_a_full_queue_is_429_and_says_when_to_come_back(client):
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**say("later"))
    assert (refused.value.response.headers["retry-after"], refused.value.code) == ("3", "queue_full")


def test_a_body_that_is_too_large_is_413(client):
    with pytest.raises(openai.APIStatusError, match="larger than") as refused:
        client.chat.completions.create(**say("x" * (4 * 2**20)))
    assert refused.value.status_code == 413

    def parts():
        for _ in range(80):
            yield b"x" * 2**16

    url = str(client.base_url) + "chat/completions"
    assert httpx.post(url, content=parts(), trust_env=False).status_code == 413


def test_more_requests_than_may_wait_are_refused_before_they_cost_a_thread():
    import anyio

    async def slow(scope, receive, send):
        await anyio.sleep(0.1)

    async def two() -> list[int]:
        gate = Intake(slow, limits=Limits(max_rows=1, max_waiting=0), refused=statuses.append)
        scope = {"type": "http", "method": "POST", "headers": [], "path": "/"}
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"{}"}

        async def send(message):
            sent.append(message)

        async with anyio.create_task_group() as group:
            group.start_soon(gate, scope, receive, send)
            await anyio.sleep(0.01)
            await gate(scope, receive, send)
        return [m["status"] for m in sent if "status" in m]

    statuses: list[int] = []
    assert anyio.run(two) == [429] == statuses


def test_json_mode_is_refused_with_a_reason_and_plain_text_is_not(client):
    with pytest.raises(openai.BadRequestError, match="constrained decoding"):
        client.chat.completions.create(**say("x"), response_format={"type": "json_object"})
    assert client.chat.completions.create(**say("x"), response_format={"type": "text"}).choices


def test_an_answer_names_the_weights_that_gave_it(client):
    assert client.chat.completions.create(**say("x")).system_fingerprint == "fp_" + "a" * 12


def test_logprobs_have_openais_shape(client, engine, monkeypatch):
    token = TokenLogprob(token="hi", logprob=-0.5, top=(TokenLogprob(token="hi", logprob=-0.5),))
    pieces = (Piece(text="hi", logprobs=(token,)), Piece(text="\ufffd", finish="stop", logprobs=(TokenLogprob(token="\ufffd", logprob=-2.0),)))  # fmt: skip
    monkeypatch.setattr(engine, "_pieces", lambda _: iter(pieces), raising=False)
    asked = say("x") | {"logprobs": True, "top_logprobs": 1}
    noted = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert engine.asked.logprobs == 1
    assert [(t.token, t.logprob, t.bytes) for t in noted] == [("hi", -0.5, [104, 105]), ("\ufffd", -2.0, None)]
    assert noted[0].top_logprobs[0].token == "hi"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert [t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content] == ["hi", "\ufffd"]
