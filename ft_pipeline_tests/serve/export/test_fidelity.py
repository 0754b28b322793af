"""The distance of an export from its source, against numbers that are worked out by hand; and texts as the model reads them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from ft_pipeline.errors import DataError
from ft_pipeline.serve.export import fidelity
from ft_pipeline.serve.export.fidelity import Text, chosen, compare

VOCABULARY = 5


class Fixed:
    """A model whose logits are those of a table: token seen -> scores of the next one."""

    device = "cpu"
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=8))

    def __init__(self, table: dict[int, list[float]]) -> None:
        self.table = torch.tensor([table.get(i, [0.0] * VOCABULARY) for i in range(VOCABULARY)])

    def __call__(self, *, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.table[input_ids])


def nothing(done: int, total: int) -> None:
    """No bar."""


def test_kl_top1_and_perplexity_are_those_of_the_answer_tokens_alone():
    ours = Fixed({2: [0.0, 2.0, 0.0, 0.0, 0.0], 1: [9.0, 0.0, 0.0, 0.0, 0.0]})
    theirs = Fixed({2: [3.0, 2.0, 0.0, 0.0, 0.0], 1: [0.0, 9.0, 0.0, 0.0, 0.0]})
    # the answer is token 1 after token 2; that they differ after token 1, in the question, does not count
    text = Text(id="a", ids=(1, 2, 1), answer_from=2)
    p = torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0]).softmax(0)
    q = torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0]).softmax(0)
    found = compare(ours, theirs, [text], tick=nothing)
    assert (found.rows, found.tokens, found.top1) == (1, 1, 0.0)
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert found.reference_perplexity == pytest.approx(1 / float(p[1]), rel=1e-5)
    assert found.perplexity == pytest.approx(1 / float(q[1]), rel=1e-5)


def test_a_model_is_no_distance_from_itself_whatever_the_padding(monkeypatch):
    table = {i: torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(i)).tolist() for i in range(VOCABULARY)}
    texts = [Text(id=str(n), ids=tuple(i % VOCABULARY for i in range(n)), answer_from=1) for n in range(2, 8)]
    alone = compare(Fixed(table), Fixed(table), texts, tick=nothing)
    monkeypatch.setattr(fidelity, "BATCH_ROWS", 1)
    single = compare(Fixed(table), Fixed(table), texts, tick=nothing)
    assert alone.kl == single.kl == 0.0 and alone.top1 == 1.0
    assert alone.tokens == single.tokens == sum(n - 1 for n in range(2, 8))
    assert math.isclose(alone.perplexity, single.perplexity, rel_tol=1e-6)


def test_rows_that_do_not_fit_are_counted_and_none_at_all_is_an_error():
    model = Fixed({})
    long, short = Text(id="long", ids=(1,) * 9, answer_from=3), Text(id="short", ids=(1, 2), answer_from=1)
    assert compare(model, model, [long, short], tick=nothing).skipped == 1
    with pytest.raises(DataError, match="none of 1 rows"):
        compare(model, model, [long], tick=nothing)


def test_the_same_rows_are_chosen_whatever_their_order(monkeypatch):
    monkeypatch.setattr(fidelity, "MOST_ROWS", 3)
    texts = [Text(id=str(n), ids=(1, 2), answer_from=1) for n in range(9)]
    assert chosen(texts) == chosen(texts[::-1]) and len(chosen(texts)) == 3
