"""The platform in front of the vLLM fleet: the gateway in the API's process, with the platform's keys, rates and usage."""

from __future__ import annotations

import dataclasses
import json

import openai
import pytest

from ft_pipeline.store.platform.open import open_records
from ft_pipeline.web.app import build_api
from ft_pipeline.web.platform import Platform
from ft_pipeline_tests.serve.fleet_of import LINE, TestFleet
from ft_pipeline_tests.web.running import answering

ASKED = {"model": LINE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


@pytest.fixture
def fleet(home, store, catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("FT_RECIPES", str(home.home / "recipes"))
    made = TestFleet(home, store, catalog, tmp_path)
    made.version(1)
    made.pool()
    yield made
    made.close()


@pytest.fixture
def platform(home, store, catalog, fleet, tmp_path):
    file = tmp_path / "fleet.yaml"
    pools = [{"name": p.name, "base": p.base, "replicas": list(p.replicas)} for p in fleet.pools]
    file.write_text(json.dumps({"pools": pools}))
    opened = Platform(dataclasses.replace(home, fleet=file), store, catalog, open_records(home))
    yield opened
    opened.records.close()


def test_the_fleet_answers_for_keys_with_the_role_and_is_metered(platform, key):
    keys = {"infer": key("acme", ["infer"]), "submit": key("acme", ["submit"]), "other": key("other", ["infer"])}
    slow = key("slow", ["infer"], requests_a_minute=1)
    with answering(build_api(platform)) as url:
        official = {n: openai.OpenAI(base_url=f"{url}/v1", api_key=k, max_retries=0) for n, k in keys.items()}
        limited = openai.OpenAI(base_url=f"{url}/v1", api_key=slow, max_retries=0)
        assert official["infer"].chat.completions.create(**ASKED).usage.completion_tokens == 3
        assert len(list(official["infer"].chat.completions.create(**ASKED, stream=True))) >= 3
        for name, refused in {"submit": openai.PermissionDeniedError, "other": openai.NotFoundError}.items():
            with pytest.raises(refused):
                official[name].chat.completions.create(**ASKED)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="sk-ft-none").chat.completions.create(**ASKED)
        with pytest.raises(openai.NotFoundError):
            limited.chat.completions.create(**ASKED)
        with pytest.raises(openai.RateLimitError) as beyond:
            limited.chat.completions.create(**ASKED)
        assert int(beyond.value.response.headers["retry-after"]) > 50
        assert beyond.value.response.headers["x-request-id"]
    (row,) = platform.records.answered(first_day="2000-01-01", last_day="2999-01-01")
    assert (row.tenant, row.model, row.requests, row.completion_tokens) == ("acme", f"{LINE}@1", 2, 6)
