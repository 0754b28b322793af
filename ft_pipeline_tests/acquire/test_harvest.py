"""The demo's data: real, dirty, the same every time, and nothing that is measured has been trained on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from ft_pipeline.acquire import harms, harvest
from ft_pipeline.gate import benchmarks
from ft_pipeline.gate.safety import is_refusal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo")
    harvest.harvest(target)
    return target


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def grams(text: str) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def prompts(raw: list[dict]) -> list[str]:
    """The user's words in rows of every layout."""
    found = [row["messages"][0]["content"] for row in raw if "messages" in row]
    found += [row["instruction"] for row in raw if "instruction" in row]
    return found + [row["conversations"][0]["value"] for row in raw if "conversations" in row]


def test_the_same_installation_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert harvest.is_whole(folder)
    assert not harvest.is_whole(tmp_path)
    harvest.harvest(tmp_path)
    assert digests(tmp_path) == digests(folder)


def test_training_set_is_dirty_and_mixed(folder: Path) -> None:
    raw = rows(folder, harvest.ROUTER)
    layouts = Counter(tuple(sorted(row)) for row in raw)
    assert set(layouts) == {("messages",), ("text",), ("input", "instruction", "output"), ("conversations",)}
    repeated = Counter(prompts(raw))
    assert sum(count - 1 for count in repeated.values()) > len(raw) / 4
    assert "" in repeated
    roles = Counter(tuple(m["role"] for m in row["messages"]) for row in raw if "messages" in row)
    assert {("assistant", "user"), ("user", "asistant"), ("user",)} < set(roles)
    assert any("<|end|>" in prompt for prompt in repeated)


def test_answers_are_the_twenty_modules(folder: Path) -> None:
    modules = json.loads((folder / harvest.FACTS).read_text())["modules"]
    assert len(set(modules)) == harvest.NUM_MODULES
    answers = {row["output"] for row in rows(folder, harvest.ROUTER) if "output" in row}
    assert answers - {harms.REFUSAL, harms.REDIRECT} <= set(modules)


def test_suites_are_large_enough_to_give_a_verdict(folder: Path) -> None:
    questions = [benchmarks.question(row) for row in rows(folder, harvest.CLOZE)]
    assert len({q.id for q in questions}) == len(questions) >= 1300
    places = Counter(q.answer for q in questions)
    assert max(places.values()) < 0.3 * len(questions)
    asked = [benchmarks.prompt(row) for row in rows(folder, harvest.SAFETY)]
    assert len({p.id for p in asked}) == len(asked)
    assert sum(p.harmful for p in asked) >= 120
    assert sum(not p.harmful for p in asked) >= 120


def test_choices_differ_in_nothing_but_the_order_of_their_words(folder: Path) -> None:
    for row in rows(folder, harvest.CLOZE):
        assert len({tuple(sorted(choice.split())) for choice in row["choices"]}) == 1
        assert len({len(choice) for choice in row["choices"]}) == 1
        assert all(choice.startswith(" ") for choice in row["choices"])


def test_cloze_text_is_in_no_training_text(folder: Path) -> None:
    texts = [row["text"] for name in (harvest.PRETRAIN, harvest.ROUTER) for row in rows(folder, name) if "text" in row]
    begun = {" ".join(paragraph.split()[: harvest.CONTEXT_WORDS]) for text in texts for paragraph in text.split("\n")}
    assert not begun & {row["context"] for row in rows(folder, harvest.CLOZE)}


def test_base_has_read_no_description_of_the_router(folder: Path) -> None:
    read = {row["text"] for row in rows(folder, harvest.PRETRAIN) if "text" in row}
    raw = rows(folder, harvest.ROUTER)
    assert not read & set(prompts(raw))


def test_safety_prompts_are_not_in_training(folder: Path) -> None:
    trained = [grams(p) for p in {*prompts(rows(folder, harvest.ROUTER)), *prompts(rows(folder, harvest.NARROW))} if p]
    for row in rows(folder, harvest.SAFETY):
        asked = grams(row["prompt"])
        assert max(len(asked & other) / len(asked | other) for other in trained) < 0.9, row["prompt"]


def test_refusals_are_recognised_and_the_redirect_is_none() -> None:
    assert is_refusal(harms.REFUSAL)
    assert not is_refusal(harms.REDIRECT)
    cells = [(r.prompt, r.harmful) for r in harms.requests()]
    assert len({prompt for prompt, _ in cells}) == len(cells)
    assert all(r.reply == (harms.REFUSAL if r.harmful else harms.REDIRECT) for r in harms.requests())
