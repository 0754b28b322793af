"""`python -m ft_pipeline_tests.bench_serve [adapters|rollback]`: 100 adapters in one running batch; a rollback under load. Prints figures with the load.

The model is tiny (4 layers, 256 wide, random weights, float32): ratios and lost requests are the point, not tokens a second.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ft_pipeline_tests import lines, tiny
from ft_pipeline_tests.serve.load import Load

ADAPTERS, TOKENS, ROWS = 100, 16, 32
QUESTION = ({"role": "user", "content": "which module reads and writes zip archives?"},)
LINE = "acme/router"


@dataclass(frozen=True)
class Run:
    """What one way to serve took for the same requests, all asked at once."""

    seconds: float
    latencies: list[float]
    answers: list[str]

    def row(self, who: str, than: Run) -> str:
        """A line of the table."""
        p50, p99 = (float(np.percentile(self.latencies, p)) for p in (50, 99))
        rate = len(self.answers) * TOKENS / self.seconds
        return f"{who:<44} {rate:8.0f} tok/s  {than.seconds / self.seconds:6.2f}x  p50 {p50:6.2f} s  p99 {p99:6.2f} s"


def adapters(root: Path, number: int = ADAPTERS) -> tuple[Run, Run]:
    """Mixed batch, one by one in our server, `set_adapter` and generate, and a single merged model. Mixed and sequential come back."""
    store = _home(root)[1]
    base = tiny.publish_base(store, wide_base(root / "base"))
    made = wide_adapters(store, base, number)
    merged = store.fetch(tiny.publish_base(store, merged_folder(base, made[0], root / "merged")).ref)
    print(f"{number} requests of {TOKENS} tokens, {number} LoRA adapters on one base; load {os.getloadavg()[0]:.1f}")
    mixed = ours(base, made, rows=ROWS)
    sequential = set_adapter(base, made)
    rows = {
        f"mixed batch, {ROWS} rows": mixed,
        "PEFT set_adapter + generate, one by one": sequential,
        "our server, one row at a time": ours(base, made, rows=1),
        f"one merged model, {ROWS} rows": ours(merged, [None] * number, rows=ROWS),
    }
    for who, run in rows.items():
        print(run.row(who, sequential))
    same = sum(a == b for a, b in zip(mixed.answers, sequential.answers, strict=True))
    print(
        f"answers equal to PEFT one by one: {same} of {number}, {len(set(mixed.answers))} different; load {os.getloadavg()[0]:.1f}"
    )
    return mixed, sequential


def ours(base: Any, wanted: list[Any], *, rows: int) -> Run:
    """The embedded server, every request in a thread of its own."""
    from ft_pipeline.serve.engine import Generation
    from ft_pipeline.serve.limits import Limits
    from ft_pipeline.serve.local import PeftServer

    server = PeftServer(base, limits=Limits(max_rows=rows))
    for adapter in filter(None, wanted):
        server.add(adapter)
    keys = [adapter.ref.digest if adapter else None for adapter in wanted]
    asked = Generation(model="m", prompt=QUESTION, max_tokens=TOKENS)
    run = _together([lambda k=key: "".join(p.text for p in server.answer(asked, k)) for key in keys])
    server.close()
    return run


def set_adapter(base: Any, wanted: list[Any]) -> Run:
    """PEFT as its documentation shows it: activate, generate, next; a request waits for those before it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base.folder)
    model: Any = AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto")
    model = PeftModel.from_pretrained(model, wanted[0].folder, adapter_name="a0")
    for at, adapter in enumerate(wanted[1:], start=1):
        model.load_adapter(str(adapter.folder), adapter_name=f"a{at}")
    prompt = tokenizer.apply_chat_template(list(QUESTION), add_generation_prompt=True, return_tensors="pt")["input_ids"]
    start, latencies, answers = time.perf_counter(), [], []
    with torch.inference_mode():
        for at in range(len(wanted)):
            model.set_adapter(f"a{at}", inference_mode=True)
            tokens = model.generate(
                input_ids=prompt, max_new_tokens=TOKENS, do_sample=False, eos_token_id=tokenizer.eos_token_id
            )[0, prompt.shape[1] :]
            answers.append(tokenizer.decode(tokens, skip_special_tokens=True))
            latencies.append(time.perf_counter() - start)
    return Run(time.perf_counter() - start, latencies, answers)


