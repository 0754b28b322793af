"""`make bench`, what needs torch: training on packed rows, scoring choices, serving many adapters; tiny models with random weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ft_pipeline_tests import lines, tiny
from ft_pipeline_tests.bench_board import sentences

WINDOW_TOKENS = 256


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    import torch

    torch.set_num_threads(2)
    return tiny.base_folder(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def windows() -> list[Any]:
    """32 windows of 256 tokens, packed from rows of 40 tokens on average, the last quarter of each trained."""
    from ft_pipeline.encode.artifact import Window
    from ft_pipeline.encode.pack import pack

    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(3.4, 0.7, 300), 6, WINDOW_TOKENS).astype(int).tolist()
    made = []
    for rows in islice(pack(lengths, window_tokens=WINDOW_TOKENS, seed=0), 32):
        ends = np.cumsum([lengths[r] for r in rows]).tolist()
        made.append(
            Window(
                ids=draw.integers(6, 384, ends[-1]).astype(np.int32),
                spans=tuple((end - max(1, lengths[r] // 4), end) for r, end in zip(rows, ends, strict=True)),
                lengths=tuple(lengths[r] for r in rows),
                row_ids=tuple(f"r{r}" for r in rows),
            )
        )
    return made


def train_ours(folder: Path, windows: list[Any]) -> Callable[[], None]:
    """Rows back to back without padding, attention within each row, the head on trained tokens only."""
    from ft_pipeline.finetune.batches import batch_of
    from ft_pipeline.finetune.methods import causal
    from ft_pipeline.finetune.model import load_trainee

    trainee = load_trainee(folder, tiny.recipe().finetune)

    def work() -> None:
        for start in range(0, len(windows), 8):
            causal.loss_sum(trainee.model, batch_of(windows[start : start + 8], flat=trainee.flat)).backward()

    return work


def train_padded(folder: Path, windows: list[Any]) -> Callable[[], None]:
    """One row a line, padded to the longest of its batch, as a plain collator gives them to transformers and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from ft_pipeline.finetune.batches import single_rows

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    rows = [row for window in windows for row in single_rows(window)]
    size = len(rows) // (len(windows) // 8)

    def work() -> None:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            width = max(len(row.ids) for row in part)
            ids, labels = torch.zeros(len(part), width, dtype=torch.long), torch.full((len(part), width), -100)
            mask = torch.zeros_like(ids)
            for line, row in enumerate(part):
                ids[line, : len(row.ids)] = torch.from_numpy(row.ids)
                mask[line, : len(row.ids)] = 1
                for a, b in row.spans:
                    labels[line, a:b] = ids[line, a:b]
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()

    return work


TRAINERS = {"finetune, packed rows": train_ours, "transformers and PEFT, padded rows": train_padded}


@pytest.mark.parametrize("who", TRAINERS)
def test_training(lap, base: Path, windows: list[Any], who: str) -> None:
    tokens = sum(len(window.ids) for window in windows)
    work = TRAINERS[who](base, windows)
    race = f"Forward and backward over {tokens:,} tokens of {sum(len(w.lengths) for w in windows)} rows, LoRA"
    lap(race, who, work, amount=tokens, unit="tokens", rounds=10)


@pytest.mark.parametrize("who", ["gate.scorer, one pass for all choices", "one pass a choice"])
def test_scoring(lap, base: Path, monkeypatch, who: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ft_pipeline.gate import scorer
    from ft_pipeline.gate.benchmarks import Question

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    contexts, choices = sentences(60, 250, seed=6), sentences(240, 24, seed=7)
    questions = [
        Question(id=str(n), context=c, choices=tuple(f" {x}" for x in choices[4 * n : 4 * n + 4]), answer=0)
        for n, c in enumerate(contexts)
    ]
    if who.startswith("one"):
        monkeypatch.setattr(scorer, "SHARED_CONTEXT", set())
    with torch.inference_mode():
        work = lambda: scorer.answers(model, tokenizer, questions, tick=lambda *_: None)  # noqa: E731
        lap("Scoring 60 questions of 4 choices, tiny model", who, work, amount=60, unit="questions", rounds=6)


@pytest.fixture(scope="module")
def served(tmp_path_factory, base: Path) -> Iterator[tuple[Any, list[str | None]]]:
    """A server with three adapters, and the keys of 12 requests: the base and each adapter, three times."""
    from ft_pipeline.serve.local import PeftServer
    from ft_pipeline.settings import load
    from ft_pipeline.store.artifacts import open_store
    from ft_pipeline.store.catalog import open_catalog

    root = tmp_path_factory.mktemp("served")
    home = replace(load(), home=root, store_uri=str(root / "store"), catalog_url=f"sqlite:///{root / 'c.db'}")
    store = open_store(home)
    published = tiny.publish_base(store, base)
    catalog = open_catalog(home)
    made = [lines.publish_line(store, catalog, base=published, seed=seed)["adapter"] for seed in (1, 2, 3)]
    server = PeftServer(published)
    for adapter in made:
        server.add(adapter)
    yield server, [None, *(adapter.ref.digest for adapter in made)] * 3
    server.close()
    catalog.close()


@pytest.mark.parametrize("who", ["serve.local, all in one batch", "one after the other"])
def test_serving(lap, served, who: str) -> None:
    server, wanted = served
    work = (
        (lambda: [_answer(server, key) for key in wanted])
        if who.startswith("one")
        else lambda: _together(server, wanted)
    )
    told = {"amount": 32 * len(wanted), "unit": "tokens", "rounds": 10}
    lap("Serving 12 requests of 32 tokens to a base and three adapters, tiny model", who, work, **told)


def _answer(server: Any, key: str | None) -> str:
    from ft_pipeline.serve.engine import Generation

    asked = Generation(model="m", prompt=({"role": "user", "content": "which module is it?"},), max_tokens=32)
    return "".join(piece.text for piece in server.answer(asked, key))


def _together(server: Any, wanted: list[str | None]) -> None:
    threads = [threading.Thread(target=_answer, args=(server, key)) for key in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
