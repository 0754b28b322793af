"""Shapes of base models: from a config.json, or from a small table of public ones, so that planning needs no download."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a Llama-like decoder: RMSNorm, rotary attention with grouped keys, a gated MLP."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = False
    """One matrix is both embedding and head."""
    qkv_bias: bool = False
    """Qwen2's queries, keys and values have a bias."""

    @property
    def queries(self) -> int:
        """Width of the queries: hidden, in most models."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def layer_linear(self) -> int:
        """Weights of the seven projections of one layer."""
        return 2 * self.hidden * self.queries + 2 * self.hidden * self.kv + 3 * self.hidden * self.inner

    @property
    def embedding(self) -> int:
        """Weights of one embedding, or of the head."""
        return self.vocabulary * self.hidden

    @property
    def linear(self) -> int:
        """Weights of the projections of all layers."""
        return self.layers * self.layer_linear

    @property
    def matmul(self) -> int:
        """Weights that every token is multiplied with: projections and head, no embedding."""
        return self.linear + self.embedding

    @property
    def other(self) -> int:
        """Weights outside the projections: embedding, head, norms, biases."""
        biases = self.layers * (self.queries + 2 * self.kv) if self.qkv_bias else 0
        return self.embedding * (1 if self.tied else 2) + self.hidden * (2 * self.layers + 1) + biases

    @property
    def parameters(self) -> int:
        """All weights (Llama-3.1-8B: 8,030,261,248; Llama-2-7B: 6,738,415,616)."""
        return self.linear + self.other

    def lora_parameters(self, rank: int, targets: str | tuple[str, ...] = "all-linear") -> int:
        """Trained weights of LoRA (Llama-3-8B, rank 16, all linear: 41,943,040; Llama-2-7B, rank 8, q and v: 4,194,304)."""
        return self.layers * rank * sum(a + b for a, b in self.targeted(targets).values())

    def targeted(self, targets: str | tuple[str, ...] = "all-linear") -> dict[str, tuple[int, int]]:
        """Projection -> (inputs, outputs) of those that LoRA trains."""
        whole = {
            "q_proj": (self.hidden, self.queries), "k_proj": (self.hidden, self.kv), "v_proj": (self.hidden, self.kv),
            "o_proj": (self.queries, self.hidden), "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner), "down_proj": (self.inner, self.hidden),
        }  # fmt: skip
        return whole if targets == "all-linear" else {name: size for name, size in whole.items() if name in targets}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape in a config.json. Raises KeyError when it is not of this form."""
    heads = config["num_attention_heads"]
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        inner=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings")),
        qkv_bias=bool(config.get("attention_bias")) or config.get("model_type") == "qwen2",
    )


def _llama(hidden: int, layers: int, heads: tuple[int, int], *, inner: int, vocabulary: int, **more: Any) -> Shape:
    dim = more.pop("head_dim", hidden // heads[0])
    return Shape(hidden=hidden, layers=layers, heads=heads[0], kv_heads=heads[1], head_dim=dim, inner=inner, vocabulary=vocabulary, **more)  # fmt: skip


PUBLIC: Mapping[str, Shape] = {
    "Llama-2-7B": _llama(4096, 32, (32, 32), inner=11008, vocabulary=32000),
    "Llama-2-13B": _llama(5120, 40, (40, 40), inner=13824, vocabulary=32000),
    "Llama-2-70B": _llama(8192, 80, (64, 8), inner=28672, vocabulary=32000),
    "Llama-3.1-8B": _llama(4096, 32, (32, 8), inner=14336, vocabulary=128256),
    "Llama-3.1-70B": _llama(8192, 80, (64, 8), inner=28672, vocabulary=128256),
    "Qwen2.5-7B": _llama(3584, 28, (28, 4), inner=18944, vocabulary=152064, qkv_bias=True),
    "Qwen3-8B": _llama(4096, 36, (32, 8), inner=12288, vocabulary=151936, head_dim=128),
    "Mistral-7B": _llama(4096, 32, (32, 8), inner=14336, vocabulary=32000),
    "SmolLM2-135M": _llama(576, 30, (9, 3), inner=1536, vocabulary=49152, tied=True),
}
"""Public shapes by name, as their config.json on the Hub has them."""
ALIASES = {"meta-llama-3-8b": "llama-3.1-8b", "meta-llama-3-70b": "llama-3.1-70b", "llama-3-8b": "llama-3.1-8b", "llama-3-70b": "llama-3.1-70b", "llama-3.3-70b": "llama-3.1-70b", "meta-llama-3.1-8b": "llama-3.1-8b", "meta-llama-3.1-70b": "llama-3.1-70b"}  # fmt: skip


def public_shape(uri: str) -> tuple[str, Shape] | None:
    """(name, shape) of a public model that a URI or a name means, whatever its variant: `hf://meta-llama/Llama-3.1-8B-Instruct`."""
    last = uri.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
    bare = re.sub(r"-(instruct|chat|base|hf|it|v\d[\d.]*)\b", "", last)
    bare = ALIASES.get(bare, bare)
    return next(((name, shape) for name, shape in PUBLIC.items() if name.lower() == bare), None)
