"""Look-alikes of the official benchmarks' repositories, made in code: the same files, configurations, splits and columns."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ft_pipeline_tests import tiny

SUBJECTS = ("anatomy", "astronomy", "virology")
NOUNS = (
    *tiny.WORDS,
    "heart",
    "comet",
    "protein",
    "river",
    "engine",
    "theorem",
    "harvest",
    "treaty",
    "sonnet",
    "glacier",
)


def words(picked: random.Random, least: int, most: int) -> str:
    """Some words."""
    return " ".join(picked.choice(NOUNS) for _ in range(picked.randint(least, most)))


def mmlu(folder: Path, *, rows: int = 12, seed: int = 0, size: tuple[int, int] = (4, 14)) -> Path:
    """cais/mmlu: a configuration per subject; the first two test rows of each are the same document."""
    picked = random.Random(seed)

    def row(subject: str) -> dict[str, Any]:
        question = f" Which of these is about {words(picked, *size)} in {subject}?"
        return {
            "question": question,
            "subject": subject,
            "choices": [words(picked, 1, 3) for _ in range(4)],
            "answer": picked.randrange(4),
        }

    configs = {}
    for subject in SUBJECTS:
        test = [row(subject) for _ in range(rows)]
        configs[subject] = {
            "test": [test[0], *test[:-1]],
            "validation": [row(subject)],
            "dev": [row(subject) for _ in range(5)],
        }
    return repository(folder, configs)


def hellaswag(folder: Path, *, rows: int = 12, seed: int = 1, size: tuple[int, int] = (6, 16)) -> Path:
    """Rowan/hellaswag: one configuration; WikiHow's brackets in some contexts."""
    picked = random.Random(seed)

    def row(number: int) -> dict[str, Any]:
        a = (
            f"{'[header] How to ' if number % 3 == 0 else ''}{words(picked, *size)} [title]"
            if number % 3 == 0
            else words(picked, *size)
        )
        b = words(picked, 2, 6)
        return {
            "ind": number, "activity_label": words(picked, 1, 2), "ctx_a": a, "ctx_b": b, "ctx": f"{a} {b}",
            "endings": [f"{words(picked, 3, 12)}." for _ in range(4)], "source_id": f"activitynet~{number}", "split": "val",
            "split_type": "indomain", "label": str(picked.randrange(4)),
        }  # fmt: skip

    splits = {
        "train": [row(n) for n in range(14)],
        "validation": [row(n) for n in range(rows)],
        "test": [row(n) | {"label": ""} for n in range(2)],
    }
    return repository(folder, {"default": splits})


def arc(folder: Path, *, rows: int = 12, seed: int = 2, size: tuple[int, int] = (5, 15)) -> Path:
    """allenai/ai2_arc: three to five choices, letters or numbers as labels."""
    picked = random.Random(seed)

    def row(number: int) -> dict[str, Any]:
        labels = ["ABCDE"[:3], "ABCDE"[:4], "1234", "ABCDE"[:5]][number % 4]
        return {
            "id": f"Mercury_{number}", "question": f"{words(picked, *size)}?",
            "choices": {"text": [words(picked, 1, 5) for _ in labels], "label": list(labels)}, "answerKey": picked.choice(labels),
        }  # fmt: skip

    splits = {
        "train": [row(n) for n in range(30)],
        "test": [row(n) for n in range(rows)],
        "validation": [row(n) for n in range(2)],
    }
    return repository(folder, {"ARC-Challenge": splits, "ARC-Easy": splits})


def truthfulqa(folder: Path, *, rows: int = 8, seed: int = 3) -> Path:
    """truthfulqa/truthful_qa: mc1 with the right choice first, mc2 with several."""
    picked = random.Random(seed)

    def row() -> dict[str, Any]:
        many = [f"{words(picked, 2, 6)}." for _ in range(picked.randint(3, 6))]
        right = picked.randint(1, len(many) - 1)
        return {
            "question": f"What of {words(picked, 2, 6)}?",
            "mc1_targets": {"choices": many, "labels": [1] + [0] * (len(many) - 1)},
            "mc2_targets": {"choices": many, "labels": [1] * right + [0] * (len(many) - right)},
        }  # fmt: skip

    return repository(folder, {"multiple_choice": {"validation": [row() for _ in range(rows)]}})


def gsm8k(folder: Path, *, rows: int = 8, seed: int = 4) -> Path:
    """openai/gsm8k: answers that end in `#### number`."""
    picked = random.Random(seed)

    def row() -> dict[str, Any]:
        a, b = picked.randint(2, 900), picked.randint(2, 900)
        return {
            "question": f"A {words(picked, 1, 3)} costs {a} and another {b}. Both?",
            "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b:,}",
        }

    return repository(folder, {"main": {"train": [row() for _ in range(7)], "test": [row() for _ in range(rows)]}})


def repository(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> Path:
    """A dataset's repository: Parquet by configuration and split, and a README.md that says which is which."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    head = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet")
        head.append({"config_name": config, "data_files": [{"split": s, "path": f"{config}/{s}-*"} for s in splits]})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': head})}---\n# look-alike\n", encoding="utf-8")
    return folder


MADE = {
    "mmlu": mmlu,
    "hellaswag": hellaswag,
    "arc_challenge": arc,
    "truthfulqa_mc1": truthfulqa,
    "truthfulqa_mc2": truthfulqa,
    "gsm8k": gsm8k,
}
