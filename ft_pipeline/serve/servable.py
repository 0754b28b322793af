"""Whether vLLM gives an adapter's right answers, told from its config alone. What it would refuse or misread is served by the embedded server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ft_pipeline.finetune.artifact import ADAPTER_CONFIG
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Ref

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that max_lora_rank may have (vLLM 0.32, config/lora.py)."""
REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias beside lora_B",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
"""Fields of PEFT's config that vLLM's PEFTHelper refuses."""
UNREAD = {
    "trainable_token_indices": "trained rows of the embedding",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "fan_in_fan_out": "transposed weights",
}
"""Fields that change what PEFT computes and that vLLM does not read: it would load the adapter and answer with something else."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "lora_ga")
"""Named inits that leave the base's weights alone. PiSSA, OLoRA, CorDA and LoftQ change them when PEFT loads the adapter; MiCA is a layer of its own."""
HEADS = ("lm_head", "embed_tokens")
"""vLLM leaves an adapter on these out of prompt log-probabilities without a word (vllm#51594)."""
CLASSIFIERS = ("classifier", "score")


def vllm_fault(adapter_config: Mapping[str, Any], *, max_rank: int = RANKS[-1]) -> str | None:
    """Why vLLM 0.32 cannot serve an adapter with this `adapter_config.json`, None when it can. `max_rank` is the pool's."""
    return next(_faults(adapter_config, max_rank), None)


def on_vllm(store: Store, adapter: Ref) -> str:
    """For people: whether a pool can serve an adapter; this machine's server can in any case."""
    if ADAPTER_CONFIG not in store.recorded(adapter).files:
        return "a full fine-tune: takes a replica of its own"
    fault = vllm_fault(json.loads(store.fetch_file(adapter, ADAPTER_CONFIG).read_bytes()))
    return f"no: {fault}" if fault else "yes"


def _faults(config: Mapping[str, Any], max_rank: int) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"it is {config.get('peft_type')}, vLLM serves LoRA only"
    yield from (f"vLLM has no {what} ({name})" for name, what in REFUSED.items() if config.get(name))
    yield from (f"vLLM would not see {what} ({name})" for name, what in UNREAD.items() if config.get(name))
    if (bias := config.get("bias") or "none") != "none":
        yield f"vLLM loads no biases, this adapter has bias={bias!r}"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        yield f"the init {start!r} is not only a start: it changes what PEFT adds the adapter to, which vLLM does not do"
    yield from _ranks(config, max_rank)
    yield from _modules(config)


def _ranks(config: Mapping[str, Any], max_rank: int) -> Iterator[str]:
    ranks: list[Any] = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if wrong := [rank for rank in ranks if not isinstance(rank, int) or rank < 1]:
        yield f"its rank is {wrong[0]!r}"
    elif (largest := max(ranks)) > max_rank:
        yield f"its rank is {largest}, the pool takes {max_rank} at most (FT_VLLM_RANK)"


def _modules(config: Mapping[str, Any]) -> Iterator[str]:
    if saved := sorted(set(config.get("modules_to_save") or ()) - set(CLASSIFIERS)):
        yield f"it carries whole modules ({', '.join(saved)}), vLLM loads LoRA weights only"
    targets = config.get("target_modules") or ()
    named = {targets} if isinstance(targets, str) else set(targets)
    if heads := [head for head in HEADS if any(name == head or name.endswith(f".{head}") for name in named)]:
        yield f"it adapts {' and '.join(heads)}, which vLLM leaves out of prompt log-probabilities (vllm#51594)"
