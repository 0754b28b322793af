"""Chat at the platform's base_url: by key and tenant, streamed through, counted, told plainly when nobody answers."""

from __future__ import annotations

import dataclasses
import time
from contextlib import contextmanager

import openai
import pytest

from ft_pipeline.errors import UserError
from ft_pipeline.serve.app import build_app
from ft_pipeline.serve.engine import Served
from ft_pipeline.web.app import build_api
from ft_pipeline.web.platform import open_platform
from ft_pipeline_tests.serve.test_app import Echo
from ft_pipeline_tests.store.test_catalog import staged
from ft_pipeline_tests.web.running import answering

MODEL = "acme/router@1"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}]}


class Words(Echo):
    def models(self) -> list[Served]:
        return [dataclasses.replace(super().models()[0], id=MODEL)]


@pytest.fixture(scope="module")
def upstream():
    with answering(build_app(Words())) as url:
        yield url


@pytest.fixture
def platform(home, upstream):
    """One with a model of acme in production and one of other, in front of an inference server that has acme's."""
    opened = open_platform(dataclasses.replace(home, serve_port=int(upstream.rpartition(":")[2])))
    staged(opened.catalog, 1, tenant="acme")
    staged(opened.catalog, 2, tenant="other")
    staged(opened.catalog, 3, tenant="acme", name="draft", to="dev")
    yield opened
    opened.records.close()
    opened.catalog.close()


@pytest.fixture
def official(platform, key):
    """Makes official clients of the API on a port."""
    with answering(build_api(platform)) as url:
        yield lambda *words: openai.OpenAI(base_url=f"{url}/v1", api_key=key(*words), max_retries=0)


def used(platform, tenant: str = "acme"):
    rows = platform.records.answered(tenant=tenant, first_day="2000-01-01", last_day="2999-01-01")
    return [(row.model, row.requests, row.prompt_tokens, row.completion_tokens) for row in rows]


def until_used(platform, *, requests: int):
    """A stream is counted when it has ended, which its reader may see a moment earlier."""
    until = time.monotonic() + 20
    while sum(row[1] for row in used(platform)) < requests:
        assert time.monotonic() < until
        time.sleep(0.02)
    return used(platform)


def test_an_answer_comes_whole_under_any_name_of_the_version_and_is_counted(official, platform):
    client = official("acme", ["infer"])
    for name in (MODEL, "acme/router", "acme/router:production"):
        answer = client.chat.completions.create(**{**ASKED, "model": name})
        assert (answer.choices[0].message.content, answer.model) == ("one two three ", name)
    assert client.completions.create(model=MODEL, prompt="four five").choices[0].text == "four five "
    assert used(platform) == [(MODEL, 4, 20, 11)]


def test_a_stream_comes_piece_by_piece_and_shows_counts_to_who_asked(official, platform):
    client = official("acme", ["infer"])
    plain = list(client.chat.completions.create(**ASKED, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in plain) == "one two three "
    counted = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None for chunk in plain)
    assert counted[-1].usage.completion_tokens == 3
    assert until_used(platform, requests=2) == [(MODEL, 2, 10, 6)]


def test_what_is_not_the_tenants_or_may_not_answer_is_the_same_404(official):
    client = official("acme", ["infer"])
    for name in ("other/router", "other/router@1", "acme/router@2", "acme/draft@1", "x", "../acme/router"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(**{**ASKED, "model": name})
        assert refused.value.code == "model_not_found"
        assert refused.value.message.count(name) == 1 and "is in dev" not in refused.value.message


def test_only_a_key_for_inference_asks(official):
    with pytest.raises(openai.PermissionDeniedError):
        official("acme", ["submit", "audit", "approve"]).chat.completions.create(**ASKED)


def test_what_the_server_refuses_is_refused(official, platform):
    client = official("acme", ["infer"])
    said = lambda text: {**ASKED, "messages": [{"role": "user", "content": text}]}  # noqa: E731
    with pytest.raises(openai.BadRequestError, match="too long"):
        client.chat.completions.create(**said("long"))
    with pytest.raises(openai.RateLimitError) as busy:
        client.chat.completions.create(**said("later"))
    assert busy.value.response.headers["retry-after"] == "3"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ASKED, presence_penalty=1)
    with pytest.raises(openai.APIError, match="a file was changed"):
        list(client.chat.completions.create(**said("one break"), stream=True))
    assert until_used(platform, requests=1) == [(MODEL, 1, 0, 2)]


def test_without_a_server_the_answer_says_who_starts_one(home, key, platform):
    nobody = dataclasses.replace(platform, settings=dataclasses.replace(platform.settings, serve_port=1))
    with answering(build_api(nobody)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key("acme", ["infer"]), max_retries=0)
        with pytest.raises(openai.InternalServerError, match="ft-pipeline serve") as refused:
            client.chat.completions.create(**ASKED)
    assert (refused.value.status_code, refused.value.code) == (503, "no_server")
    assert refused.value.response.headers["retry-after"] == "5"


def test_a_server_that_does_not_start_is_our_trouble_and_tried_again(home, key, platform, monkeypatch):
    tried = []

    @contextmanager
    def no_room(_settings, port):
        tried.append(port)
        raise UserError("the server did not start: no memory", cure="its whole log is ...")
        yield

    monkeypatch.setattr("ft_pipeline.web.local_server.running_server", no_room)
    with answering(build_api(platform, with_server=True)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key("acme", ["infer"]), max_retries=0)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="no memory") as refused:
                client.chat.completions.create(**ASKED)
            assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "30")
    assert len(tried) == 2


def test_a_server_that_was_started_is_stopped_with_the_api(home, key, platform, upstream, monkeypatch):
    acts = []

    @contextmanager
    def started(_settings, _port):
        acts.append("started")
        yield upstream
        acts.append("stopped")

    monkeypatch.setattr("ft_pipeline.web.local_server.running_server", started)
    with answering(build_api(platform, with_server=True)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key("acme", ["infer"]), max_retries=0)
        for _ in range(2):
            assert client.chat.completions.create(**ASKED).usage.completion_tokens == 3
        assert acts == ["started"]
    assert acts == ["started", "stopped"]
