"""Scores the look-alikes with lm-evaluation-harness and with our scorer, in one process: `python -m ft_pipeline_tests.bench_gate`.

Prints CPU seconds of both (scoring only: no import, no building of prompts), their ratio, and how far the scores are apart.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = {"mmlu": 40, "hellaswag": 3, "arc_challenge": 2}
"""Of MMLU one subject, which has 246 questions on average. HellaSwag and ARC are one prefix for thousands of questions: few show enough."""
SUBJECT = ("anatomy",)
HIDDEN, LAYERS, VOCABULARY = 512, 6, 8192
H100_TOKENS_PER_SECOND = 25_000
"""8B in bf16 at 40% of 989 TFLOP/s: 0.4 * 989e12 / (2 * 8e9), rounded; arithmetic, not a measurement."""
FULL = {"mmlu": 1_500_000, "hellaswag": 1_710_000, "arc_challenge": 60_000}
"""Tokens of the full sets through our scorer, cl100k-like tokenizer (the design note's count)."""


def main() -> None:
    """Prints one line for each benchmark."""
    os.environ.update(HF_HUB_OFFLINE="1", LMEVAL_LOG_LEVEL="ERROR")
    import torch

    from ft_pipeline_tests.gate import harness

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, tokenizer = harness.trained(
            root / "model", positions=4096, hidden=HIDDEN, layers=LAYERS, vocabulary=VOCABULARY, steps=1
        )
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, load {os.getloadavg()[0]:.1f}")
        totals = [0.0, 0.0]
        for task in sys.argv[1:] or ROWS:
            seconds = _compared(root, task, (model, tokenizer))
            totals = [a + b for a, b in zip(totals, seconds, strict=True)]
        print(f"together: {totals[0]:.1f} against {totals[1]:.1f} CPU-s, {totals[0] / totals[1]:.1f}x")
    minutes = sum(FULL.values()) / H100_TOKENS_PER_SECOND / 60
    print(f"computed: {sum(FULL.values()) / 1e6:.2f} M tokens, {minutes:.1f} min for one arm of an 8B on one H100")


def _compared(root: Path, task: str, loaded: tuple[Any, Any]) -> tuple[float, float]:
    """(CPU seconds of lm_eval, of ours)."""
    from ft_pipeline.acquire import mirror
    from ft_pipeline.gate import official, scorer_rows
    from ft_pipeline.gate.benchmarks import read_questions
    from ft_pipeline.settings import load
    from ft_pipeline.store.artifacts import open_store
    from ft_pipeline_tests.gate import harness, mirrors

    os.environ["FT_HOME"] = str(root / "home")
    where = load()
    store, wanted = open_store(where), official.OFFICIAL[task]
    source = mirrors.MADE[task](root / task, rows=ROWS[task])
    copied = mirror.fetch(wanted.repo, settings=where, store=store, source=str(source))
    only = SUBJECT if task == "mmlu" else ()
    suite = official.build(store, task, mirror=copied.ref, only=only)
    questions, (model, tokenizer) = read_questions(suite), loaded
    started = time.process_time()
    mine = harness.ours(model, tokenizer, questions)
    seconds = time.process_time() - started
    theirs, harness_seconds = harness.timed(model, tokenizer, task, copied.folder / official.MIRROR_FILES, only=only)
    worst = max(abs(a - b) for n, (s, _) in theirs.items() for a, b in zip(s, mine[n][0], strict=True))
    flips = sum(mine[n][1] != score for n, (_, score) in theirs.items())
    encoded = scorer_rows.encoded(tokenizer, questions, limit=4096)
    stock = sum(len(c.ids) - 1 for group in encoded for c in group)
    print(
        f"{task}: {len(questions)} questions, {stock:,} tokens in requests, {scorer_rows.num_tokens(encoded):,} computed; "
        f"lm_eval {harness_seconds:.1f}, ours {seconds:.1f} CPU-s, {harness_seconds / seconds:.1f}x; {flips} flips, max |dlogp| {worst:.1e}"
    )
    return harness_seconds, seconds


if __name__ == "__main__":
    main()
