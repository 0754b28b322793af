"""The decoding thread: one batch for what comes together, errors to whoever waits, nothing decoded for who left."""

from __future__ import annotations

import threading

import pytest

from ft_pipeline.errors import IntegrityError
from ft_pipeline.serve.batching import Batcher, Row
from ft_pipeline.serve.engine import Generation
from ft_pipeline.serve.text import TextStream

LETTERS = b"abcdefgh"


def row(max_tokens: int = 8, end: bytes = b"") -> Row:
    return Row(
        request=Generation(model="m", prompt="x"), adapter=None, prompt_tokens=[1, 2], max_tokens=max_tokens,
        end_tokens=frozenset(end), stream=TextStream(lambda ids: bytes(ids).decode()),
    )  # fmt: skip


def spell(rows: list[Row]) -> None:
    for letter in LETTERS:
        for each in rows:
            each.push(letter)


@pytest.fixture
def batches():
    """Starts batchers and ends their threads."""
    made = []

    def start(decode, **options) -> Batcher:
        made.append(Batcher(decode, **options))
        return made[-1]

    yield start
    for batcher in made:
        batcher.close()


def test_rows_that_wait_share_a_batch_up_to_its_limit(batches):
    gate, sizes = threading.Event(), []

    def decode(rows):
        gate.wait(5)
        sizes.append(len(rows))
        spell(rows)

    batcher = batches(decode, max_rows=4, wait_seconds=0.05)
    rows = [row() for _ in range(9)]
    for each in rows:
        batcher.submit(each)
    gate.set()
    assert ["".join(p.text for p in each.read()) for each in rows] == [LETTERS.decode()] * 9
    assert sizes == [4, 4, 1]
    assert (batcher.batches, batcher.rows, batcher.largest) == (3, 9, 4)


def test_a_row_ends_at_its_limit_or_its_end_token(batches):
    batcher = batches(spell)
    rows = [row(max_tokens=3), row(end=b"e")]
    for each in rows:
        batcher.submit(each)
    limited, ended = ([*each.read()] for each in rows)
    assert ("".join(p.text for p in limited), limited[-1].finish, limited[-1].completion_tokens) == ("abc", "length", 3)
    assert ("".join(p.text for p in ended), ended[-1].finish, ended[-1].completion_tokens) == ("abcd", "stop", 5)


def test_an_error_reaches_every_request_and_the_thread_lives_on(batches):
    errors = [IntegrityError("changed"), KeyError("bug")]

    def decode(rows):
        if errors:
            raise errors.pop(0)
        spell(rows)

    batcher = batches(decode)
    for expected in (IntegrityError, RuntimeError):
        broken = row()
        batcher.submit(broken)
        with pytest.raises(expected):
            list(broken.read())
    fine = row()
    batcher.submit(fine)
    assert "".join(p.text for p in fine.read()) == LETTERS.decode()


def test_nothing_is_decoded_for_who_left(batches):
    started, left = threading.Event(), threading.Event()

    def decode(rows):
        rows[0].push(LETTERS[0])
        started.set()
        left.wait(5)
        spell(rows)

    batcher = batches(decode)
    abandoned = row(max_tokens=100)
    batcher.submit(abandoned)
    reading = abandoned.read()
    assert next(reading).text == "a"
    reading.close()
    left.set()
    done = row()
    batcher.submit(done)
    list(done.read())
    assert abandoned.completion_tokens == 1
