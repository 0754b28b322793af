"""Micro-batches that are made ahead come in order, made once each; what fails is told where it is asked for; closing ends the thread."""

from __future__ import annotations

import threading

import pytest

from ft_pipeline.finetune.ahead import Ahead, Batches


def test_every_number_comes_in_order_and_is_composed_once():
    made = []
    ahead = Ahead(lambda number: made.append(number) or number * 10, range(50))
    assert [ahead.take(number)[0] for number in range(50)] == [number * 10 for number in range(50)]
    ahead.close()
    assert made == list(range(50))


def test_no_more_than_a_few_wait():
    made, taken = [], threading.Event()

    def compose(number):
        made.append(number)
        if len(made) == 4:
            taken.set()
        return number

    ahead = Ahead(compose, range(1000), depth=2)
    ahead.take(0)
    assert taken.wait(5)
    assert len(made) <= 5
    ahead.close()
    assert not ahead._thread.is_alive() and len(made) < 10


def test_a_failure_is_raised_where_its_batch_is_taken():
    def compose(number):
        if number == 2:
            raise ValueError("row 2 is no row")
        return number

    ahead = Ahead(compose, range(5))
    assert [ahead.take(n)[0] for n in (0, 1)] == [0, 1]
    with pytest.raises(ValueError, match="row 2 is no row"):
        ahead.take(2)
    ahead.close()


def test_the_same_batches_with_and_without_the_thread():
    read = []

    def batches():
        return Batches(lambda items: sum(items), lambda n: read.append(n) or [n, n + 1], keep=8)

    plain, threaded = batches(), batches()
    threaded.run_ahead(range(20))
    assert [plain.take(n)[0] for n in range(20)] == [threaded.take(n)[0] for n in range(20)]
    plain.close()
    threaded.close()
    read.clear()
    assert plain.items(19) == [19, 20] and read == []
