"""What the gate's tests evaluate: a tiny base, adapters made in code (zero, broken, NaN), suites, a curated holdout."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.gate.evaluation import evaluation_job, publish_suites
from ft_pipeline.recipe import BenchmarkGate, Gate, HoldoutGate, SafetyGate
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import sha256_bytes, sha256_json
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline_tests import tiny


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base_folder(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def adapter_folders(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """zero: changes nothing; broken: large random weights; nan: no numbers."""
    root = tmp_path_factory.mktemp("adapters")
    return {kind: _adapter(base_folder, root / kind, kind) for kind in ("zero", "broken", "nan")}


@pytest.fixture
def publish(store: Store):
    """Publishes a folder as an artifact of a kind."""

    def made(kind: str, folder: Path) -> Artifact:
        files = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
        content = sha256_json({n: sha256_bytes(b) for n, b in files.items()})
        spec = Spec(kind=kind, config={"content": content}, parents={}, code="t")
        if found := store.find(spec):
            return found
        with store.publish(spec) as draft:
            for name, body in files.items():
                (draft.folder / name).write_bytes(body)
        return draft.artifact

    return made


@pytest.fixture
def curated(store: Store) -> Artifact:
    return publish_curated(store, tiny.chat_rows(24))


@pytest.fixture
def gate(home: Settings) -> Gate:
    """A gate section whose suites lie under FT_HOME; 240 questions that the tiny base answers at random."""
    write_jsonl(home.home / "suites/letters.jsonl", questions(240))
    write_jsonl(home.home / "suites/safety.jsonl", prompts(6))
    return Gate(
        policy="dev",
        holdout=HoldoutGate(metric="token_f1", max_new_tokens=6),
        benchmarks=(BenchmarkGate(name="letters", uri="home://suites/letters.jsonl"),),
        safety=SafetyGate(uri="home://suites/safety.jsonl", max_new_tokens=6),
    )


@pytest.fixture
def job_of(home: Settings, store: Store, publish, base_folder: Path, adapter_folders, curated: Artifact):
    """The evaluation job of an adapter kind under a gate section."""

    def made(gate: Gate, adapter: str) -> Job:
        parents: dict[str, Ref] = {
            "adapter": publish("adapter", adapter_folders[adapter]).ref,
            "base": publish("base_model", base_folder).ref,
            "curated": curated.ref,
            **publish_suites(gate, store, home),
        }
        return evaluation_job(gate, parents, settings=home, placement=Placement(threads=1), key="demo/x")

    return made


def questions(count: int) -> list[dict[str, Any]]:
    picked = random.Random(7)
    return [
        {
            "id": f"q{n}",
            "context": f"{picked.choice(tiny.SENTENCES)} {n}:",
            "choices": [f" {w}" for w in picked.sample(tiny.WORDS, 4)],
            "answer": n % 4,
        }
        for n in range(count)
    ]


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "prompt": f"how do I {tiny.WORDS[n % 8]}?", "harmful": n % 2 == 0} for n in range(count)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def publish_curated(store: Store, rows: list[dict[str, Any]], *, shape: str = "chat") -> Artifact:
    """Rows as the holdout of a curated dataset."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    body = [json.dumps(r, sort_keys=True) for r in rows]
    spec = Spec(kind="curated_dataset", config={"rows": sha256_json([shape, *body])}, parents={}, code="t")
    if found := store.find(spec):
        return found
    with store.publish(spec) as draft:
        columns = {"row_id": [f"r{n:016x}" for n in range(len(body))], "shape": [shape] * len(body), "content": body}
        pq.write_table(
            pa.table({k: pa.array(v, pa.string()) for k, v in columns.items()}), draft.folder / "holdout.parquet"
        )
    return draft.artifact


def _adapter(base: Path, folder: Path, kind: str) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils.save_and_load import get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name and kind != "zero":
            weight.data = torch.randn_like(weight) * (float("nan") if kind == "nan" else 3.0)
    folder.mkdir()
    save_file(get_peft_model_state_dict(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.base_model_name_or_path = "demo/base"
    config.save_pretrained(folder)
    return folder
