"""Rounds the linear layers of a model to fewer bits with llmcompressor, saved as compressed-tensors: what vLLM and transformers load.

Runs in the environment of FT_EXPORT_PYTHON. The head stays as it is, and so do the routers of mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from ft_pipeline.encode.artifact import read_windows, statistics
from ft_pipeline.errors import DataError, UserError
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.workers.job import Job

KEPT = ("lm_head", r"re:.*\.gate$")
"""Not quantised: the head costs the most accuracy for its bytes, and a router chooses between experts by small differences."""


def quantise(job: Job, parents: Mapping[str, Artifact], folder: Path) -> dict[str, int]:
    """Writes the quantised model below `folder`; returns what was counted. Raises DataError for layers that the format does not fit."""
    config = job.spec.config
    require_library(config["library"])
    import torch
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job.placement.threads)
    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(parents["unquantised"].folder, dtype=getattr(torch, config["dtype"]))
    model: Any = loaded.to(job.placement.device)
    require_divisible(model, config)
    rows = calibration_rows(parents["shards"], config["calibration_windows"]) if "shards" in parents else []
    oneshot(model=model, recipe=[_modifier(config)], **_data(rows))
    model.save_pretrained(folder, save_compressed=True)
    layers = sum(hasattr(module, "quantization_scheme") for module in model.modules())
    return {"quantised_layers": layers, "calibration_tokens": sum(map(len, rows))}


def require_library(wanted: str) -> None:
    """Raises UserError unless exactly the release is installed that the export's identity names."""
    name, _, release = wanted.partition("==")
    try:
        found = version(name)
    except PackageNotFoundError:
        found = "not installed"
    if found != release:
        raise UserError(
            f"{name} is {found} in this environment, the export asks for {release}",
            why="Another release rounds to other bytes under the same name.",
            cure="make setup-export",
        )


def require_divisible(model: Any, config: Mapping[str, Any]) -> None:
    """Raises DataError for a layer whose inputs are not a multiple of the format's group."""
    group = config.get("group", 0)
    for name, module in model.named_modules():
        inputs = getattr(module, "in_features", 0)
        if group and inputs % group and not name.endswith("lm_head"):
            raise DataError(
                f"{name} has {inputs} inputs, {config['format']} takes groups of {group}",
                why="Every group of weights has a scale of its own.",
                cure="w4a16: --group with a divisor, for example 32; otherwise another --format",
            )


def calibration_rows(shards: Artifact, windows: int) -> list[list[int]]:
    """Token ids of so many training windows, spread evenly. Raises DataError for shards that hold no windows."""
    if kind := statistics(shards).get("examples"):
        raise DataError(
            f"the shards hold {kind}, and GPTQ calibrates on windows of text", cure="--algorithm rtn needs no data"
        )
    step = max(1, shards.manifest.counts["train_windows"] // windows)
    spread: Iterator[Any] = islice(read_windows(shards, "train"), 0, step * windows, step)
    return [window.ids.tolist() for window in spread]


def _modifier(config: Mapping[str, Any]) -> Any:
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    chosen = GPTQModifier if config["algorithm"] == "gptq" else QuantizationModifier
    scheme: Any = preset_name_to_scheme(config["scheme"], ["Linear"])
    if config["scheme"] == "W4A16":
        scheme.weights.group_size = config["group"]
    return chosen(config_groups={"group_0": scheme}, ignore=list(KEPT))


def _data(rows: list[list[int]]) -> dict[str, Any]:
    if not rows:
        return {}
    from datasets import Dataset

    told = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    longest = max(map(len, rows))
    return {
        "dataset": Dataset.from_list(told), "num_calibration_samples": len(rows), "max_seq_length": longest,
        "shuffle_calibration_samples": False,
    }  # fmt: skip
