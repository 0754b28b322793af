"""Where requests go: stable, spread, and a replica that leaves moves only its own share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.serve.gateway.affinity import in_order, ranked

REPLICAS = st.lists(st.from_regex(r"http://10\.0\.0\.[1-9]:8000", fullmatch=True), min_size=2, max_size=9, unique=True)
WEIGHTS = st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=1, max_size=40, unique=True)


@given(replicas=REPLICAS, weights=WEIGHTS, data=st.data())
def test_a_replica_that_leaves_moves_only_what_it_had(replicas, weights, data):
    gone = data.draw(st.sampled_from(replicas))
    rest = [r for r in replicas if r != gone]
    for each in weights:
        before, after = ranked(each, replicas), ranked(each, rest)
        assert after == [r for r in before if r != gone], "the order of the others is as it was"
        assert before[0] == gone or after[0] == before[0]


@given(replicas=REPLICAS, weights=WEIGHTS)
def test_the_order_is_the_same_in_every_gateway(replicas, weights):
    for each in weights:
        assert ranked(each, replicas) == ranked(each, reversed(replicas))
        assert sorted(ranked(each, replicas)) == sorted(replicas)


def test_adapters_spread_evenly():
    replicas = [f"http://10.0.0.{i}:8000" for i in range(4)]
    shares = Counter(ranked(f"adapter-{i}", replicas)[0] for i in range(2000))
    assert all(400 < share < 600 for share in shares.values()), shares


@given(replicas=REPLICAS, requests=st.integers(1, 200))
def test_one_hot_adapter_takes_the_whole_pool_and_nobody_is_far_above_the_mean(replicas, requests):
    in_flight: Counter[str] = Counter()
    for _ in range(requests):
        in_flight[in_order("hot", replicas, in_flight)[0]] += 1
    assert max(in_flight.values()) <= 1.25 * (requests / len(replicas)) + 1.25


def test_no_replica_is_no_error():
    assert in_order("x", [], {}) == []
