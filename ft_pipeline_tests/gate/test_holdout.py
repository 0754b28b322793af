"""What a holdout row asks."""

from __future__ import annotations

import json

from ft_pipeline.gate.holdout import read_tasks, task
from ft_pipeline.gate.metrics import metric_of


def test_the_last_assistant_turn_is_the_reference_and_what_came_before_is_asked() -> None:
    messages = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "bye"},
    ]  # fmt: skip
    found = task("r1", "chat", {"messages": messages, "tools": [{"name": "t"}]})
    assert found.reference == "d" and [m["content"] for m in found.messages] == ["s", "a", "b", "c"]
    assert all("weight" not in m for m in found.messages) and found.tools == [{"name": "t"}]


def test_other_shapes() -> None:
    assert task("r", "completion", {"prompt": "p", "completion": "c"}).prompt == "p"
    turn = [{"role": "user", "content": "p"}]
    for chosen in ("c", [{"role": "assistant", "content": "c"}]):
        found = task("r", "preference", {"prompt": turn, "chosen": chosen, "rejected": "x"})
        assert (found.messages, found.reference) == (tuple(turn), "c")
    assert task("r", "text", {"text": "t"}) is None
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert task("r", "chat", {"messages": [*turn, calls]}) is None


def test_rows_that_the_metric_cannot_use_are_counted_and_not_asked(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    said = ["it is 3", "three", "#### 4"]
    content = [json.dumps({"prompt": "p", "completion": c}) for c in said] + [json.dumps({"text": "t"})]
    shapes = ["completion"] * 3 + ["text"]
    table = pa.table({"row_id": list("abcd"), "shape": shapes, "content": content})

    class Curated:
        def file(self, name):
            pq.write_table(table, tmp_path / name)
            return tmp_path / name

    tasks, skipped = read_tasks(Curated(), metric_of("numeric", {}).usable)
    assert [t.id for t in tasks] == ["a", "c"] and skipped == 2
