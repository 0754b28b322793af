"""The notebooks: every cell runs where no demo was run, and what a reader is promised is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ft_pipeline.settings import PROJECT

BOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
ROW_ID = re.compile(r"\br[0-9a-f]{16}\b")


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_what_is_committed_names_no_machine_and_holds_no_error(path: Path) -> None:
    outputs = [output for cell in _code(nbformat.read(path, as_version=4)) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", "".join(map(_text, outputs)))
    assert path.stat().st_size < 400_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_row_to_answer_runs_without_a_demo(home, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(PROJECT / "notebooks" / "from-row-to-answer.ipynb", as_version=4)
    for cell in _code(book):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(book, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in _code(book))
    said = [_text(output) for cell in _code(book) for output in cell.outputs]
    _assert_row_is_followed(said)
    for promised in (
        "exact_duplicate",
        "is dropped",
        "the same tokens as above: True",
        "data:image/png",
        "holdout",
        "verified: ",
    ):
        assert any(promised in text for text in said), promised
    assert sum("image/png" in output.get("data", {}) for cell in _code(book) for output in cell.outputs) == 2
    assert not home.home.exists(), "the small run lives in a folder of its own"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_which_rows_made_this_answer_follows_it_over_http(home, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(PROJECT / "notebooks" / "which-rows-made-this-answer.ipynb", as_version=4)
    for cell in _code(book):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(book, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(_text(output) for cell in _code(book) for output in cell.outputs)
    for promised in (
        "tokens equal", "system_fingerprint", "'version': 'acme/letters@1'", "holds; adapter", "rows were trained on; the nearest six",
        "letters.jsonl line", "near_duplicate", "deployed in local-",
    ):  # fmt: skip
        assert promised in said, promised
    assert not home.home.exists(), "its data lives in a folder of its own"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_why_was_this_row_dropped_makes_its_own_data(home, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(PROJECT / "notebooks" / "why-was-this-row-dropped.ipynb", as_version=4)
    for cell in _code(book):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(book, timeout=250, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(_text(output) for cell in _code(book) for output in cell.outputs)
    for promised in (
        "curated_dataset", "not_json", "role_order", "near_duplicate", "prompts with several answers", "cooking-2", "[EMAIL]",
        "other_language", "toxic", "dropped in curated_dataset", "rows unchanged", "near_duplicates.policy", "other_line", "was not_json",
    ):  # fmt: skip
        assert promised in said, promised
    assert sum("image/png" in output.get("data", {}) for cell in _code(book) for output in cell.outputs) == 5
    assert not home.home.exists(), "its data lives in a folder of its own"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_why_was_this_adapter_blocked_makes_one_and_cures_it(home, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(PROJECT / "notebooks" / "why-was-this-adapter-blocked.ipynb", as_version=4)
    for cell in _code(book):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(book, timeout=250, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(_text(output) for cell in _code(book) for output in cell.outputs)
    for promised in (
        "FAIL: facts failed: facts fell by", "fell by more than chance", "of 1,200 questions were enough to tell", "0 won", "INCONCLUSIVE",
        "regulated", "demo/teams: FAIL (policy staging)", "the adapter forgot: fewer epochs", "PASS: all 2 measured gates passed",
        "holdout questions in its training data: 0 (of 1 dataset compared)",
    ):  # fmt: skip
        assert promised in said, promised
    assert sum("image/png" in output.get("data", {}) for cell in _code(book) for output in cell.outputs) == 4
    assert not home.home.exists(), "its data lives in a folder of its own"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_comparing_runs_trains_three_variants_and_the_second_time_none(home, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(PROJECT / "notebooks" / "comparing-runs.ipynb", as_version=4)
    for cell in _code(book):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(book, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(_text(output) for cell in _code(book) for output in cell.outputs)
    for promised in (
        "did you mean learning_rate?", "router-small-s-", "trial 3, learning_rate 0.03: trained", "planned with the shards", "spot a trial",
        "trial 3, learning_rate 0.03: reused", "the same adapters: True, all reused: True",
    ):  # fmt: skip
        assert promised in said, promised
    assert sum("image/png" in output.get("data", {}) for cell in _code(book) for output in cell.outputs) == 4
    assert not home.home.exists(), "its data lives in a folder of its own"


SMALL = {
    "sft": "EPOCHS, BASE_STEPS, KILL_AT = 2, 4, 0.1",
    "dpo": 'SFT_EPOCHS, DPO_EPOCHS, LOSSES = 3, 1, ("sigmoid", "simpo")',
    "grpo": "SFT_EPOCHS, GRPO_EPOCHS, QUESTIONS = 3, 1, 64",
}
"""Notebook -> what its cell of parameters is here."""
METHODS = {
    "sft": ("exact_duplicate", "packed rows have the loss that they have alone", "exit code 75", "attempts: 2", "bit-exact", "adapter: "),
    "dpo": ("reference_logprobs", "chosen_logprob", "is the chosen answer", "simpo"),
    "grpo": ("refused: reward exact_answer is not calibrated", "true rate at most", "never trained on", "advantage", "against SFT"),
}  # fmt: skip
PICTURES = {"sft": 1, "dpo": 2, "grpo": 1}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", METHODS)
def test_a_notebook_of_a_method_trains_on_what_it_makes_itself(name: str, home, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in _code(book):
        cell.outputs, cell.execution_count = [], None
    (parameters,) = (cell for cell in _code(book) if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SMALL[name]
    NotebookClient(book, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(_text(output) for cell in _code(book) for output in cell.outputs)
    for promised in METHODS[name]:
        assert promised in said, promised
    assert (
        sum("image/png" in output.get("data", {}) for cell in _code(book) for output in cell.outputs) == PICTURES[name]
    )
    assert not home.home.exists(), "its data lives in a folder of its own"


def _assert_row_is_followed(said: list[str]) -> None:
    """The row that is introduced is the one that an adapter was trained on; a dropped row reached none."""
    followed = next(ROW_ID.search(text) for text in said if "we follow" in text)
    assert followed
    traced = [text for text in said if text.startswith("row r")]
    assert followed[0] in traced[0] and "trained on it, newest of demo/docs-router-small" in traced[0]
    assert "dropped in curated_dataset" in traced[1] and "no adapter was trained on it" in traced[1]


def _code(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def _text(output: Any) -> str:
    """The text of an output, the bytes of pictures left out."""
    parts = output.get("data", {})
    text = output.get("text", "") + "".join(str(parts[kind]) for kind in parts if kind.startswith("text/"))
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "base64", text)
