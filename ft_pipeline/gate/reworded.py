"""For weights from outside: is the gain still there when the holdout's questions are put in other words?

Where no training data is known, nobody can say whether the holdout was in it. An adapter that learned its prompts by heart loses what it
gained when they open differently; one that learned the task keeps it. It is a warning and no rule: a narrow task may be tied to its wording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.asking import Asking
from ft_pipeline.gate.holdout import Task
from ft_pipeline.gate.probes.holdout import holdout_probe
from ft_pipeline.gate.rounds import blocks
from ft_pipeline.gate.samples import EvalIncomparable, NotANumber, Pair, paired
from ft_pipeline.store.artifacts import Artifact

MOST_QUESTIONS = 200
OPENING = "I have another question for you, please answer it as before. "
FLAGGED_FROM = 0.1
"""Of the gain, lost by other words alone: a one-sided 95% bound above it is a warning."""
CONFIDENCE = 0.95


def reworded(one: Task) -> Task:
    """The same question with another opening; what is asked stays as it is."""
    if not one.messages:
        return replace(one, prompt=OPENING + one.prompt)
    last = max((i for i, m in enumerate(one.messages) if m["role"] == "user"), default=None)
    if last is None:
        return one
    turns = [
        {**m, "content": OPENING + str(m.get("content") or "")} if i == last else m for i, m in enumerate(one.messages)
    ]
    return replace(one, messages=tuple(turns))


def gain_in_other_words(
    asking: Asking, pairs: Sequence[Pair], *, section: Mapping[str, Any], curated: Artifact
) -> dict[str, Any]:
    """Facts of the holdout gate: the gain as written and reworded, and whether they lie too far apart; none where it was not answered."""
    probe = holdout_probe(section, curated, asking.arms.tokenizer, change=reworded)
    known = {p.id: p for p in pairs}
    chosen = [i for i, name in enumerate(probe.ids) if name in known][:MOST_QUESTIONS]
    if not chosen:
        return {}
    asking.meter.total += 2 * len(chosen)
    part = (probe, blocks(chosen, probe.strata))
    base, adapter = asking.base([part])[0], asking.adapter([part])[0]
    if isinstance(base, str) or isinstance(adapter, str):
        return {}
    try:
        again = paired(base, adapter)
    except (EvalIncomparable, NotANumber):
        return {}  # the gate itself tells an adapter without numbers
    return facts_of([known[p.id] for p in again], again)


def facts_of(before: Sequence[Pair], again: Sequence[Pair]) -> dict[str, Any]:
    """The same rows, asked twice."""
    gains = [[p.adapter_score - p.base_score for p in arm] for arm in (before, again)]
    gap = st.paired_t([a - b for a, b in zip(*gains, strict=True)], CONFIDENCE)
    mean = [sum(values) / len(values) for values in gains]
    low = max(gap.low, -2.0)
    return {
        "reworded_rows": len(again), "reworded_gain_before": st.rounded(mean[0]), "reworded_gain": st.rounded(mean[1]),
        "reworded_gap": st.rounded(gap.point), "reworded_low": st.rounded(low), "reworded_flagged": st.rounded(low) > FLAGGED_FROM,
    }  # fmt: skip
