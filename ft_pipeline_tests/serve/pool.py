"""A home with a base that vLLM can serve (256 wide, heads of 64) and signed versions on it, and the server process over it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save_file

from ft_pipeline.register.registration import Candidate, register
from ft_pipeline.resources import find_recipe
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, ModelVersion, NewModel
from ft_pipeline.store.manifest import Spec
from ft_pipeline_tests import lines

LAYERS, HIDDEN, KEY_VALUE, INNER, RANK = 4, 256, 128, 512, 8
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEY_VALUE, HIDDEN), "self_attn.v_proj": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
"""Module -> (out, in) of bench_serve.wide_base."""
START_SECONDS = 900
"""70 s on an idle machine, 200 at a load of 10, more than 400 at 20."""
LOCAL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}
"""1 GiB of keys and values; threads are not bound to cores that others use."""


def version(
    house: Pool, seed: int, *, line: str = "acme/router", base: Artifact | None = None, **config: Any
) -> ModelVersion:
    """A signed version of a line in production: its adapter is drawn from the seed, `config` is put into its config."""
    base, store = base or house.base, house.store
    lines.recipe_file(house.settings, line)
    made = lines.publish_line(store, house.catalog, base=base, line=line, seed=seed)
    made["adapter"] = wide_adapter(store, made, seed, config)
    made["eval_report"] = lines.report(store, made)
    for asset in ("adapter", "eval_report"):
        house.catalog.set_head(line, asset, made[asset])
    recipe = find_recipe(replace(house.settings, recipe_folders=(house.settings.home / "recipes",)), line)
    candidate = Candidate(
        recipe=recipe, adapter=made["adapter"].ref, report=made["eval_report"].ref, base=base.ref, run_id="r"
    )
    return register(candidate, store=store, catalog=house.catalog, settings=house.settings).model


def wide_adapter(store: Store, made: dict[str, Artifact], seed: int, config: dict[str, Any]) -> Artifact:
    """LoRA of rank 8 on every linear layer; strong enough to change what a random model says."""
    base = made["base_model"]
    parents = {"checkpoints": made["checkpoints"].ref, "shards": made["packed_shards"].ref, "base": base.ref}
    spec = Spec(kind="adapter", config={"seed": seed, "wide": True, **config}, parents=parents, code="t")
    draw = np.random.default_rng(seed)
    weights = {}
    for layer in range(LAYERS):
        for module, (out, into) in SHAPES.items():
            at = f"base_model.model.model.layers.{layer}.{module}"
            weights[f"{at}.lora_A.weight"] = draw.normal(0, 0.1, (RANK, into)).astype(np.float32)
            weights[f"{at}.lora_B.weight"] = draw.normal(0, 0.1, (out, RANK)).astype(np.float32)
    peft = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "base_model_name_or_path": "tiny",
        "target_modules": sorted(m.split(".")[1] for m in SHAPES), "revision": base.ref.digest, "inference_mode": True,
    }  # fmt: skip
    if found := store.find(spec):
        return found
    with store.publish(spec) as draft:
        save_file(weights, draft.folder / "adapter_model.safetensors")
        (draft.folder / "adapter_config.json").write_text(json.dumps(peft | config))
        (draft.folder / "completion.json").write_text(json.dumps({"steps": 8, "windows_consumed": 16}))
        for path in base.folder.iterdir():
            if path.name.startswith(("tokenizer", "chat_template")):
                (draft.folder / path.name).write_bytes(path.read_bytes())
    assert draft.artifact
    return draft.artifact


def dev_version(house: Pool, like: ModelVersion, line: str = "acme/draft") -> ModelVersion:
    """A version that stays in dev, with the facts of another."""
    tenant, name = line.split("/")
    facts = {
        field: getattr(like, field)
        for field in NewModel.__dataclass_fields__
        if field not in ("tenant", "name", "dataset_digest")
    }
    model = house.catalog.register(NewModel(tenant=tenant, name=name, dataset_digest=like.dataset_digest, **facts))
    house.catalog.transition(model.id, "dev", actor="tester", reason="registered")
    return house.catalog.model_by_id(model.id)


@dataclass
class Pool:
    """The store, the catalog and the base of one pool."""

    settings: Settings
    store: Store
    catalog: Catalog
    base: Artifact
    versions: dict[str, ModelVersion] = field(default_factory=dict)

    @property
    def base_model(self) -> str:
        return f"base-{self.base.ref.digest[:12]}"


def new_pool(root: Path, base: Artifact | None = None) -> Pool:
    """A fresh home; without a base it gets one that vLLM can serve."""
    from ft_pipeline.settings import load
    from ft_pipeline.store.artifacts import open_store
    from ft_pipeline.store.catalog import open_catalog
    from ft_pipeline_tests import bench_serve, tiny

    home = replace(
        load(), home=root, store_uri=str(root / "store"), catalog_url=f"sqlite:///{root / 'catalog.db'}", mlflow_uri="off",
        signing_key=root / "keys" / "signing.pem", signer="file", actor="tester",
    )  # fmt: skip
    store = open_store(home)
    found = base or tiny.publish_base(store, bench_serve.wide_base(root / "bases" / "wide"))
    catalog = open_catalog(home)
    catalog.index(found.manifest)
    return Pool(home, store, catalog, found)


def _end_with_parent() -> None:
    """In the child: a test run that is killed leaves no server behind."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


class Replica:
    """A real vLLM server over a pool."""

    def __init__(self, pool: Pool, *, more: Sequence[str] = ("--max-model-len", "512"), **variables: str) -> None:
        self.pool, self.more, self.variables = pool, more, variables
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = pool.settings.home / f"vllm-{self.port}.log"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120, trust_env=False)

    def start(self) -> Replica:
        """Once it answers. It is a child that leads its own process group, since vLLM starts two more processes."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("FT_", "VLLM_"))}
        env |= {"FT_HOME": str(self.pool.settings.home), "FT_MLFLOW": "off", **LOCAL, **self.variables}
        words = [
            "-m",
            "ft_pipeline.serve.vllm_server",
            self.pool.base_model,
            "--port",
            str(self.port),
            "--",
            *self.more,
        ]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(self.log.read_text()[-6000:])
            time.sleep(1)
        return self

    def stop(self) -> None:
        """Ends the server and its engine."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tokens(self, model: str, prompt: Sequence[int], *, number: int = 24) -> list[int]:
        """The greedy continuation as token ids. Raises httpx.HTTPStatusError."""
        body = {"model": model, "prompt": list(prompt), "max_tokens": number, "temperature": 0, "ignore_eos": True, "return_token_ids": True}  # fmt: skip
        response = self.client.post("/v1/completions", json=body)
        response.raise_for_status()
        return response.json()["choices"][0]["token_ids"]

    def status(self, model: str) -> int:
        """HTTP status of a request for a model."""
        body = {"model": model, "prompt": [7, 8, 9], "max_tokens": 1, "temperature": 0}
        return self.client.post("/v1/completions", json=body).status_code

    def models(self) -> dict[str, str]:
        """Model -> the folder that it was loaded from."""
        return {m["id"]: m["root"] for m in self.client.get("/v1/models").json()["data"]}

    def _answers(self) -> bool:
        try:
            return self.client.get("/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False
