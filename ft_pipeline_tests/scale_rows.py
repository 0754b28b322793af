"""A million rows out of real text: sentences of the docstrings that this environment holds, with planted duplicates."""

from __future__ import annotations

import ast
import functools
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MEAN_CHARACTERS = 345
PROMPT_SHARE = 0.25
EXACT_SHARE, NEAR_SHARE = 0.03, 0.05
QUESTIONS = 10_000
"""Sentences that stand in no row: the items of a made-up benchmark."""


@functools.cache
def sentences(limit: int = 60_000) -> list[str]:
    """Sentences of 30 to 200 characters from docstrings of the installed packages, each once, in one order."""
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    found: dict[str, None] = {}
    for path in sorted(p for folder in folders for p in folder.rglob("*.py")):
        for text in _docstrings(path):
            for sentence in " ".join(text.split()).split(". "):
                if 30 <= len(sentence) <= 200 and sentence.isprintable():
                    found[sentence] = None
        if len(found) > limit:
            break
    return list(found)


def rows(number: int, *, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(prompt, response) of about 480 characters together; 3% repeat an earlier row, 5% repeat one with a few words changed."""
    rng, pool = random.Random(seed), sentences()[QUESTIONS:]
    kept: list[tuple[str, str]] = []
    for _ in range(number):
        luck = rng.random()
        if kept and luck < EXACT_SHARE:
            yield rng.choice(kept)
        elif kept and luck < EXACT_SHARE + NEAR_SHARE:
            prompt, response = rng.choice(kept)
            yield prompt, edited(response, rng)
        else:
            row = (
                _text(rng, pool, PROMPT_SHARE * MEAN_CHARACTERS),
                _text(rng, pool, (1 - PROMPT_SHARE) * MEAN_CHARACTERS),
            )
            if len(kept) < 200_000:
                kept.append(row)
            yield row


def edited(text: str, rng: random.Random) -> str:
    """One to three words exchanged: Jaccard .85 to .99 at this length."""
    words = text.split(" ")
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.choice(words)
    return " ".join(words)


def write_alpaca(path: Path, number: int, *, seed: int = 0) -> None:
    """JSON lines `{instruction, input, output}`."""
    with path.open("w", encoding="utf-8") as file:
        for prompt, response in rows(number, seed=seed):
            file.write(json.dumps({"instruction": prompt, "input": "", "output": response}) + "\n")


def write_benchmark(path: Path) -> None:
    """JSON lines `{question}`, 10,000 of two sentences that no row holds."""
    pool, rng = sentences()[:QUESTIONS], random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for sentence in pool:
            file.write(json.dumps({"question": f"{sentence}. {rng.choice(pool)}"}) + "\n")


def write_base(folder: Path, *, vocabulary: int = 32_000) -> None:
    """A base model's folder with a byte-level BPE tokenizer trained on the sentences and a ChatML template; weights of one byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(sentences(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"a")


CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _text(rng: random.Random, pool: list[str], characters: float) -> str:
    parts: list[str] = []
    size, wanted = 0, rng.uniform(0.5, 1.5) * characters
    # two at least: by one alone, a million rows would share their prompts
    while size < wanted or len(parts) < 2:
        parts.append(rng.choice(pool))
        size += len(parts[-1]) + 2
    return ". ".join(parts)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        holds = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module | ast.AsyncFunctionDef)
        if holds and (text := ast.get_docstring(node, clean=False)):
            yield text
