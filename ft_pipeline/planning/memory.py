"""Memory of one GPU, by part: formulas over the shape of the model, each line a tensor that training really keeps.

States: 16 bytes per trained weight (mixed precision Adam, arXiv 1910.02054, section 3.1), divided by what is sharded.
Activations: the list of tensors that autograd saves in a transformers Llama layer (read off with saved_tensors_hooks on transformers
5.19, torch 2.13, PEFT 0.21), checked by trace.py. Linear in the window: attention never materialises its scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ft_pipeline.planning.shapes import Shape
from ft_pipeline.recipe import Finetune, Lora

GIB = 1 << 30
Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp"]
Checkpointing = Literal["none", "selective", "full"]
Precision = Literal["float32", "bfloat16", "autocast"]
NF4_BYTES = 0.516
"""4 bits, an 8-bit scale per 64 weights, a 32-bit scale per 256 of those (arXiv 2305.14314, double quantisation)."""
LOGIT_BYTES = 12
"""Per logit at the loss: log-softmax and two gradients in float32 (traced; 14 when a library holds a copy of its own)."""
CHUNK_BYTES = 64 << 20
"""Float32 logits that finetune/head.py has at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What decides the bytes besides the shape."""

    precision: Precision
    """autocast: weights stay in float32 and are cast as they are used."""
    lora: Lora | None
    sharding: Sharding = "none"
    gpus: int = 1
    checkpointing: Checkpointing = "none"
    accumulates: bool = False
    """A GPU runs several micro-batches a step: gradients live through the forward pass."""
    trained_share: float = 1.0
    """Share of the tokens that the loss counts: the head runs on no other."""
    head: Literal["chunked", "plain"] = "chunked"
    """chunked: logits are made and forgotten 64 MiB at a time; plain: all at once, as most libraries do."""

    @property
    def shards_weights(self) -> bool:
        """True when a GPU holds a part of the weights only, and gathers a layer at a time."""
        return self.sharding in ("zero3", "fsdp") and self.gpus > 1

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "float32" else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    weights: float
    gradients: float
    optimizer: float
    working: float
    """Casts of the weights, gathered layers, a dequantised matrix."""
    activations: float
    """What the forward pass leaves for the backward one, all layers."""
    recomputed: float
    """One layer made anew in the backward pass, and the gradients inside a layer."""
    head: float
    """Logits and what the loss makes of them, at its peak."""
    peak: float
    """The most at one moment: less than the sum, for activations go as gradients come."""


def layout_of(section: Finetune, *, sharding: Sharding = "none", gpus: int = 1, checkpointing: Checkpointing = "none", trained_share: float = 1.0) -> Layout:  # fmt: skip
    """How our loop lays a recipe out: training every weight in bfloat16 keeps them in float32, however they are shared, and casts them."""
    precision: Precision = section.dtype
    if section.lora is None and section.dtype == "bfloat16":
        precision = "autocast"
    micros = section.windows_per_step // section.windows_per_micro
    return Layout(
        precision=precision, lora=section.lora, sharding=sharding, gpus=gpus, checkpointing=checkpointing,
        accumulates=micros > gpus, trained_share=trained_share,
    )  # fmt: skip


def memory(shape: Shape, layout: Layout, *, tokens: int) -> Memory:
    """Bytes of one GPU that runs micro-batches of so many tokens."""
    weights, gradients, optimizer = states(shape, layout)
    working = _working(shape, layout)
    kept, layer = _activations(shape, layout, tokens)
    head = _head(shape, layout, tokens * layout.trained_share * shape.vocabulary)
    first = _first_gradient(shape, layout, gradients)
    moments = (
        kept + working + head + (first if layout.accumulates or layout.head == "chunked" else 0),
        kept + layer + first + working,
        gradients + max(0, layer - _not_yet(shape, layout, gradients)) + _last(working, layout),
    )
    return Memory(
        weights=weights, gradients=gradients, optimizer=optimizer, working=working, activations=kept,
        recomputed=layer, head=head, peak=weights + optimizer + max(moments),
    )  # fmt: skip


def states(shape: Shape, layout: Layout) -> tuple[float, float, float]:
    """Bytes of (weights, gradients, optimizer) on one GPU."""
    n = layout.gpus
    over = {"none": (1, 1, 1), "zero1": (1, 1, n), "zero2": (1, n, n), "zero3": (n, n, n), "fsdp": (n, n, n)}[layout.sharding]  # fmt: skip
    # DeepSpeed updates a float32 copy of its part, of float32 weights too
    copy = 4 * (layout.sharding in ("zero1", "zero2", "zero3") and n > 1)
    if layout.lora is None:
        each = (2, 2, 12) if layout.precision == "bfloat16" else (4, 4, 8 + copy)
        return tuple(shape.parameters * b / k for b, k in zip(each, over, strict=True))  # type: ignore[return-value]
    trained = shape.lora_parameters(layout.lora.rank, layout.lora.targets)
    base = _frozen(shape, layout) / over[0]
    # shards exchange an adapter's gradients once a step, and hold them whole until then
    held = 1 if layout.sharding == "fsdp" and layout.accumulates else over[1]
    return base + trained * 4 / over[0], trained * 4 / held, trained * (8 + copy) / over[2]


def _frozen(shape: Shape, layout: Layout) -> float:
    if layout.lora and layout.lora.quantize == "nf4":
        return shape.linear * NF4_BYTES + shape.other * 2
    return shape.parameters * (4 if layout.precision == "float32" else 2)


def _working(shape: Shape, layout: Layout) -> float:
    """Casts under autocast live until a layer's backward pass; a gathered layer has its successor prefetched; NF4 unpacks one matrix."""
    if layout.lora and layout.lora.quantize == "nf4":
        return 2 * max(a * b for a, b in shape.targeted().values())
    casts = 2 * shape.matmul if layout.precision == "autocast" else 0
    if not layout.shards_weights:
        return casts
    if layout.sharding == "fsdp":
        return _fsdp_working(shape, layout)
    each = 2 if layout.precision == "bfloat16" else 4
    gathered = each * max(2 * shape.layer_linear, shape.layer_linear + shape.embedding)
    return casts + gathered * (1.5 if layout.lora is None else 1)


