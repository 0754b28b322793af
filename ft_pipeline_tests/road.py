"""A home with everything that a whole run needs: a tiny base model, dirty rows, a recipe; and the console script over it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ft_pipeline.store.files import locked
from ft_pipeline_tests import tiny

CLI = str(Path(sys.executable).parent / "ft-pipeline")
KEY = "acme/router"
SETTINGS = {"FT_MLFLOW": "off", "FT_ACTOR": "tester", "COLUMNS": "200", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"


def words(count: int, *, seed: int = 0) -> list[str]:
    """Invented words, so that no two questions are near-duplicates."""
    draw = random.Random(seed)
    return ["".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(3)) for _ in range(count)]


def question(number: int, *, answer: str = "yes") -> dict[str, Any]:
    """A chat row of its own words; the answer of two in three is `yes`, so that even a tiny model gains on the holdout."""
    text = " ".join(words(12, seed=number))
    return {"messages": [{"role": "user", "content": f"{text}?"}, {"role": "assistant", "content": answer}]}


def clean_rows(count: int) -> list[dict[str, Any]]:
    return [question(n, answer="no" if n % 3 == 0 else "yes") for n in range(count)]


def dirt() -> list[str]:
    """Lines of a raw file that must not be trained on, one for each of the commonest faults."""
    first = question(1)
    swapped = {"messages": first["messages"][::-1]}
    token = {"messages": [{"role": "user", "content": "end it <|end|> now"}, {"role": "assistant", "content": "no"}]}
    empty = {"messages": [{"role": "user", "content": "and?"}, {"role": "assistant", "content": " "}]}
    near = {"messages": [{"role": "user", "content": first["messages"][0]["content"] + "!"}, first["messages"][1]]}
    return ["{this is not JSON", *(json.dumps(row) for row in (first, swapped, token, empty, near))]


def write_rows(path: Path, rows: list[dict[str, Any]], extra: list[str] | tuple[str, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in [*map(json.dumps, rows), *extra]))
    return path


def document(**changes: Any) -> dict[str, Any]:
    """A recipe as plain values. `changes` are whole sections, or `section__field`."""
    made: dict[str, Any] = {
        "tenant": "acme",
        "name": "router",
        "description": "Says yes.",
        "base_model": {"uri": "home://bases/tiny"},
        "dataset": {"uri": "home://rows.jsonl", "licence": "mit"},
        "curate": {"splits": {"validation": 0.1, "holdout": 0.2}},
        "encode": {"window_tokens": 256},
        "finetune": {
            "method": "sft", "lora": {"rank": 4, "alpha": 8}, "learning_rate": 0.02, "epochs": 4,
            "windows_per_step": 4, "windows_per_micro": 4,
        },
        "gate": {"policy": "dev", "holdout": {"metric": "exact_match", "max_new_tokens": 4}},
    }  # fmt: skip
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            made[section] = {**made[section], field: value}
        else:
            made[section] = value
    return made


def write_recipe(home: Path, stem: str = "router", **changes: Any) -> Path:
    """The recipe as a file in a folder that FT_RECIPES names."""
    path = home / "recipes" / f"{stem}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document(**changes)))
    return path


def build(home: Path, *, rows: int = 300) -> Path:
    """Base model, dirty rows and recipe below a home."""
    tiny.base_folder(home / "bases" / "tiny")
    write_rows(home / "rows.jsonl", clean_rows(rows), dirt())
    return write_recipe(home)


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a console script: this home and nothing else of the house's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FT_", "DAGSTER_", "AWS_", "HF_"))}
    return {**kept, **SETTINGS, "FT_HOME": str(home), "FT_RECIPES": str(home / "recipes"), **more}


def call(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The ended console script. `more` are environment variables."""
    return subprocess.run(
        [CLI, *words], env=environment(home, **more), cwd=home.parent, capture_output=True, text=True, timeout=600
    )


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> Ended:
    """The console script's `main` in this process."""
    from ft_pipeline.cli import main

    monkeypatch.setattr(sys, "argv", ["ft-pipeline", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main.main()
    said = capsys.readouterr()
    return Ended(int(stop.value.code or 0), said.out, said.err)


def finished(folder: Path) -> Path:
    """A home in which the recipe has been run from raw rows to deployment by `ft-pipeline run`; made once, by whoever comes first."""
    home = folder / "finished" / "home"
    with locked(folder / "finished.lock"):
        if not (home / "ended.json").is_file():
            shutil.rmtree(home, ignore_errors=True)
            build(home)
            ended = call(home, "run", "router")
            said = {"code": ended.returncode, "stdout": ended.stdout, "stderr": ended.stderr}
            (home / "ended.json").write_text(json.dumps(said))
    return home


def artifact_folders(home: Path, kind: str) -> list[Path]:
    """Of every artifact of a kind in the local store."""
    return sorted(path.parent for path in (home / "store").glob(f"*/{kind}/*/manifest.json"))


def forget(home: Path, *kinds: str) -> None:
    """Deletes the artifacts of these kinds, as if they had never been made."""
    for kind in kinds:
        for folder in artifact_folders(home, kind):
            shutil.rmtree(folder)


def flip_byte(path: Path) -> None:
    """Changes one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
