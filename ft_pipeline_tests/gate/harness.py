"""lm-evaluation-harness itself, as the judge of our scores: a model, the same task definitions on the same mirror, its samples."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ft_pipeline.gate import official_rows
from ft_pipeline.gate.official import OFFICIAL
from ft_pipeline_tests.gate import mirrors

Scores = dict[str, tuple[list[float], float]]
"""Id of a question -> log-likelihoods of its choices, score."""


def trained(
    path: Path, *, positions: int, hidden: int = 64, layers: int = 2, vocabulary: int = 384, steps: int = 25
) -> Any:
    """A Llama trained for a moment on words of the look-alikes, and its tokenizer."""
    import random

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ft_pipeline_tests import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.tokenizer_folder(path))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 16, num_key_value_heads=hidden // 32, max_position_embeddings=positions,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer, picked = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(0)
    for _ in range(steps):
        texts = [f"Question: {mirrors.words(picked, 4, 9)}?\nAnswer: {mirrors.words(picked, 1, 4)}" for _ in range(8)]
        ids = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
        model(**ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def evaluated(model: Any, tokenizer: Any, task: str, mirror: Path, *, shots: int | None = None, **more: Any) -> Scores:
    """What `lm_eval.simple_evaluate` gives, by the ids of our suites."""
    samples = raw_samples(model, tokenizer, task, mirror, shots=shots, **more)
    metric = {"mc2": "acc"}.get(OFFICIAL[task].metric, OFFICIAL[task].metric)
    scores: Scores = {}
    for stratum, found in samples.items():
        seen: Counter[str] = Counter()
        for one in sorted(found, key=lambda s: s["doc_id"]):
            name = f"{stratum or OFFICIAL[task].repo.split('/')[1]}/{one['doc_hash'][:16]}/{seen[one['doc_hash']]}"
            seen[one["doc_hash"]] += 1
            scores[name] = ([value for value, _ in one["filtered_resps"]], float(one[metric]))
    return scores


def raw_samples(
    model: Any, tokenizer: Any, task: str, mirror: Path, *, shots: int | None = None, batch: int = 8, **more: Any
) -> dict[str, list[dict[str, Any]]]:
    """Stratum -> lm_eval's samples."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wanted = OFFICIAL[task]
    only = mirrors.SUBJECTS if task == "mmlu" else ()
    paths = official_rows._definitions(Path(lm_eval.__file__).parent / "tasks", wanted.definitions, only)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tasks"
        shots = wanted.shots if shots is None else shots
        names = official_rows.write_definitions(place, paths, mirror=mirror, shots=shots, cache=Path(folder) / "cache")
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        manager = TaskManager(include_path=str(place), include_defaults=False)
        result = lm_eval.simple_evaluate(
            model=harness, tasks=list(names.values()), task_manager=manager, bootstrap_iters=0, log_samples=True, **more
        )
    return {stratum: result["samples"][name] for stratum, name in names.items()}