def _fsdp_working(shape: Shape, layout: Layout) -> float:
    """Two layers as they compute; embedding and head as they are kept, all through a step; where they are trained, a layer's gradient, as it
    was computed and in float32 for the sum, and those of embedding and head (the head's is counted at the loss).
    """
    kept = 2 if layout.precision == "bfloat16" else 4
    ends = shape.embedding * (1 if shape.tied else 2)
    casts = 2 * shape.embedding if layout.precision == "autocast" else 0
    gathered = 2 * layout.width * shape.layer_linear + kept * ends + casts
    return gathered + ((layout.width + 4) * shape.layer_linear + 4 * ends if layout.lora is None else 0)


def _head(shape: Shape, layout: Layout, logits: float) -> float:
    """Bytes at the loss. A head that is trained has its gradient summed over the chunks: one product of the head's size is there beside it."""
    if layout.head == "plain":
        return logits * LOGIT_BYTES
    each = 8 if layout.precision == "float32" else 10  # logits, in float32, and their log-softmax
    return min(logits, CHUNK_BYTES / 4) * each + (shape.embedding * 4 if layout.lora is None else 0)


def _last(working: float, layout: Layout) -> float:
    return working if layout.precision != "autocast" or (layout.sharding == "fsdp" and layout.shards_weights) else 0


def _first_gradient(shape: Shape, layout: Layout, gradients: float) -> float:
    """Gradients that are there when the backward pass reaches the last layer: the head's, or all when micro-batches add up."""
    if layout.lora is not None or layout.accumulates:
        return gradients
    return shape.embedding * 4 if layout.head == "chunked" else gradients * shape.embedding / shape.parameters


