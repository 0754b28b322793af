"""The tiny base is an ordinary Hugging Face checkpoint, the same for the same seed and steps, another one otherwise."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ft_pipeline import settings as settings_module
from ft_pipeline.workers.messages import read_messages

pytestmark = pytest.mark.slow
WORDS = (
    "read",
    "the",
    "file",
    "and",
    "return",
    "each",
    "line",
    "as",
    "a",
    "string",
    "or",
    "raise",
    "an",
    "error",
    "when",
    "it",
    "ends",
)


def sentence(place: int) -> str:
    return " ".join(WORDS[(place * step) % len(WORDS)] for step in range(1, 14)) + f" {place}."


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict] = [{"text": f"{sentence(n)}\n{sentence(n + 7)}"} for n in range(300)]
    turns = [{"role": "user", "content": sentence(1)}, {"role": "assistant", "content": sentence(2)}]
    path = tmp_path_factory.mktemp("text") / "pretrain.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": turns}]))
    return path


def build(text: Path, folder: Path, *arguments: str) -> Path:
    """As the command line does it: a child process."""
    command = [
        sys.executable,
        "-m",
        "ft_pipeline.acquire.tiny_base",
        "--text",
        str(text),
        "--out",
        str(folder),
        "--threads",
        "1",
    ]
    subprocess.run([*command, *arguments], check=True, env=settings_module.child_environment(settings_module.load()))
    return folder


@pytest.fixture(scope="module")
def base(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bases") / "tiny"
    return build(text, target, "--steps", "4", "--messages", str(target.parent / "messages.jsonl"))


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_folder_is_a_whole_checkpoint(base: Path) -> None:
    assert {p.name for p in base.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "README.md",
    }  # fmt: skip
    assert "PSF-2.0" in (base / "README.md").read_text()
    assert str(base.parent) not in "".join(
        p.read_text() for p in base.iterdir() if p.suffix in (".json", ".md", ".jinja")
    )


def test_transformers_loads_it_and_an_answer_ends(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    assert tokenizer.eos_token == "<|end|>" != tokenizer.pad_token
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    turns = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    marked = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    trained = [i for i, kept in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if kept]
    assert tokenizer.decode(trained) == "c<|end|>"
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
    assert asked == "<|user|>a b<|end|><|assistant|>"


def test_same_seed_same_bytes(base: Path, text: Path, tmp_path: Path) -> None:
    again = build(text, tmp_path / "again", "--steps", "4")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in base.iterdir()}


def test_other_seed_or_steps_is_another_base(base: Path, text: Path, tmp_path: Path) -> None:
    from ft_pipeline.acquire import tiny_base

    made = [
        tiny_base.build(tmp_path / "seed", text, seed=1, steps=2),
        tiny_base.build(tmp_path / "steps", text, steps=1),
    ]
    assert len({weights(folder) for folder in (*made, base)}) == 3


def test_progress_reaches_its_end(base: Path) -> None:
    said = [message for message, _ in read_messages(base.parent / "messages.jsonl", 0)]
    steps = [message for message in said if message.kind == "progress"]
    assert steps[-1].done == steps[-1].total == 4
    assert steps[-1].facts["loss"] > 0
