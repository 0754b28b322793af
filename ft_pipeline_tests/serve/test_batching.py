"""The decoding thread: rows join a running batch and leave it, errors reach whoever waits, nothing is decoded for who left."""

from __future__ import annotations

import threading
import time

import pytest

from ft_pipeline.errors import IntegrityError
from ft_pipeline.serve.batching import Batcher, Closed, Row
from ft_pipeline.serve.engine import Busy, Generation
from ft_pipeline.serve.limits import Limits
from ft_pipeline.serve.text import TextStream

LETTERS = b"abcdefgh"


def row(max_tokens: int = 8, end: bytes = b"") -> Row:
    return Row(
        request=Generation(model="m", prompt="x"), adapter=None, prompt_tokens=[1, 2], max_tokens=max_tokens,
        end_tokens=frozenset(end), stream=TextStream(lambda ids: bytes(ids).decode()),
    )  # fmt: skip


class Speller:
    """A decoder of letters: every row gets the next letter of the alphabet at each step."""

    def __init__(self) -> None:
        self.running: list[Row] = []
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def join(self, rows) -> None:
        self.running = [*self.running, *rows]

    def step(self) -> None:
        self.gate.wait(5)
        self.sizes.append(len(self.running))
        for each in self.running:
            each.push(LETTERS[each.completion_tokens])
        self.running = [each for each in self.running if not each.finish]


class Breaking(Speller):
    """Raises once each of its errors."""

    errors: list[Exception]

    def step(self) -> None:
        if self.errors:
            self.running = []
            raise self.errors.pop(0)
        super().step()


def said(each: Row) -> str:
    return "".join(p.text for p in each.read())


@pytest.fixture
def batches():
    """Starts batchers and ends their threads."""
    made = []

    def start(decoder, **limits) -> Batcher:
        made.append(Batcher(decoder, Limits(**limits)))
        return made[-1]

    yield start
    for batcher in made:
        batcher.close()


def test_rows_join_as_soon_as_there_is_room(batches):
    decoder = Speller()
    decoder.gate.clear()
    batcher = batches(decoder, max_rows=4)
    rows = [row(max_tokens=2), *(row() for _ in range(8))]
    for each in rows:
        batcher.submit(each)
    decoder.gate.set()
    assert [said(each) for each in rows] == ["ab"] + [LETTERS.decode()] * 8
    assert (batcher.rows, batcher.largest) == (9, 4)
    assert 1 not in decoder.sizes[2:9], "a row that came later ran beside those that ran on"


def test_what_would_not_fit_in_memory_waits(batches):
    decoder = Speller()
    decoder.gate.clear()
    batcher = batches(decoder, max_batch_tokens=25)
    rows = [row() for _ in range(4)]
    for each in rows:
        batcher.submit(each)
    decoder.gate.set()
    assert {said(each) for each in rows} == {LETTERS.decode()}
    assert batcher.largest == 2


def test_a_full_queue_says_when_to_come_back(batches):
    decoder = Speller()
    decoder.gate.clear()
    batcher = batches(decoder, max_rows=1, max_waiting=2)
    batcher.submit(first := row())
    while batcher.waiting:
        time.sleep(0.01)
    for each in (rows := [row(), row()]):
        batcher.submit(each)
    with pytest.raises(Busy, match="2 requests wait") as busy:
        batcher.submit(row())
    assert busy.value.retry_after_seconds >= 1
    decoder.gate.set()
    assert [said(each) for each in (first, *rows)] == [LETTERS.decode()] * 3


def test_a_row_ends_at_its_limit_or_its_end_token(batches):
    batcher = batches(Speller())
    rows = [row(max_tokens=3), row(end=b"e")]
    for each in rows:
        batcher.submit(each)
    limited, ended = ([*each.read()] for each in rows)
    assert ("".join(p.text for p in limited), limited[-1].finish, limited[-1].completion_tokens) == ("abc", "length", 3)
    assert ("".join(p.text for p in ended), ended[-1].finish, ended[-1].completion_tokens) == ("abcd", "stop", 5)


def test_an_error_reaches_every_request_and_the_thread_lives_on(batches):
    decoder = Breaking()
    decoder.errors = [IntegrityError("changed"), KeyError("bug")]
    batcher = batches(decoder)
    for expected in (IntegrityError, RuntimeError):
        broken = row()
        batcher.submit(broken)
        with pytest.raises(expected):
            list(broken.read())
    fine = row()
    batcher.submit(fine)
    assert said(fine) == LETTERS.decode()


def test_nothing_is_decoded_for_who_left(batches):
    decoder = Speller()
    batcher = batches(decoder)
    decoder.gate.clear()
    abandoned = row(max_tokens=100)
    batcher.submit(abandoned)
    abandoned.cancel()
    decoder.gate.set()
    done = row()
    batcher.submit(done)
    assert said(done) == LETTERS.decode()
    assert abandoned.completion_tokens == 0


def test_work_is_done_between_two_steps_and_its_errors_come_back(batches):
    decoder = Speller()
    batcher = batches(decoder)
    batcher.submit(running := row())
    at = []
    batcher.between_steps(lambda: at.append(threading.current_thread().name))
    assert at == ["decode"]
    with pytest.raises(ZeroDivisionError):
        batcher.between_steps(lambda: 1 // 0)
    assert said(running) == LETTERS.decode()


def test_closing_answers_what_was_queued_and_takes_no_more(batches):
    decoder = Speller()
    decoder.gate.clear()
    batcher = batches(decoder, max_rows=1)
    rows = [row() for _ in range(3)]
    for each in rows:
        batcher.submit(each)
    batcher.close(wait=False)
    with pytest.raises(Closed):
        batcher.submit(row())
    decoder.gate.set()
    assert [said(each) for each in rows] == [LETTERS.decode()] * 3
