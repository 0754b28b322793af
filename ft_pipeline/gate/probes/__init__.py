"""Probes: what both arms are asked, one file per kind. Runs in the child, where torch is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ft_pipeline.gate.probes.benchmark import benchmark_probe
from ft_pipeline.gate.probes.holdout import holdout_probe
from ft_pipeline.gate.probes.judge import judge_probe
from ft_pipeline.gate.probes.probe import Probe
from ft_pipeline.gate.probes.safety import HARMFUL, safety_probe  # noqa: F401
from ft_pipeline.store.artifacts import Artifact


def plan(config: Mapping[str, Any], parents: Mapping[str, Artifact], tokenizer: Any) -> list[Probe]:
    """The probes that a report's config names, in order: holdout, benchmarks, safety, judge. Raises DataError on a bad suite."""
    probes = [holdout_probe(config["holdout"], parents["curated"], tokenizer)]
    for name in config["benchmarks"]:
        probes.append(benchmark_probe(name, parents[f"suite:{name}"], tokenizer))
    if config["safety"]:
        probes.append(safety_probe(config["safety"], parents["safety"], tokenizer))
    if config["judge"]:
        probes.append(judge_probe(config["judge"], parents, tokenizer))
    return probes
