"""Where training starts when it is not the base: the weights of an adapter artifact, put into a model of the same shape."""

from __future__ import annotations

from ft_pipeline.encode.artifact import refuse_tensors
from ft_pipeline.finetune.artifact import ADAPTER_WEIGHTS, MODEL_WEIGHTS
from ft_pipeline.finetune.model import Trainee
from ft_pipeline.store.artifacts import Artifact


def start_from(trainee: Trainee, adapter: Artifact | None) -> None:
    """Changes the trained weights to the adapter's; None leaves them as they are. Raises RecipeError when it has others."""
    if adapter is None:
        return
    from safetensors.torch import load_file

    name = ADAPTER_WEIGHTS if ADAPTER_WEIGHTS in adapter.manifest.files else MODEL_WEIGHTS
    tensors = load_file(adapter.file(name))
    refuse_tensors(adapter, tensors, trainee.live_tensors())
    trainee.load(tensors)
