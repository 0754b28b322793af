"""A micro-batch is made of its own items, and these are read once for weight and batch."""

from __future__ import annotations

from ft_pipeline.finetune.composing import Batches


def test_items_are_read_once_for_their_weight_and_their_batch():
    read = []
    batches = Batches(sum, lambda n: read.append(n) or [n, n + 1], keep=8)
    weights = [len(batches.items(n)) for n in range(4)]
    assert [batches.take(n)[0] for n in range(4)] == [2 * n + 1 for n in range(4)]
    assert weights == [2] * 4 and read == [0, 1, 2, 3]
    assert batches.take(3)[1] >= 0
