"""A whole model line made in code, without training: raw rows to eval report, with heads in the catalog; LoRA weights are drawn from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog
from ft_pipeline.store.manifest import Ref, Spec
from ft_pipeline_tests import tiny

RANK, HIDDEN, KEY_VALUE = 4, 64, 32
"""Of the model in tiny.base_folder."""


def recipe_file(home: Settings, line: str = "acme/router") -> None:
    """Writes the recipe of a line into a folder that FT_RECIPES must name: `recipes` below FT_HOME."""
    tenant, name = line.split("/")
    document = {
        "tenant": tenant,
        "name": name,
        "description": "Names the module.",
        "base_model": {"uri": "home://bases/tiny"},
        "dataset": {"uri": "home://rows.jsonl", "licence": "mit"},
        "finetune": {
            "method": "sft",
            "lora": {"rank": RANK, "alpha": 8},
            "learning_rate": 0.001,
            "epochs": 1,
            "windows_per_step": 2,
            "windows_per_micro": 1,
        },
        "gate": {"policy": "dev"},
    }
    folder = home.home / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{tenant}-{name}.yaml").write_text(yaml.safe_dump(document))


def plain_base(store: Store, word: str = "base") -> Artifact:
    """A base_model artifact that cannot generate: for tests that never load it."""
    return publish(
        store, Spec(kind="base_model", config={"content": word}, parents={}, code="t"), {"config.json": "{}"}
    )


def publish_line(
    store: Store,
    catalog: Catalog,
    *,
    base: Artifact,
    line: str = "acme/router",
    seed: int = 0,
    verdict: str = "PASS",
    auto_promote: bool = True,
    shards: Artifact | None = None,
) -> dict[str, Artifact]:
    """Publishes raw, curated, shards, checkpoints, adapter and report of a line and makes them its heads. `shards`: real ones."""
    made = {"base_model": base}
    made["raw_dataset"] = publish(
        store,
        Spec(kind="raw_dataset", config={"content": line}, parents={}, code="t"),
        {"files/rows.jsonl": '{"text": "hello"}\n', "source.json": "{}"},
    )
    made["curated_dataset"] = publish(
        store,
        Spec(kind="curated_dataset", config={}, parents={"raw": made["raw_dataset"].ref}, code="t"),
        {"train.parquet": "rows", "statistics.json": json.dumps({"dropped_by_reason": {"exact_duplicate": 3}})},
        rows_in=13,
        rows_kept=10,
        rows_dropped=3,
    )
    parents = {"curated": made["curated_dataset"].ref, "base": base.ref}
    made["packed_shards"] = shards or publish(
        store, Spec(kind="packed_shards", config={}, parents=parents, code="t"), {"windows.txt": "x"}, windows=4
    )
    parents = {"shards": made["packed_shards"].ref, "base": base.ref}
    spec = Spec(kind="checkpoints", config={"seed": seed}, parents=parents, code="t")
    made["checkpoints"] = publish(store, spec, {"losses.jsonl": "{}"})
    made["adapter"] = adapter(
        store, checkpoints=made["checkpoints"].ref, shards=made["packed_shards"].ref, base=base, seed=seed
    )
    made["eval_report"] = report(store, made, verdict=verdict, auto_promote=auto_promote)
    for asset, artifact in made.items():
        catalog.set_head(line, asset, artifact)
    return made


def adapter(
    store: Store, *, checkpoints: Ref, shards: Ref, base: Artifact, seed: int, claims: str | None = None
) -> Artifact:
    """A LoRA adapter on q_proj and v_proj of a tiny base. `claims` writes another base digest into its config."""
    spec = Spec(
        kind="adapter",
        config={"seed": seed, "claims": claims},
        parents={"checkpoints": checkpoints, "shards": shards, "base": base.ref},
        code="t",
    )
    if found := store.find(spec):
        return found
    with store.publish(spec) as draft:
        _lora(draft.folder, seed, claims or base.ref.digest)
        (draft.folder / "completion.json").write_text(json.dumps({"steps": 8, "windows_consumed": 16}))
        for path in base.folder.iterdir():
            if path.name.startswith("tokenizer") or path.name == "chat_template.jinja":
                (draft.folder / path.name).write_bytes(path.read_bytes())
    assert draft.artifact
    return draft.artifact


def report(store: Store, made: dict[str, Artifact], *, verdict: str = "PASS", auto_promote: bool = True) -> Artifact:
    """Of the artifacts `adapter`, `base_model` and `curated_dataset`: an eval report with a holdout and a benchmark; the benchmark carries the verdict."""
    gates = [_gate("holdout", "holdout", "PASS"), _gate("arithmetic", "benchmark", verdict)]
    body = {"verdict": verdict, "policy": "dev", "reason": "x", "gates": gates}
    parents = {
        "adapter": made["adapter"].ref,
        "base": made["base_model"].ref,
        "curated": made["curated_dataset"].ref,
    }
    config = {"policy": {"auto_promote": auto_promote}, "policy_name": "dev", "verdict": verdict}
    spec = Spec(kind="eval_report", config=config, parents=parents, code="t")
    return publish(store, spec, {"verdicts.json": json.dumps(body)})


def publish(store: Store, spec: Spec, files: dict[str, str], **counts: int) -> Artifact:
    """An artifact with these text files."""
    if found := store.find(spec):
        return found
    with store.publish(spec) as draft:
        for name, text in files.items():
            path = draft.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        draft.counts.update(counts)
    assert draft.artifact
    return draft.artifact


def tiny_base(store: Store, path: Path, seed: int = 0) -> Artifact:
    """A base that generates."""
    return tiny.publish_base(store, tiny.base_folder(path, seed))


def _gate(name: str, kind: str, verdict: str) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "verdict": verdict, "base": 0.1, "adapter": 0.5, "difference": 0.4, "low": 0.3,
        "high": 0.5, "rows": 100, "rule": "better", "reason": f"{name} says {verdict}",
    }  # fmt: skip


def _lora(folder: Path, seed: int, base_digest: str) -> None:
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(2):
        for module, out in (("q_proj", HIDDEN), ("v_proj", KEY_VALUE)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{at}.lora_A.weight"] = random.normal(0, 1, (RANK, HIDDEN)).astype(np.float32)
            weights[f"{at}.lora_B.weight"] = random.normal(0, 1, (out, RANK)).astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "tiny", "revision": base_digest, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
