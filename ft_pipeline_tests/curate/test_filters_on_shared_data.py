"""The filters on real rows, where they are at hand: hardly anything is said of good ones, and what is said is right."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from ft_pipeline.curate.flags import Batch
from ft_pipeline.curate.language import language, open_language
from ft_pipeline.curate.pii import pii
from ft_pipeline.curate.quality import quality
from ft_pipeline.curate.toxicity import open_toxicity, toxicity
from ft_pipeline.recipe import Language, Pii, Quality, Toxicity


@pytest.fixture(scope="module")
def shared_data() -> Path:
    root = Path(os.environ.get("FT_SHARED_DATA") or Path(__file__).parents[2] / "../shared/data")
    if not (root / "MANIFEST.tsv").is_file():
        pytest.skip(f"no shared data at {root}: set FT_SHARED_DATA")
    return root


def batch_of(pairs):
    contents = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    return Batch(["completion"] * len(contents), contents, [p for p, _ in pairs], [c for _, c in pairs])


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gsm8k(root):
    return batch_of([(row["question"], row["answer"]) for row in lines(root / "gsm8k/train.jsonl")])


def toolformer(root):
    rows = json.loads((root / "gpteacher/toolformer-dedupe-only-dataset.json").read_text(encoding="utf-8"))
    return batch_of([(f"{r['instruction']}\n{r['input']}", r.get("output") or r.get("response") or "") for r in rows])


def seed(root):
    rows = lines(root / "self_instruct_seed/seed_tasks.jsonl") + lines(
        root / "self_instruct_seed/user_oriented_instructions.jsonl"
    )
    return batch_of(
        [(f"{row['instruction']}\n{one['input']}", one["output"]) for row in rows for one in row["instances"]]
    )


@pytest.mark.parametrize(("rows", "num_rows"), [(gsm8k, 7473), (toolformer, 7673), (seed, 427)])
def test_good_rows_are_of_good_quality(shared_data, rows, num_rows):
    batch = rows(shared_data)
    flags, scores = quality(batch, Quality(policy="reject"))
    assert len(scores) == num_rows
    assert [f for f in flags if f.action == "drop"] == []
    assert len(flags) <= 0.001 * num_rows


def test_personal_data_of_the_seed_tasks(shared_data):
    flags, _ = pii(seed(shared_data), Pii())
    assert Counter(f.evidence["kind"] for f in flags) == {"email": 9, "phone": 3}
    assert pii(gsm8k(shared_data), Pii())[0] == []


def test_business_secrets_are_no_personal_data(shared_data):
    rows = lines(shared_data / "llm_foundry_icl/enterprise_pii_classification.jsonl")
    flags, _ = pii(batch_of([("", row["query"]) for row in rows]), Pii())
    assert Counter(f.evidence["kind"] for f in flags) == {"email": 7, "phone": 2}
    assert {rows[f.row]["gold"] for f in flags} == {0}


def test_languages_of_the_seed_tasks(shared_data):
    config = Language(keep=("en",))
    flags = language(seed(shared_data), config, open_language(config))
    assert Counter(f.evidence["language"] for f in flags) == {"fr": 2, "ar": 1, "it": 1, "zh": 1}


def test_the_bad_words_of_ldnoobw(shared_data):
    words = open_toxicity(shared_data / "ldnoobw/en")
    assert len(words.words) == 403
    toxic = {flag.row for flag in toxicity(gsm8k(shared_data), Toxicity(words="x"), words)}
    assert 0 < len(toxic) / 7473 < 0.002
