"""Two versions of a curated dataset: every row that differs is named once, with the reason that the files give."""

from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from ft_pipeline.acquire import dataset
from ft_pipeline.curate.artifact import SPLITS
from ft_pipeline.curate.consolidate import Curation, curate
from ft_pipeline.curate.difference import CHANGES, difference
from ft_pipeline.curate.difference_rows import examples
from ft_pipeline.errors import DataError
from ft_pipeline.recipe import Curate, Dataset, Pii, Splits
from ft_pipeline_tests import road, tiny

pytestmark = pytest.mark.slow

ALL_TRAIN = Curate(splits=Splits(validation=0, holdout=0))


@pytest.fixture
def curated(home, store, tmp_path):
    """Curates lines of a file."""

    def make(rows, config=ALL_TRAIN):
        path = road.write_rows(tmp_path / "rows.jsonl", [], [r if isinstance(r, str) else json.dumps(r) for r in rows])
        raw = dataset.acquire(Dataset(uri=str(path)), settings=home, store=store)
        return curate(Curation(config=config, raw=raw.ref, dataset=Dataset(uri=str(path))), store=store)

    return make


def mail(number: int) -> dict:
    row = road.question(number)
    row["messages"][0]["content"] += " write to ann.miller@firma.de"
    return row


def drawn(number: int) -> dict | str:
    """A row, one with personal data, or one that cannot be read."""
    return mail(number) if number % 5 == 0 else "{broken" if number == 7 else road.question(number)


def by_reason(found) -> dict[tuple[str, str], int]:
    return {(one.change, one.reason): one.rows for one in found.reasons}


def example(found, pair, change):
    return next(one for one in examples(found, *pair, num_rows=5) if one.change == change)


def test_the_same_dataset_differs_in_nothing(curated):
    made = curated(road.clean_rows(20))
    found = difference(made, made)
    assert (found.unchanged, found.counts, found.reasons, found.inputs) == (20, dict.fromkeys(CHANGES, 0), (), ())
    assert found.rows.height == 0 and examples(found, made, made, num_rows=3) == []


def test_a_row_that_became_a_duplicate_names_the_row_that_stays(curated):
    longer = road.question(50)
    longer["messages"][0]["content"] += " ?"
    rows = [*road.clean_rows(20), road.question(50)]
    pair = curated(rows), curated([*rows, longer])
    found = difference(*pair)
    assert by_reason(found) == {("removed", "near_duplicate"): 1, ("added", "new_in_raw_data"): 1}
    gone, come = example(found, pair, "removed"), example(found, pair, "added")
    assert gone.stands_for == come.row_id and gone.stands_for_text != gone.text
    assert gone.stands_for_text.endswith("? ? => yes") and gone.text.startswith("... ")
    assert gone.evidence["edge"]["prompt_j"] >= 0.9


def test_rows_that_came_and_went_with_the_raw_data(curated):
    pair = curated(road.clean_rows(20)), curated([*road.clean_rows(19), *(road.question(n) for n in (90, 91))])
    found = difference(*pair)
    # line 20 holds another row now: changed, not one gone and one come
    assert by_reason(found) == {("changed", "other_line"): 1, ("added", "new_in_raw_data"): 1}
    one = example(found, pair, "changed")
    assert one.row_id != one.new_row_id and one.origin == "rows.jsonl:20" and one.text != one.new_text
    back = difference(*pair[::-1])
    assert by_reason(back) == {("changed", "other_line"): 1, ("removed", "not_in_raw_data"): 1}


def test_rows_that_are_moved_within_the_file_do_not_differ(curated):
    rows = road.clean_rows(20)
    assert difference(curated(rows), curated(rows[::-1])).rows.height == 0