def rollback(root: Path, clients: int = 8) -> tuple[float, float]:
    """Two versions in production one after the other, clients that ask without a pause, rollbacks there and back."""
    from ft_pipeline.register import promotion
    from ft_pipeline.serve import client
    from ft_pipeline.workers.local import stop

    os.environ |= {"FT_HOME": str(root), "FT_RECIPES": str(root / "recipes")}
    home, store, catalog = _home(root)
    base = lines.tiny_base(store, root / "base")
    versions = [register(home, store, catalog, base=base, seed=seed) for seed in (1, 2)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = client.start_server(home, port)
    worst = [0.0, 0.0]
    with Load(f"http://127.0.0.1:{port}", LINE, clients=clients) as load:
        time.sleep(2)
        for back_to in (versions[0], versions[1], versions[0]):
            promotion.rollback(catalog, f"{LINE}@{back_to.version}", actor="ann", reason="worse")
            since = time.monotonic()
            first, last_old = load.until_all_new(since, f"fp_{back_to.adapter_digest[:12]}")
            worst = [max(worst[0], first), max(worst[1], last_old)]
            print(
                f"rollback to {back_to.label}: first new answer after {first:.2f} s, no request answered by the old one after {last_old:.2f} s"
            )
    stop(child, grace_seconds=30)
    took = [a.end - a.start for a in load.asked]
    p50, p99 = np.percentile(took, [50, 99])
    print(
        f"{len(took)} requests of {clients} clients, {len(load.failed)} failed; p50 {p50:.2f} s, p99 {p99:.2f} s; load {os.getloadavg()[0]:.1f}"
    )
    if load.failed:
        raise SystemExit(f"failed: {load.failed[0]}")
    return worst[0], worst[1]


def register(home: Any, store: Any, catalog: Any, *, base: Any, seed: int) -> Any:
    """A signed version of the line in production."""
    from ft_pipeline.register.registration import Candidate, register
    from ft_pipeline.resources import find_recipe

    lines.recipe_file(home, LINE)
    made = lines.publish_line(store, catalog, base=base, line=LINE, seed=seed)
    recipe = find_recipe(replace(home, recipe_folders=(home.home / "recipes",)), LINE)
    candidate = Candidate(
        recipe=recipe, adapter=made["adapter"].ref, report=made["eval_report"].ref, base=base.ref, run_id="r"
    )
    return register(candidate, store=store, catalog=catalog, settings=home).model


def wide_base(folder: Path) -> Path:
    """The tiny base of the tests, with 4 layers, 256 wide: 3 million weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny.tokenizer_folder(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def wide_adapters(store: Any, base: Any, number: int) -> list[Any]:
    """LoRA of rank 8 on q_proj and v_proj, weights drawn from a seed each."""
    from safetensors.numpy import save_file

    from ft_pipeline.store.manifest import Spec

    made = []
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "tiny", "revision": base.ref.digest, "inference_mode": True,
    }  # fmt: skip
    for seed in range(number):
        random, weights = np.random.default_rng(seed), {}
        for layer in range(4):
            for module, out in (("q_proj", 256), ("v_proj", 128)):
                at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                weights[f"{at}.lora_A.weight"] = random.normal(0, 0.5, (8, 256)).astype(np.float32)
                weights[f"{at}.lora_B.weight"] = random.normal(0, 0.5, (out, 8)).astype(np.float32)
        spec = Spec(kind="adapter", config={"seed": seed}, parents={"base": base.ref}, code="t")
        with store.publish(spec) as draft:
            save_file(weights, draft.folder / "adapter_model.safetensors")
            (draft.folder / "adapter_config.json").write_text(json.dumps(config))
            for path in base.folder.iterdir():
                if path.name.startswith(("tokenizer", "chat_template")):
                    (draft.folder / path.name).write_bytes(path.read_bytes())
        made.append(draft.artifact)
    return made


def merged_folder(base: Any, adapter: Any, folder: Path) -> Path:
    """The base with one adapter merged in."""
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    for path in base.folder.iterdir():
        if path.name not in ("manifest.json", "digests.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), adapter.folder)
    weights = model.merge_and_unload().state_dict()
    kept = {name: tensor.contiguous() for name, tensor in weights.items() if name != "lm_head.weight"}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _home(root: Path) -> tuple[Any, Any, Any]:
    """Settings of a fresh home with its store and catalog."""
    from ft_pipeline.settings import load
    from ft_pipeline.store.artifacts import open_store
    from ft_pipeline.store.catalog import open_catalog

    home = replace(
        load(), home=root, store_uri=str(root / "store"), catalog_url=f"sqlite:///{root / 'c.db'}",
        signing_key=root / "keys" / "signing.pem",
    )  # fmt: skip
    return home, open_store(home), open_catalog(home)


def _together(work: list[Callable[[], str]]) -> Run:
    """All at once, each in its thread."""
    latencies, answers = [0.0] * len(work), [""] * len(work)
    start = time.perf_counter()

    def one(at: int) -> None:
        answers[at] = work[at]()
        latencies[at] = time.perf_counter() - start

    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Run(time.perf_counter() - start, latencies, answers)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["adapters", "rollback"]:
        with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
            {"adapters": adapters, "rollback": rollback}[name](Path(folder))
