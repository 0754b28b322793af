"""An endpoint over real HTTP: what passes is waited for, what does not is counted with its cause, and the key is in no file."""

from __future__ import annotations

import pytest

from ft_pipeline import settings
from ft_pipeline.errors import UserError
from ft_pipeline.judging.endpoint import Endpoint
from ft_pipeline.judging.forms import PAIR
from ft_pipeline.judging.judge import NoReply, PairJudge, PairRequest
from ft_pipeline.judging.opened import speaker_of
from ft_pipeline.recipe import Judge
from ft_pipeline_tests.judging.judges import serve

REQUEST = PairRequest(prompt="2 + 2?", first="4", second="5")
FIELDS = REQUEST.fields


def endpoint(url: str, **more) -> Endpoint:
    return Endpoint(base_url=url, model="m", wait=lambda _: None, **more)


def test_a_verdict_comes_back_with_its_words_and_tokens() -> None:
    with serve(lambda _n, _b: (200, "A is right. [[A]]")) as server:
        verdict = PairJudge(endpoint(server.url, key="s3cret", seed=5)).judge(REQUEST)
    assert (verdict.winner, verdict.raw, verdict.parsed_by) == ("first", "A is right. [[A]]", "last mark")
    assert verdict.usage == {"total_tokens": 7} and not verdict.error
    (sent,) = server.requests
    assert (sent["temperature"], sent["seed"], sent["model"]) == (0, 5, "m")
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


def test_busy_and_broken_servers_and_html_pages_are_asked_again() -> None:
    sequence = [(429, "slow down"), (503, "starting"), (200, {"html": "welcome"}), (200, "[[B]]")]
    with serve(lambda n, _b: sequence[n]) as server:
        reply = endpoint(server.url).say(PAIR, FIELDS)
    assert (reply.text, reply.attempts) == ("[[B]]", 4)


@pytest.mark.parametrize(
    ("answer", "cause", "calls"),
    [
        ((429, "no"), "busy", 2),
        ((500, "no"), "server", 2),
        ((200, {"choices": []}), "garbage", 2),
        ((200, {"choices": [{"message": {"content": None}}]}), "garbage", 2),
        ((401, "wrong key"), "refused", 1),
        ((400, "too long"), "refused", 1),
    ],
)
def test_a_failure_that_stays_says_its_cause(answer, cause, calls) -> None:
    with serve(lambda _n, _b: answer) as server, pytest.raises(NoReply) as failure:
        endpoint(server.url, attempts=2).say(PAIR, FIELDS)
    assert failure.value.cause == cause and len(server.requests) == calls


def test_silence_ends_at_the_timeout() -> None:
    with serve(lambda _n, _b: (200, "[[A]]"), slow_seconds=0.5) as server, pytest.raises(NoReply) as failure:
        endpoint(server.url, attempts=2, timeout_seconds=0.05).say(PAIR, FIELDS)
    assert failure.value.cause == "timeout" and "0.05 s, 2 attempts" in str(failure.value)


def test_nobody_at_the_address() -> None:
    with pytest.raises(NoReply, match="connection"):
        endpoint("http://127.0.0.1:9/v1", attempts=1).say(PAIR, FIELDS)


def test_waits_grow_and_follow_the_server(monkeypatch) -> None:
    waits: list[float] = []
    with serve(lambda n, _b: (429 if n == 0 else 500, "no")) as server, pytest.raises(NoReply):
        Endpoint(base_url=server.url, model="m", attempts=4, wait=waits.append).say(PAIR, FIELDS)
    assert waits[0] == 0.0  # Retry-After of the 429
    assert 1.0 <= waits[1] <= 1.5 and 2.0 <= waits[2] <= 3.0


def test_the_key_is_read_where_the_environment_is_read(monkeypatch) -> None:
    judge = Judge(kind="endpoint", model="m", base_url="http://x/v1", key_variable="JUDGE_KEY_OF_TEST")
    with pytest.raises(UserError, match="JUDGE_KEY_OF_TEST is not set"):
        speaker_of(judge)
    monkeypatch.setenv("JUDGE_KEY_OF_TEST", "s3cret")
    assert settings.secret("JUDGE_KEY_OF_TEST") == "s3cret"
    assert "s3cret" not in repr(speaker_of(judge))