def _not_yet(shape: Shape, layout: Layout, gradients: float) -> float:
    """Gradients that are not there yet when the backward pass is in the MLP of the first layer: that layer's and the embedding's."""
    if layout.lora is not None or layout.accumulates:
        return 0
    return gradients * (shape.layer_linear + shape.embedding) / shape.parameters


def _activations(shape: Shape, layout: Layout, tokens: int) -> tuple[float, float]:
    """(bytes that all layers keep, bytes that come on top while one layer is in its backward pass)."""
    whole = tokens * sum(saved(shape, layout).values())
    inside = tokens * _gradients_inside(shape, layout)
    ends = tokens * _ends(shape, layout)
    if layout.checkpointing == "none":
        return whole * shape.layers + ends, inside
    stream = 4 if layout.precision != "bfloat16" else 2
    kept = stream * shape.hidden
    if layout.checkpointing == "selective":
        kept += _products(shape, layout)
    return tokens * kept * shape.layers + ends, whole + inside


def _products(shape: Shape, layout: Layout) -> float:
    """Bytes per token of what selective checkpointing keeps: outputs of attention and of the base's matrices, not of an adapter's."""
    outputs = sum(out for _, out in shape.targeted().values()) + shape.queries
    return layout.width * outputs + 4 * shape.heads


def _ends(shape: Shape, layout: Layout) -> float:
    """Bytes per token before the first layer and after the last: the last norm, the head's input, the rotary tables."""
    norm_and_input = 4 * shape.hidden if layout.lora else (4 + 2 * layout.width) * shape.hidden
    return norm_and_input + 2 * layout.width * shape.head_dim


def _gradients_inside(shape: Shape, layout: Layout) -> float:
    """Bytes per token of the largest moment inside a layer's backward pass: the MLP, gradients of its wide tensors."""
    gone = (
        1 if layout.lora and layout.precision == "float32" and "down_proj" in shape.targeted(layout.lora.targets) else 0
    )
    return layout.width * ((2 - gone) * shape.inner + 3 * shape.hidden)


def saved(shape: Shape, layout: Layout) -> dict[str, float]:
    """Part -> bytes per token that autograd keeps of one layer."""
    inputs = _full_inputs(shape, layout) if layout.lora is None else _lora_inputs(shape, layout, layout.lora)
    trained_norm = {"float32": 4, "autocast": 4, "bfloat16": 2}[layout.precision] if layout.lora is None else 0
    return {
        "two norms (float32 inside)": 2 * (4 + trained_norm) * shape.hidden + 8,
        "inputs of the projections": inputs,
        "attention: queries, keys, values, output, sums": layout.width * (2 * shape.queries + 2 * shape.kv) + 4 * shape.heads,
        "MLP: gate, its activation, up": layout.width * 3 * shape.inner,
    }  # fmt: skip


def _full_inputs(shape: Shape, layout: Layout) -> float:
    """Autocast casts the input of q, k, v, gate and up five times over; without it q, k, v share one tensor, gate and up another."""
    copies = 5 if layout.precision == "autocast" else 2
    return layout.width * (copies * shape.hidden + shape.queries + shape.inner)


def _lora_inputs(shape: Shape, layout: Layout, lora: Lora) -> float:
    """PEFT casts the input of every adapted projection to the adapter's float32, each for itself; in float32 they share it."""
    adapted = shape.targeted(lora.targets)
    between = 4 * lora.rank * len(adapted)
    masks = sum(size for size, _ in adapted.values()) if lora.dropout else 0
    if layout.precision == "bfloat16":
        return 4 * sum(size for size, _ in adapted.values()) + between + masks
    groups = ({"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"})
    shared = [max((adapted[name][0] for name in group & adapted.keys()), default=0) for group in groups]
    return 4 * sum(shared) + between + masks
