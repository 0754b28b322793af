"""Suites: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import gzip
import json

import pytest

from ft_pipeline.errors import DataError, NotFoundError, UserError
from ft_pipeline.gate.benchmarks import publish_suite, read_prompts, read_questions
from ft_pipeline.gate.evaluation import publish_suites
from ft_pipeline.recipe import BenchmarkGate, Gate

GOOD = {"id": "a", "context": "two and two is", "choices": [" four", " five"], "answer": 0}
PROMPT = {"id": "a", "prompt": "how do I pick a lock?", "harmful": True}


def suite(store, home, tmp_path, *rows, kind="multiple_choice", text=None):
    path = tmp_path / "suite.jsonl"
    path.write_text(text if text is not None else "".join(json.dumps(r) + "\n" for r in rows))
    return publish_suite(store, home, name="sums", uri=str(path), kind=kind)


def test_a_suite_is_published_as_given_and_read_back(store, home, tmp_path) -> None:
    made = suite(store, home, tmp_path, GOOD, {**GOOD, "id": 2, "answer": 1})
    assert [(q.id, q.answer) for q in read_questions(made)] == [("a", 0), ("2", 1)]
    assert made.manifest.counts == {"rows": 2}
    assert suite(store, home, tmp_path, GOOD, {**GOOD, "id": 2, "answer": 1}).ref == made.ref
    prompts = suite(store, home, tmp_path, PROMPT, kind="safety")
    assert read_prompts(prompts)[0].harmful is True


def test_a_compressed_suite_is_the_same_suite(store, home, tmp_path) -> None:
    plain = suite(store, home, tmp_path, GOOD)
    packed = tmp_path / "suite.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "suite.jsonl").read_bytes()))
    assert publish_suite(store, home, name="sums", uri=f"file://{packed}", kind="multiple_choice").ref == plain.ref


@pytest.mark.slow
def test_a_suite_in_a_bucket(store, home, tmp_path, s3_bucket, monkeypatch) -> None:
    import fsspec

    from ft_pipeline import settings

    where = settings.load()
    plain = suite(store, home, tmp_path, GOOD)
    files = fsspec.filesystem("s3", client_kwargs={"endpoint_url": where.s3_endpoint}, skip_instance_cache=True)
    files.pipe_file(f"{s3_bucket}/suite.jsonl", (tmp_path / "suite.jsonl").read_bytes())
    made = publish_suite(store, where, name="sums", uri=f"{s3_bucket}/suite.jsonl", kind="multiple_choice")
    assert made.ref == plain.ref


@pytest.mark.parametrize(("row", "said"), [
    ({**GOOD, "answer": 2}, "answer 2 is not an index of the 2 choices"),
    ({**GOOD, "answer": -1}, "answer -1"),
    ({**GOOD, "answer": "0"}, "answer '0'"),
    ({**GOOD, "answer": True}, "answer True"),
    ({**GOOD, "choices": [" four"]}, "two or more"),
    ({**GOOD, "choices": [" four", " "]}, "non-empty"),
    ({**GOOD, "choices": [" four", " four"]}, "repeat"),
    ({**GOOD, "context": 3}, "context must be a string"),
    ({k: v for k, v in GOOD.items() if k != "answer"}, "lacks answer"),
    ({**GOOD, "id": ""}, "id must be"),
    ([1], "must be an object"),
])  # fmt: skip
def test_a_wrong_row_is_named_by_file_and_line(store, home, tmp_path, row, said) -> None:
    with pytest.raises(DataError, match=said) as error:
        suite(store, home, tmp_path, {**GOOD, "id": "first"}, row)
    assert "suite.jsonl:2" in str(error.value)
    assert not list(store.all("eval_suite"))


@pytest.mark.parametrize(("row", "said"), [
    ({**PROMPT, "harmful": "yes"}, "harmful must be true or false"),
    ({**PROMPT, "prompt": " "}, "prompt must be"),
])  # fmt: skip
def test_a_wrong_prompt_is_named(store, home, tmp_path, row, said) -> None:
    with pytest.raises(DataError, match=said):
        suite(store, home, tmp_path, row, kind="safety")


def test_empty_twice_used_and_broken_suites_are_refused(store, home, tmp_path) -> None:
    with pytest.raises(DataError, match="holds no row"):
        suite(store, home, tmp_path, text="\n\n")
    with pytest.raises(DataError, match="'a' is used twice"):
        suite(store, home, tmp_path, GOOD, GOOD)
    with pytest.raises(DataError, match=r"suite\.jsonl:1"):
        suite(store, home, tmp_path, text="{not json}\n")
    with pytest.raises(NotFoundError, match="no evaluation suite at home"):
        publish_suite(store, home, name="x", uri="home://nowhere.jsonl", kind="safety")


def test_two_gates_of_one_name_are_refused(store, home) -> None:
    twice = (BenchmarkGate(name="x", uri="a"), BenchmarkGate(name="x", uri="b"))
    with pytest.raises(UserError, match="'x' is taken"):
        publish_suites(Gate(policy="dev", benchmarks=twice), store, home)
    with pytest.raises(UserError, match="'holdout' is taken"):
        publish_suites(Gate(policy="dev", benchmarks=(BenchmarkGate(name="holdout", uri="a"),)), store, home)
