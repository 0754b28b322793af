"""The evidence of one evaluation: rounds of questions to both arms until every benchmark is decided or asked to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ft_pipeline.gate import statistics as st
from ft_pipeline.gate.artifact import Noise
from ft_pipeline.gate.asking import Answered, Asking, Part
from ft_pipeline.gate.noise import noise_floor
from ft_pipeline.gate.policy import Policy
from ft_pipeline.gate.probes.probe import Probe
from ft_pipeline.gate.rounds import Block, rounds
from ft_pipeline.gate.samples import EvalIncomparable, NotANumber, Pair, paired
from ft_pipeline.gate.verdicts.benchmark import looks_apply, looks_of
from ft_pipeline.gate.verdicts.numbers import scores
from ft_pipeline.workers.messages import log

Evidence = dict[str, list[Pair] | str]
"""Probe name -> its pairs in the order they were asked, or the sentence that says why there are none."""


@dataclass
class Measured:
    """What both arms said to the probes that hold a question."""

    probes: Sequence[Probe]
    policy: Policy
    suites: Mapping[str, str]
    """Probe name -> digest of the artifact that holds its questions."""
    evidence: Evidence = field(default_factory=dict)
    noise: Noise | None = None
    plans: dict[str, st.Plan] = field(default_factory=dict)
    """Benchmark -> when it is looked at; one that is asked as a whole is not in it."""
    _rounds: dict[str, list[list[Block]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        benchmarks = [p for p in self.probes if p.kind == "benchmark"]
        self.plans = {
            p.name: looks_of(self.policy, p.num_questions, num_suites=len(benchmarks))
            for p in benchmarks
            if looks_apply(self.policy)
        }
        self._rounds = {
            p.name: rounds(p, self.plans.get(p.name), seed=self.suites[p.name]) for p in self.probes if p.num_questions
        }

    @property
    def most(self) -> int:
        """Questions that are asked of each arm when no look decides early."""
        return sum(p.num_questions for p in self.probes)

    def run(self, asking: Asking) -> None:
        """Asks round after round; a probe leaves when it is decided, asked to its end, or has no answers."""
        left = [p for p in self.probes if p.num_questions]
        number = 0
        while left:
            self._round(asking, [(p, self._rounds[p.name][number]) for p in left], first=number == 0)
            number += 1
            left = [p for p in left if self._goes_on(p, number, asking)]
        asking.meter.finish()

    def _round(self, asking: Asking, parts: Sequence[Part], *, first: bool) -> None:
        base = asking.base(parts)
        if first:
            self.noise = _noise(asking, parts, base)
        for (probe, _), ours, theirs in zip(parts, base, asking.adapter(parts), strict=True):
            before, new = self.evidence.get(probe.name, []), _join(ours, theirs)
            self.evidence[probe.name] = before + new if isinstance(before, list) and isinstance(new, list) else new

    def _goes_on(self, probe: Probe, number: int, asking: Asking) -> bool:
        parts, pairs, plan = self._rounds[probe.name], self.evidence[probe.name], self.plans.get(probe.name)
        if isinstance(pairs, list) and plan and number < len(parts):
            look = st.walk(*scores(pairs), plan)[-1]
            if look.verdict == "CONTINUE":
                return True
            log(
                asking.meter.listener,
                f"{probe.name} is decided after {look.rows:,} of {probe.num_questions:,} questions",
            )
        asking.meter.total -= 2 * sum(len(block) for part in parts[number:] for block in part)
        return False


def _noise(asking: Asking, parts: Sequence[Part], base: Sequence[Answered]) -> Noise | None:
    """Of the first benchmark: its scores show a change of any answer; of the holdout where there is none."""
    order = sorted(range(len(parts)), key=lambda i: (parts[i][0].kind != "benchmark", i))
    for index in order:
        samples = base[index]
        if not isinstance(samples, str):
            return noise_floor(asking, parts[index], samples)
    return None


def _join(base: Answered, adapter: Answered) -> list[Pair] | str:
    if isinstance(base, str) or isinstance(adapter, str):
        return f"base: {base}" if isinstance(base, str) else f"adapter: {adapter}"
    try:
        return paired(base, adapter)
    except (EvalIncomparable, NotANumber) as error:
        return f"{error.what}. {error.why}"
