"""A scalar head beside the language model's own: what a reward model is trained with, and saved as a classifier of one label.

The language model's head stays until the weights are saved: the pre-flight checks ask it, and a wrapper like FSDP sees one ordinary
forward pass. It is asked about one token, its logits are not used, and it is not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.batches import Batch

SCORE = "score"
"""Name of the head in transformers' decoder classifiers, and the last part of its tensor's name."""
CAUSAL = "ForCausalLM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What a method's model is in the libraries."""

    classifier: str
    """Behind the name of the decoder's class in transformers."""
    task: str
    """PEFT's task_type."""
    bias: bool
    """Of the head: transformers' sequence classifiers have none, its token classifiers do."""


SCORED: Mapping[str, Scored] = {
    "reward": Scored(classifier="ForSequenceClassification", task="SEQ_CLS", bias=False),
    "process_reward": Scored(classifier="ForTokenClassification", task="TOKEN_CLS", bias=True),
}
"""Methods that train the head: one number an answer, one a step."""


def add_score(model: Any, method: str = "reward") -> None:
    """Gives a causal language model a head [1, width] drawn as the model's other weights; the caller sets the seed.

    Raises RecipeError for a model whose classifier would not find the head again.
    """
    _refuse_unknown(model.config, method)
    bias = SCORED[method].bias
    like = model.get_input_embeddings().weight
    head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1, bias=bias, device=like.device)
    torch.nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", 0.02))
    if bias:
        torch.nn.init.zeros_(head.bias)
    model.add_module(SCORE, head)
    output = model.get_output_embeddings()
    if output is not None and output.weight is not like:
        output.weight.requires_grad_(False)


def scores(model: Any, batch: Batch, places: torch.Tensor) -> torch.Tensor:
    """[N] float32 scores of the hidden states at these places of the flattened batch, with gradient."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    heard: list[torch.Tensor] = []
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": None,
        "use_cache": False,
    }
    if batch.segments is not None:
        inputs["segments"] = batch.segments
    hook = plain.base_model.register_forward_hook(lambda _module, _inputs, output: heard.append(output[0]))
    try:
        model(**inputs, logits_to_keep=1)
    finally:
        hook.remove()
    hidden = heard[0].flatten(0, 1).index_select(0, places)
    return getattr(plain, SCORE)(hidden.float())[:, 0].float()


def published(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a classifier: without the language model's head."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head.")}


def classifier_config(config: Mapping[str, Any], method: str = "reward") -> dict[str, Any]:
    """The config of a causal language model as that of its classifier with one label: what the Auto class of the method reads."""
    (name,) = config["architectures"]
    return {
        **config,
        "architectures": [name.replace(CAUSAL, SCORED[method].classifier)],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": "regression",
    }


def _refuse_unknown(config: Any, method: str) -> None:
    from transformers.models.auto import modeling_auto as auto

    known = (
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
        if method == "process_reward"
        else auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    )
    if config.model_type not in known:
        what = SCORED[method].classifier.removeprefix("For").replace("Classification", " classifier").lower()
        raise RecipeError(
            f"a base model of type {config.model_type} has no {what} in transformers",
            why="The reward model could not be loaded again.",
            cure=f"a base model of another type: {', '.join(sorted(k for k in known if k in ('llama', 'qwen3', 'gemma', 'mistral')))}",
        )
