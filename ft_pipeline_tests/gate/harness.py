"""lm-evaluation-harness itself, as the judge of our scores: a model, the same task definitions on the same mirror, its samples."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ft_pipeline.gate import official_rows, scorer, scorer_rows
from ft_pipeline.gate.benchmarks import Question
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


def ours(model: Any, tokenizer: Any, questions: Sequence[Question]) -> Scores:
    """What our scorer gives."""
    import torch

    choices = scorer_rows.encoded(tokenizer, questions, limit=scorer.limit_of(model))
    with torch.inference_mode():
        values = iter(scorer.log_likelihoods(model, choices, lambda *_: None))
    sums = {q.id: [next(values) for _ in q.choices] for q in questions}
    made = [scorer.sample(q, c, sums[q.id]) for q, c in zip(questions, choices, strict=True)]
    return {s.id: (sums[s.id], s.score) for s in made}


def timed(model: Any, tokenizer: Any, task: str, mirror: Path, *, only: Sequence[str]) -> tuple[Scores, float]:
    """What `simple_evaluate` gives, and the CPU seconds of its `loglikelihood` alone."""
    from lm_eval.models.huggingface import HFLM

    plain, spent = HFLM.loglikelihood, []

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        started = time.process_time()
        result = plain(self, *args, **more)
        spent.append(time.process_time() - started)
        return result

    HFLM.loglikelihood = counted
    try:
        return evaluated(model, tokenizer, task, mirror, only=only), sum(spent)
    finally:
        HFLM.loglikelihood = plain


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


def judged(task: str, mirror: Path, answers: dict[str, str]) -> list[bool]:
    """Whether lm_eval, with the last filter of its task, finds each of these written answers right; in the dataset's order."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    paths = official_rows._definitions(Path(lm_eval.__file__).parent / "tasks", OFFICIAL[task].definitions, ())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tasks"
        names = official_rows.write_definitions(place, paths, mirror=mirror, shots=0, cache=Path(folder) / "cache")
        loaded = TaskManager(include_path=str(place), include_defaults=False).load(list(names.values()))["tasks"]
    (one,) = loaded.values()
    one.build_all_requests()
    for instance, text in zip(one.instances, answers.values(), strict=True):
        for end in instance.args[1]["until"]:
            text = text.split(end)[0]
        instance.resps = [text]
    one.apply_filters()
    last = one.config.filter_list[-1]["name"]
    return [bool(one.process_results(i.doc, [i.filtered_resps[last]])["exact_match"]) for i in one.instances]


def raw_samples(
    model: Any,
    tokenizer: Any,
    task: str,
    mirror: Path,
    *,
    shots: int | None = None,
    only: Sequence[str] | None = None,
    **more: Any,
) -> dict[str, list[dict[str, Any]]]:
    """Stratum -> lm_eval's samples."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wanted = OFFICIAL[task]
    if only is None:
        only = mirrors.SUBJECTS if task == "mmlu" else ()
    paths = official_rows._definitions(Path(lm_eval.__file__).parent / "tasks", wanted.definitions, only)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tasks"
        shots = wanted.shots if shots is None else shots
        names = official_rows.write_definitions(place, paths, mirror=mirror, shots=shots, cache=Path(folder) / "cache")
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
        manager = TaskManager(include_path=str(place), include_defaults=False)
        result = lm_eval.simple_evaluate(
            model=harness, tasks=list(names.values()), task_manager=manager, bootstrap_iters=0, log_samples=True, **more
        )
    return {stratum: result["samples"][name] for stratum, name in names.items()}
