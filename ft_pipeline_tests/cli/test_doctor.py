"""`doctor` and `catalog rebuild`: what is missing is said with the cure, and a lost catalog is made again from the store."""

from __future__ import annotations

import json

import pytest

from ft_pipeline.store.artifacts import open_store
from ft_pipeline_tests import lines


@pytest.fixture
def findings(typed):
    """Check -> its row, and the exit code."""

    def look():
        answer = typed("doctor", "--json")
        return {row["check"]: row for row in json.loads(answer.out)}, answer.code

    return look


@pytest.mark.slow
def test_an_empty_home_lacks_nothing_that_is_needed(findings):
    rows, code = findings()
    assert code == 0, rows
    assert {"python", "packages", "disk", "store", "catalog", "gpu", "signing key"} <= rows.keys()
    assert rows["store"]["seen"].startswith("0 artifacts") and rows["signing key"]["state"] == "optional"


@pytest.mark.slow
def test_a_store_and_a_catalog_that_do_not_answer_are_named_with_the_cure(findings, home, monkeypatch):
    monkeypatch.setenv("FT_CATALOG", "postgresql://nobody:secret@127.0.0.1:1/none")
    monkeypatch.setenv("FT_STORE", "gs://bucket")
    rows, code = findings()
    assert code == 1
    assert rows["catalog"]["state"] == rows["store"]["state"] == "missing"
    assert rows["catalog"]["cure"] and rows["store"]["cure"] and "secret" not in json.dumps(rows)


def test_a_lost_catalog_is_indexed_again(home, typed, catalog):
    store = open_store(home)
    made = lines.publish_line(store, catalog, base=lines.plain_base(store))
    catalog.close()
    for path in home.home.glob("catalog.db*"):
        path.unlink()
    digest = made["adapter"].ref.digest
    lost = typed("trace", digest)
    assert lost.code == 2 and "`ft-pipeline catalog rebuild`" in lost.err
    answer = typed("catalog", "rebuild")
    assert answer.code == 0 and f"{len(made)} artifacts indexed" in answer.out
    assert typed("trace", digest[:16]).code == 0


@pytest.mark.parametrize(
    "command", [("models",), ("plan", "demo-docs-router"), ("trace", "acme/router"), ("verify", "acme/router")]
)
def test_a_damaged_catalog_file_is_a_clear_error(home, typed, command):
    home.home.mkdir(parents=True, exist_ok=True)
    (home.home / "catalog.db").write_text("this is no database " * 100)
    answer = typed(*command)
    assert answer.code == 5 and "Traceback" not in answer.err
    assert "catalog.db" in answer.err and "file is not a database" in answer.err and "Cure:" in answer.err
