"""Tiny things made in code in under two seconds: a tokenizer with a chat template, a Llama, chat rows, a base_model artifact."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

from ft_pipeline.recipe import BaseModel, Dataset, Encode, Finetune, Gate, Lora, Recipe
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import sha256_file, sha256_json
from ft_pipeline.store.manifest import Spec
from ft_pipeline.workers.child import Body
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.messages import Mailbox

USER, ASSISTANT, SYSTEM, TOOL, END, PAD = "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>", "<|pad|>"
SPECIAL = [PAD, END, USER, ASSISTANT, SYSTEM, TOOL]
TEMPLATE = """\
{%- if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{{ message['content'] or '' }}\
{%- if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif -%}
<|end|>{% endgeneration %}
{%- else -%}
<|{{ message['role'] }}|>{{ message['content'] }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
PLAIN_TEMPLATE = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
"""The same text without generation markers, as most models of the Hub have it."""
SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "which module reads and writes zip archives? zipfile",
    "return the sum of the numbers, or zero when there are none",
    "open a file, read each line and close it again",
    "what concept is mentioned first, and what is mentioned last?",
    "I cannot help with that request.",
)
WORDS = ("zipfile", "json", "socket", "math", "random", "logging", "decimal", "ssl")


def tokenizer_folder(path: Path, *, template: str = TEMPLATE) -> Path:
    """A byte-level BPE tokenizer of 384 tokens as a Hugging Face folder, with `chat_template.jinja`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*SENTENCES, *WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = template
    path.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(path)
    return path


def base_folder(path: Path, seed: int = 0, *, template: str = TEMPLATE) -> Path:
    """A whole base model as a Hugging Face folder: the tokenizer and a 2-layer Llama, 64 wide, 0.1 M random weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer_folder(path, template=template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    # not model.save_pretrained: it imports accelerate and deepspeed, 12 s
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def chat_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Chat rows whose answer follows from the question: a tiny model learns them in a few steps."""
    return [{"messages": _exchange(i, seed)} for i in range(count)]


def pair_rows(count: int) -> list[dict[str, Any]]:
    """Preference rows: the module that is meant is chosen, another one, said at length, is rejected."""
    rows = []
    for i in range(count):
        question, answer = _exchange(4 * i, 0)[:2]
        other = WORDS[(WORDS.index(answer["content"]) + 1 + i % 3) % len(WORDS)]
        wrong = {"role": "assistant", "content": f"{other}, I think"}
        rows.append({"prompt": [question], "chosen": [answer], "rejected": [wrong]})
    return rows


def labelled_rows(count: int) -> list[dict[str, Any]]:
    """Labelled rows: of two completions every other one is wanted."""
    pairs = pair_rows(count)
    return [
        {"prompt": p["prompt"], "completion": p["rejected" if i % 2 else "chosen"], "label": i % 2 == 0}
        for i, p in enumerate(pairs)
    ]


def stepwise_rows(count: int) -> list[dict[str, Any]]:
    """Solutions of two to four steps: a right one names a module, a wrong one only thinks so."""
    rows = []
    for i in range(count):
        question = _exchange(4 * i, 0)[0]
        labels = [(i * 7 + step * 5 + i // 3) % 11 < 6 for step in range(2 + i % 3)]
        words = [WORDS[(i + 3 * step) % len(WORDS)] for step in range(len(labels))]
        steps = [word if label else f"{word}, I think" for word, label in zip(words, labels, strict=True)]
        rows.append({"prompt": [question], "steps": steps, "labels": labels})
    return rows


def publish_base(store: Store, folder: Path) -> Artifact:
    """The folder as a `base_model` artifact with `digests.json`, shaped as acquire publishes it."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    content = sha256_json([[n, sha256_file(folder / n)] for n in names])
    spec = Spec(kind="base_model", config={"content": content}, parents={}, code="tiny")
    if found := store.find(spec):
        return found
    with store.publish(spec) as draft:
        for name in names:
            shutil.copyfile(folder / name, draft.folder / name)
        digests = {
            c: _class_digest(folder, names, c) for c in ("weights", "tokenizer", "chat_template", "config", "docs")
        }
        (draft.folder / "digests.json").write_text(json.dumps(digests, sort_keys=True))
    return _published(draft.artifact)


def publish_curated(store: Store, rows: list[dict[str, Any]], *, validation: int = 0, shape: str = "chat") -> Artifact:
    """Rows as a `curated_dataset` artifact: the last `validation` rows are the validation split, the holdout is empty."""
    lines = [json.dumps(row, sort_keys=True, separators=(",", ":")) for row in rows]
    spec = Spec(
        kind="curated_dataset",
        config={"rows": sha256_json([shape, *lines]), "validation": validation},
        parents={},
        code="tiny",
    )
    if found := store.find(spec):
        return found
    cut = len(lines) - validation
    with store.publish(spec) as draft:
        for name, part in (("train", lines[:cut]), ("validation", lines[cut:]), ("holdout", [])):
            draft.counts[name] = len(part)
            _write_split(draft.folder / f"{name}.parquet", part, shape)
    return _published(draft.artifact)


def recipe(**changes: Any) -> Recipe:
    """A LoRA recipe over tiny windows; `changes` are fields of `finetune`, or whole sections by name."""
    sections = {k: changes.pop(k) for k in list(changes) if k in ("encode", "curate", "base_model", "dataset", "gate")}
    defaults = {
        "method": "sft", "lora": Lora(rank=4, alpha=8), "learning_rate": 1e-2, "epochs": 3,
        "windows_per_step": 8, "windows_per_micro": 4, "resume_certificate": False,
    }  # fmt: skip
    parts = {
        "base_model": BaseModel(uri="home://bases/tiny"), "dataset": Dataset(uri="rows.jsonl"),
        "encode": Encode(window_tokens=128), "gate": Gate(policy="standard"),
    }  # fmt: skip
    return Recipe(tenant="test", name="tiny", **{**parts, **sections}, finetune=Finetune(**{**defaults, **changes}))


def publish_shards(store: Store, curated: Artifact, base: Artifact, *, encode: Encode | None = None) -> Artifact:
    """Curated rows as `packed_shards`, encoded in this process."""
    from ft_pipeline.encode import launch, main

    job = launch.encode_job(
        recipe(encode=encode or Encode(window_tokens=128)),
        curated=curated.ref, base=base, work=store.work, placement=Placement(),
    )  # fmt: skip
    return _run_here(store, job, main.body)


def train_here(store: Store, whole: Recipe, shards: Artifact, base: Artifact, **placement: Any) -> Artifact:
    """Trained `checkpoints`, in this process and without MLflow when FT_MLFLOW is `off`."""
    from ft_pipeline.finetune import main

    return _run_here(store, train_job_here(store, whole, {"shards": shards, "base": base}, **placement), main.body)


def train_job_here(
    store: Store, whole: Recipe, parts: dict[str, Artifact], *, teacher: Artifact | None = None, **placement: Any
) -> Job:
    """The training job; the reference or the teacher's log-probabilities that it needs are made in this process."""
    from importlib import import_module

    from ft_pipeline.finetune import launch

    where = (store.work, Placement(**placement))
    others = launch.parents_made(
        whole, parts=parts, where=where, find=lambda _digest: _published(teacher), shelf=(store, store.work),
        run=lambda job: _run_here(store, job, import_module(job.module).body),
    )  # fmt: skip
    refs = {role: made.ref for role, made in others.items()}
    return launch.train_job(
        whole, shards=parts["shards"], base=parts["base"], work=where[0], placement=where[1], others=refs
    )


def _run_here(store: Store, job: Job, body: Body) -> Artifact:
    """What LocalWorker does, without the process; signal handlers are put back."""
    if found := store.find(job.spec):
        return found
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        body(job, store, Mailbox(job.folder / "messages.jsonl"))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _published(store.find(job.spec))


def _exchange(i: int, seed: int) -> list[dict[str, str]]:
    word = WORDS[(i * 5 + seed) % len(WORDS)]
    question = f"which module is it? {SENTENCES[i % len(SENTENCES)]} {word[::-1]} {i}"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": word}]
    if i % 4 == 3:
        turns += [{"role": "user", "content": "again?"}, {"role": "assistant", "content": f"{word}, I said"}]
    return turns


def _class_digest(folder: Path, names: list[str], wanted: str) -> str:
    return sha256_json([[n, sha256_file(folder / n)] for n in names if _class_of(n) == wanted])


def _class_of(name: str) -> str:
    if name.endswith(".safetensors"):
        return "weights"
    if name == "chat_template.jinja":
        return "chat_template"
    if name.startswith("tokenizer") or name in (
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        return "tokenizer"
    return "docs" if name.endswith(".md") else "config"


def _write_split(path: Path, lines: list[str], shape: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [f"r{hashlib.sha256(line.encode()).hexdigest()[:16]}" for line in lines]
    columns = {
        "row_id": ids,
        "shape": [shape] * len(lines),
        "content": lines,
        "cluster": ids,
        "origin": [f"tiny.jsonl:{n + 1}" for n in range(len(lines))],
    }
    pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), path)


def _published(artifact: Artifact | None) -> Artifact:
    assert artifact is not None
    return artifact