def test_redaction_changes_a_row_and_names_the_filter(curated):
    rows = [*road.clean_rows(10), mail(70)]
    pair = curated(rows), curated(rows, Curate(splits=ALL_TRAIN.splits, pii=Pii(policy="redact")))
    found = difference(*pair)
    assert by_reason(found) == {("changed", "personal_data"): 1}
    assert [(i.name, i.before, i.after) for i in found.inputs] == [("pii.policy", "flag", "redact")]
    one = example(found, pair, "changed")
    assert "ann.miller@firma.de" in one.text and "[EMAIL]" in one.new_text and one.row_id == one.new_row_id
    assert by_reason(difference(*pair[::-1])) == {("changed", "personal_data"): 1}


def test_a_filter_that_drops_is_the_reason_and_its_evidence_is_shown(curated):
    rows = [*road.clean_rows(10), mail(70)]
    pair = curated(rows), curated(rows, Curate(splits=ALL_TRAIN.splits, pii=Pii(policy="reject")))
    found = difference(*pair)
    assert by_reason(found) == {("removed", "personal_data"): 1}
    assert example(found, pair, "removed").evidence["kind"] == "email"
    back = difference(*pair[::-1])
    assert by_reason(back) == {("added", "personal_data"): 1}
    assert example(back, pair[::-1], "added").evidence["kind"] == "email"


def test_a_line_that_was_mended_says_what_was_wrong_with_it(curated):
    pair = curated([*road.clean_rows(10), "{broken"]), curated([*road.clean_rows(10), road.question(80)])
    found = difference(*pair)
    assert by_reason(found) == {("added", "other_line"): 1}
    one = example(found, pair, "added")
    assert one.evidence["reason"] == "not_json" and one.evidence["line_holds"] == one.new_row_id
    assert by_reason(difference(*pair[::-1])) == {("removed", "other_line"): 1}


def test_other_shares_move_rows(curated):
    rows = road.clean_rows(60)
    found = difference(curated(rows), curated(rows, Curate(splits=Splits(validation=0.2, holdout=0.4))))
    assert set(by_reason(found)) == {("moved", "other_shares")} and found.counts["moved"] > 20
    assert set(found.rows["new_split"]) == {"validation", "holdout"} and set(found.rows["split"]) == {"train"}


def test_examples_show_every_reason_before_one_twice(curated):
    rows = road.clean_rows(30)
    pair = curated(rows), curated([*rows[10:], "{x", *rows[:3], rows[4], rows[4]])
    found = difference(*pair)
    assert len(examples(found, *pair, num_rows=2)) == min(2, found.counts["removed"]) + min(2, found.counts["changed"])
    assert examples(found, *pair, num_rows=0) == []


@profile(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_add_up_whatever_differs(curated, data):
    number = st.integers(0, 30)
    before, after = (data.draw(st.lists(number, min_size=1, max_size=25), label=name) for name in ("before", "after"))
    config = data.draw(
        st.sampled_from([ALL_TRAIN, Curate(splits=Splits(validation=0.2, holdout=0.2), pii=Pii(policy="redact"))])
    )
    try:
        pair = curated(map(drawn, before)), curated(map(drawn, after), config)
    except DataError:
        return
    found = difference(*pair)
    ids = [{i for s in SPLITS for i in pl.read_parquet(a.file(f"{s}.parquet"))["row_id"]} for a in pair]
    edited = found.rows.filter((pl.col("change") == "changed") & (pl.col("row_id") != pl.col("new_row_id")))
    gone = set(found.rows.filter(pl.col("change") == "removed")["row_id"]) | set(edited["row_id"])
    come = set(found.rows.filter(pl.col("change") == "added")["row_id"]) | set(edited["new_row_id"])
    assert (gone, come) == (ids[0] - ids[1], ids[1] - ids[0])
    assert found.rows["row_id"].is_unique().all() and sum(one.rows for one in found.reasons) == found.rows.height
    assert found.unchanged + found.counts["changed"] + found.counts["moved"] + found.counts["removed"] == len(ids[0])
    assert found.unchanged >= 0 and not found.rows["reason"].has_nulls()


def test_a_dataset_of_an_older_form_is_refused(store, curated):
    older = tiny.publish_curated(store, tiny.chat_rows(4))
    with pytest.raises(DataError, match="has no column source"):
        difference(older, curated(road.clean_rows(5)))
