"""Official benchmarks: built from mirrors, scored as lm-evaluation-harness scores them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ft_pipeline.acquire import mirror
from ft_pipeline.gate import official, scorer, scorer_rows
from ft_pipeline.gate.benchmarks import read_questions
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline_tests.gate import harness, mirrors

CHOSEN = ("mmlu", "hellaswag", "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2")


@pytest.fixture
def built(home: Settings, store: Store, tmp_path: Path) -> Callable[..., Artifact]:
    """Builds the suite of a benchmark from a look-alike's mirror."""

    def made(task: str, **options) -> Artifact:
        source = tmp_path / "repositories" / task
        if not source.is_dir():
            mirrors.MADE[task](source, **options.pop("look", {}))
        found = mirror.fetch(official.OFFICIAL[task].repo, settings=home, store=store, source=str(source))
        only = options.pop("only", mirrors.SUBJECTS if task == "mmlu" else ())
        return official.build(store, task, mirror=found.ref, only=only, **options)

    return made


def mirror_of(store: Store, suite: Artifact) -> Path:
    return store.fetch(suite.manifest.parents["mirror"]).folder / official.MIRROR_FILES


def ours(model, tokenizer, suite: Artifact) -> harness.Scores:
    import torch

    questions = read_questions(suite)
    choices = scorer_rows.encoded(tokenizer, questions, limit=scorer.limit_of(model))
    with torch.inference_mode():
        values = iter(scorer.log_likelihoods(model, choices, lambda *_: None))
    sums = {q.id: [next(values) for _ in q.choices] for q in questions}
    made = [scorer.sample(q, c, sums[q.id]) for q, c in zip(questions, choices, strict=True)]
    return {s.id: (sums[s.id], s.score) for s in made}


@pytest.mark.slow
@pytest.mark.parametrize("positions", [4096, 320])
def test_every_score_is_the_one_of_lm_eval(built, store, tmp_path, positions) -> None:
    """320: longer prompts lose tokens on the left, as lm_eval cuts them."""
    model, tokenizer = harness.trained(tmp_path / "model", positions=positions)
    for task in CHOSEN:
        suite = built(task)
        theirs = harness.evaluated(model, tokenizer, task, mirror_of(store, suite))
        mine = ours(model, tokenizer, suite)
        assert mine.keys() == theirs.keys() and len(mine) == suite.manifest.counts["rows"]
        for name, (sums, score) in theirs.items():
            assert mine[name][0] == pytest.approx(sums, abs=1e-4), (task, name)
            assert mine[name][1] == pytest.approx(score, abs=1e-4 if task == "truthfulqa_mc2" else 0), (task, name)
        assert 0 < sum(score for _, score in mine.values()) < len(mine)
