"""Rows in windows: whole, rejected, cut or split, never with a trained token lost or trained twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.encode.rows import fitted
from ft_pipeline.encode.template import Encoded
from ft_pipeline.recipe import Encode


@st.composite
def encoded(draw):
    """A row as the template encodes it: the first token is never trained."""
    mask = [False, *draw(st.lists(st.booleans(), max_size=60))]
    spans, start = [], None
    for place, on in enumerate([*mask, False]):
        if on and start is None:
            start = place
        elif not on and start is not None:
            spans.append((start, place))
            start = None
    return Encoded(ids=list(range(100, 100 + len(mask))), spans=tuple(spans), ends=True)


@given(
    encoded(), st.integers(2, 70), st.sampled_from(["reject", "truncate", "split"]), st.sampled_from(["chat", "text"])
)
def test_a_row_is_kept_whole_or_changed_or_dropped_and_the_ledger_says_so(row, window, overlong, shape):
    found = fitted(row, shape, Encode(window_tokens=window, overlong=overlong))
    assert bool(found.pieces) != (found.note is not None and found.note[0] == "dropped")
    assert all(0 < len(ids) <= window and spans for ids, spans in found.pieces)
    assert all(1 <= a < b <= len(ids) for ids, spans in found.pieces for a, b in spans)
    if len(row.ids) <= window and row.spans:
        assert found.note is None and found.pieces == ((row.ids, row.spans),)


@given(encoded(), st.integers(2, 70))
def test_a_split_row_trains_each_of_its_trained_tokens_once_and_keeps_the_token_before(row, window):
    found = fitted(row, "text", Encode(window_tokens=window, overlong="split"))
    taught = [(ids[n - 1], ids[n]) for ids, spans in found.pieces for a, b in spans for n in range(a, b)]
    assert taught == [(row.ids[n - 1], row.ids[n]) for a, b in row.spans for n in range(a, b)]


@given(st.integers(2, 300), st.integers(2, 40))
def test_a_split_text_fills_its_windows(tokens, window):
    row = Encoded(ids=list(range(tokens)), spans=((1, tokens),), ends=True)
    sizes = [len(ids) for ids, _ in fitted(row, "text", Encode(window_tokens=window, overlong="split")).pieces]
    assert all(size == window for size in sizes[:-1]) and sum(sizes) == tokens + len(sizes) - 1


@given(encoded(), st.integers(2, 70))
def test_a_truncated_row_is_the_beginning_of_it_masked_as_before(row, window):
    for ids, spans in fitted(row, "chat", Encode(window_tokens=window, overlong="truncate")).pieces:
        assert ids == row.ids[:window]
        assert {n for a, b in spans for n in range(a, b)} == {
            n for a, b in row.spans for n in range(a, b) if n < window
        }


@pytest.mark.parametrize(
    ("overlong", "shape", "reason"),
    [("reject", "text", "overlong"), ("split", "chat", "overlong_conversation"), ("truncate", "text", "truncated")],
)
def test_what_happens_to_a_long_row_has_its_reason(overlong, shape, reason):
    row = Encoded(ids=list(range(9)), spans=((2, 9),), ends=True)
    assert fitted(row, shape, Encode(window_tokens=8, overlong=overlong)).note[1].reason == reason
