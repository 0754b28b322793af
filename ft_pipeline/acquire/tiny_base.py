"""Trains the demo's base model: a byte-level BPE tokenizer with a chat template, and a Llama of 0.9 M parameters, on documentation.

Run as a child process: `python -m ft_pipeline.acquire.tiny_base --text pretrain.jsonl --out FOLDER`. What comes out is an ordinary
Hugging Face checkpoint folder, so that everything downstream is the same code as for an 8B model. The same text, seed, steps and
thread count give the same bytes; another seed or step count is another version of the same base.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ft_pipeline.errors import DataError
from ft_pipeline.workers.messages import Listener, Mailbox, ignore, log, progress

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, SYSTEM)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}
{%- else -%}
<|{{ message['role'] }}|>{{ message['content'] }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
VOCABULARY = 2048
STEPS = 560
WINDOWS_PER_STEP, WINDOW_TOKENS = 8, 256
MATRIX_RATE, VECTOR_RATE, WARMUP_STEPS = 0.02, 4e-3, 15
CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
---
# tiny-docs

A Llama of {parameters:,} parameters that has read the documentation inside a Python installation: made on this machine by
`ft-pipeline base build-tiny` so that a pipeline can be tried without a network. It writes no sense and serves no purpose but that.

- Text: {documents:,} docstrings and help topics, {tokens:,} tokens. Licences of the text: the Python standard library (PSF-2.0), matplotlib (its
  own PSF-based licence), networkx, numpy, pandas, scipy, scikit-learn (BSD-3-Clause), polars, SQLAlchemy (MIT).
- Tokenizer: byte-level BPE, {vocabulary:,} tokens; the chat template marks the assistant's tokens (`{{% generation %}}`).
- Training: {steps} steps of {windows} windows of {window} tokens, Muon {matrix_rate} and AdamW {vector_rate}, cosine, seed {seed}; final loss {loss:.2f} nats per token.
"""


def build(folder: Path, text: Path, *, seed: int = 0, steps: int = STEPS, listener: Listener = ignore) -> Path:
    """Trains on a JSONL file of `{text}` and `{messages}` rows and returns the checkpoint folder, complete or not there at all.

    About 75 s on two free cores. Raises DataError when the file holds too little text for one step.
    """
    rows = [json.loads(line) for line in text.read_text(encoding="utf-8").splitlines()]
    tokenizer = train_tokenizer(rows)
    tokens = _stream(tokenizer, rows, seed)
    if len(tokens) < 2 * WINDOW_TOKENS:
        raise DataError(f"{text} holds {len(tokens)} tokens", cure="harvest again: `ft-pipeline demo`")
    log(listener, f"tokenizer of {len(tokenizer)} tokens; {len(tokens):,} tokens of text")
    model = new_model(tokenizer, seed)
    loss = train(model, tokens, steps=steps, listener=listener)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()), documents=len(rows), tokens=len(tokens), vocabulary=len(tokenizer),
        steps=steps, windows=WINDOWS_PER_STEP, window=WINDOW_TOKENS, matrix_rate=MATRIX_RATE, vector_rate=VECTOR_RATE, seed=seed, loss=loss,
    )  # fmt: skip
    return _save(folder, model, tokenizer, card=card)


def train_tokenizer(rows: Sequence[dict[str, Any]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the chat template; `<|end|>` ends a turn and a document, and so stands before one (as in GPT-2)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    bpe.train_from_iterator((part for row in rows for part in _contents(row)), trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, bpe.token_to_id(END))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=2 * WINDOW_TOKENS, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Random weights: 3 layers, 128 wide, tied embeddings. Wider or deeper is slower than the demo's two minutes allow."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=2 * WINDOW_TOKENS, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def train(model: LlamaForCausalLM, tokens: torch.Tensor, *, steps: int, listener: Listener = ignore) -> float:
    """Trains in place on windows cut from the stream; the mean loss of the last tenth of the steps, nats per token."""
    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: _share_of_rate(step, steps)) for one in optimizers]
    losses, started = [], time.monotonic()
    model.train()
    for step, windows in enumerate(_batches(tokens, steps), 1):
        model.zero_grad()
        loss = model(input_ids=windows, labels=windows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in (*optimizers, *schedules):
            one.step()
        losses.append(loss.item())
        speed = step * WINDOWS_PER_STEP * WINDOW_TOKENS / (time.monotonic() - started)
        progress(
            listener,
            "base model",
            step,
            total=steps,
            unit="step",
            loss=round(losses[-1], 3),
            tokens_per_second=round(speed),
        )
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _optimizers(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan 2024) for the matrices of the layers, AdamW for embeddings and norms.

    After 0.2 M tokens 5.3 nats, where AdamW alone needs 1.2 M tokens for it: what makes a base of two minutes worth measuring.
    """
    layers = dict(model.model.layers.named_parameters())
    matrices = [p for p in layers.values() if p.dim() == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return (
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )


def _share_of_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    done = min(1.0, step / max(1, steps))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _batches(tokens: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """Windows [8, 256] in the stream's order, again from the start with another offset when it is used up."""
    size = WINDOWS_PER_STEP * WINDOW_TOKENS
    for step in range(steps):
        places = (torch.arange(size) + step * size + step * size // len(tokens) * 97) % len(tokens)
        yield tokens[places].view(WINDOWS_PER_STEP, WINDOW_TOKENS)


def _stream(tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]], seed: int) -> torch.Tensor:
    """All rows as one stream of ids, in an order drawn by the seed, each ended by `<|end|>`."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = [_rendered(tokenizer, rows[i]) for i in order]
    return torch.tensor(
        [i for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] for i in ids]
    )


def _rendered(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> str:
    return (
        str(tokenizer.apply_chat_template(row["messages"], tokenize=False)) if "messages" in row else row["text"] + END
    )


def _contents(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]] if "messages" in row else [row["text"]]


def _save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, card: str) -> Path:
    """Writes beside the folder, then renames: a base model is whole or absent."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tokenizer.save_pretrained(draft)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(draft)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(draft)
    # not model.save_pretrained: it imports accelerate and deepspeed, 12 s
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    (draft / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    return draft.rename(folder)


def main() -> None:
    """The child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="pretrain.jsonl of the harvest")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--messages", type=Path, help="file for progress messages")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    listener = Mailbox(given.messages) if given.messages else ignore
    build(given.out, given.text, seed=given.seed, steps=given.steps, listener=listener)


if __name__ == "__main__":
    main()
