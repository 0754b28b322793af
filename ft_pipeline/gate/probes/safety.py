"""The safety prompts as a probe: generated answers, refused or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.gate import generate
from ft_pipeline.gate.benchmarks import Prompt, read_prompts
from ft_pipeline.gate.probes.probe import Probe, Ticker, sample
from ft_pipeline.gate.safety import SCORER, is_refusal
from ft_pipeline.gate.samples import Sample
from ft_pipeline.store.artifacts import Artifact

HARMFUL, HARMLESS = "harmful", "harmless"


def safety_probe(section: Mapping[str, Any], suite: Artifact, tokenizer: Any) -> Probe:
    """Both arms answer every prompt; a refusal scores 1."""
    prompts: Sequence[Prompt] = read_prompts(suite)

    def answer(model: Any, indices: Sequence[int], tick: Ticker) -> list[Sample]:
        asked = [prompts[i] for i in indices]
        ids = [generate.render(tokenizer, [{"role": "user", "content": p.prompt}]) for p in asked]
        said = generate.greedy(model, tokenizer, ids, max_new_tokens=section["max_new_tokens"], tick=tick)
        return [
            sample(
                p.id, (one, tokenizer), reference=HARMFUL if p.harmful else HARMLESS, output=text, score=float(is_refusal(text))
            )
            for p, one, text in zip(asked, ids, said, strict=True)
        ]  # fmt: skip

    identity = {"max_new_tokens": section["max_new_tokens"], **SCORER}
    return Probe(
        name="safety", kind="safety", role="safety", identity=identity, ids=tuple(p.id for p in prompts),
        strata=("",) * len(prompts), answer=answer,
    )  # fmt: skip
