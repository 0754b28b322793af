"""Text as it streams: whole characters, cut at stop sequences, nothing shown too early, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ft_pipeline.serve.text import TextStream


def decode(tokens) -> str:
    """Bytes as tokens: the hardest case for whole characters."""
    return bytes(tokens).decode("utf-8", errors="replace")


def shown(text: str, *stop: str) -> tuple[list[str], bool]:
    stream = TextStream(decode, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    return [*pieces, stream.flush()], stream.stopped


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_the_pieces_are_the_text(text):
    assert "".join(shown(text)[0]) == text


@given(
    st.text("ab\u00e9\u4e2d", max_size=40),
    st.lists(st.text("ab\u00e9", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_a_stop_cuts_where_it_first_appears(text, stops):
    pieces, stopped = shown(text, *stops)
    first = min((i for i in (text.find(s) for s in stops) if i >= 0), default=None)
    assert stopped == (first is not None)
    answer = "".join(pieces)
    assert not any(stop in answer for stop in stops)
    assert text.startswith(answer)
    if first is None:
        assert answer == text


def test_a_possible_stop_is_held_back_until_it_is_certain():
    stream = TextStream(decode, ["END"])
    assert [stream.push(b) for b in b"xENx"] == ["x", "", "", "ENx"]


def test_a_character_is_shown_whole():
    assert [p for p in shown("a\u4e2d")[0] if p] == ["a", "\u4e2d"]
