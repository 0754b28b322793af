"""The noise of an engine: the base asked the same questions twice, in batches of other shapes. Whoever differs from himself measures nothing.

Once per base, suite and engine. Differences come from the order of sums in low precision (lm-evaluation-harness#3055: .7797, .7997 and .8018
at three batch sizes); in fp32 on a CPU the share is 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ft_pipeline.gate.artifact import Noise
from ft_pipeline.gate.asking import Asking
from ft_pipeline.gate.probes.probe import Probe
from ft_pipeline.gate.rounds import Block, blocks
from ft_pipeline.gate.samples import Sample
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Spec

QUESTIONS = 256
"""Asked twice: one discordant answer is .4%."""
BLOCK_QUESTIONS = 48
"""Blocks of another shape than those of the measurement."""
FILE = "noise.json"


def noise_floor(asking: Asking, part: tuple[Probe, Sequence[Block]], first: Sequence[Sample]) -> Noise | None:
    """How often the base's scores differ when it is asked again; None when its answers were no numbers."""
    probe = part[0]
    indices = sorted(i for block in part[1] for i in block)[:QUESTIONS]
    again = blocks(indices[::-1], [""] * probe.num_questions, BLOCK_QUESTIONS)
    spec = _spec(asking.baseline_spec(probe, again))
    if found := _stored(asking.store, spec):
        return found
    asking.meter.total += len(indices)
    second = asking.base_again((probe, again))
    if isinstance(second, str):
        return None
    scores = {s.id: s.score for s in first}
    differing = sum(scores[s.id] != s.score for s in second)
    noise = Noise(suite=probe.name, rows=len(second), differing=differing)
    _keep(asking.store, spec, noise)
    return noise


def _spec(of: Spec) -> Spec:
    return Spec(kind="noise_floor", config=of.config, parents=of.parents, code=of.code)


def _stored(store: Store, spec: Spec) -> Noise | None:
    found = store.find(spec)
    return Noise(**json.loads(found.file(FILE).read_bytes())) if found else None


def _keep(store: Store, spec: Spec, noise: Noise) -> None:
    body: dict[str, Any] = {"suite": noise.suite, "rows": noise.rows, "differing": noise.differing}
    with store.publish(spec) as draft:
        (draft.folder / FILE).write_text(json.dumps(body, sort_keys=True) + "\n")
        draft.counts.update(rows=noise.rows, differing=noise.differing)
