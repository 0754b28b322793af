"""The child that evaluates: `python -m ft_pipeline.gate.main job.json`. A report with a FAIL in it is a success of this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ft_pipeline.errors import DataError
from ft_pipeline.gate import baseline, verdicts
from ft_pipeline.gate.arms import Arms
from ft_pipeline.gate.artifact import EvalReport, GateResult
from ft_pipeline.gate.contaminated import with_clean_scores
from ft_pipeline.gate.policy import Policy, parse_policy
from ft_pipeline.gate.probes import HARMFUL, Probe, plan
from ft_pipeline.gate.report import write_report
from ft_pipeline.gate.safety import SCORER
from ft_pipeline.gate.samples import EvalIncomparable, NotANumber, Pair, Sample, paired
from ft_pipeline.store.artifacts import Store
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Listener, log, progress

Answers = dict[str, list[Sample] | str]
"""Probe name -> its samples, or the sentence that says why there are none."""
Evidence = dict[str, list[Pair] | str]


def evaluate(job: Job, store: Store, mailbox: Listener) -> None:
    """Asks both arms, decides, publishes the `eval_report`. Raises DataError when the adapter does not fit the base."""
    started = time.monotonic()
    torch.set_num_threads(job.placement.threads)
    parents = {role: store.fetch(ref) for role, ref in job.spec.parents.items()}
    arms = Arms(parents["base"].folder, parents["adapter"].folder, job.placement.device)
    probes = plan(job.spec.config, parents, arms.tokenizer)
    meter = Meter(mailbox, total=2 * sum(p.num_passes for p in probes))
    base = _base_answers(Bench(job, store, arms, meter), [p for p in probes if p.num_questions])
    adapter = _adapter_answers(arms, [p for p in probes if p.num_questions], meter)
    evidence = {p.name: _join(base[p.name], adapter[p.name]) for p in probes if p.num_questions}
    report = with_clean_scores(decide(probes, evidence, job.spec.config), evidence, parents)
    with store.publish(job.spec) as draft:
        write_report(draft, report, {n: e for n, e in evidence.items() if not isinstance(e, str)})
        draft.execution.update(seconds=round(time.monotonic() - started, 1), device=job.placement.device)
    log(mailbox, f"{report.verdict}: {report.reason}", verdict=str(report.verdict))


def decide(probes: Sequence[Probe], evidence: Evidence, config: Mapping[str, Any]) -> EvalReport:
    """The report: every gate's verdict and the one over all of them."""
    policy = parse_policy(config["policy"], origin=config["policy_name"])
    gates = [*_holdout(probes[0], evidence, policy), *_benchmarks(probes, evidence, policy), *_safety(evidence, policy)]
    return verdicts.overall(gates, policy, name=config["policy_name"])


@dataclass
class Meter:
    """Progress over all probes and both arms."""

    listener: Listener
    total: int
    _before: int = 0
    _facts: dict[str, str] = field(default_factory=dict)

    def ticker(self, arm: str, probe: Probe) -> Callable[[int, int], None]:
        """Counts one probe of one arm."""
        before = self._before
        self._before += probe.num_passes

        def tick(done: int, _total: int) -> None:
            progress(
                self.listener, "evaluate", before + done, total=self.total, unit="answer", arm=arm, gate=probe.name
            )

        return tick


@dataclass(frozen=True)
class Bench:
    """What the base's arm needs."""

    job: Job
    store: Store
    arms: Arms
    meter: Meter

    def spec(self, probe: Probe) -> Any:
        """The baseline of a probe."""
        place = self.job.placement
        device = torch.cuda.get_device_name() if place.device == "cuda" else "cpu"
        identity = {
            **probe.identity, "kind": probe.kind, "template": self.arms.template_sha, "device": device, "threads": place.threads
        }  # fmt: skip
        return baseline.baseline_spec(self.job.spec.parents["base"], self.job.spec.parents[probe.role], identity)


def _base_answers(bench: Bench, probes: Sequence[Probe]) -> Answers:
    answers: Answers = {}
    for probe in probes:
        found = baseline.stored(bench.store, bench.spec(probe))
        if found is not None:
            answers[probe.name] = found
            bench.meter.ticker("base", probe)(probe.num_passes, 0)
    missing = [p for p in probes if p.name not in answers]
    if not missing:
        log(bench.meter.listener, "the base's answers are stored: only the adapter is asked")
        return answers
    with bench.arms.base() as model:
        for probe in missing:
            answers[probe.name] = _answer(probe, model, bench.meter.ticker("base", probe))
    for probe in missing:
        made = answers[probe.name]
        if not isinstance(made, str):
            baseline.keep(bench.store, bench.spec(probe), made)
    return answers


def _adapter_answers(arms: Arms, probes: Sequence[Probe], meter: Meter) -> Answers:
    with arms.adapter() as model:
        return {p.name: _answer(p, model, meter.ticker("adapter", p)) for p in probes}


def _answer(probe: Probe, model: Any, tick: Callable[[int, int], None]) -> list[Sample] | str:
    try:
        return probe.answer(model, tick)
    except (NotANumber, DataError) as error:
        return f"{error.what}. {error.why}"


def _join(base: list[Sample] | str, adapter: list[Sample] | str) -> list[Pair] | str:
    if isinstance(base, str) or isinstance(adapter, str):
        return f"base: {base}" if isinstance(base, str) else f"adapter: {adapter}"
    try:
        return paired(base, adapter)
    except (EvalIncomparable, NotANumber) as error:
        return f"{error.what}. {error.why}"


def _holdout(probe: Probe, evidence: Evidence, policy: Policy) -> list[GateResult]:
    pairs = evidence.get("holdout")
    if pairs is None:
        reason = "the holdout holds no row with an answer to compare with"
        return [verdicts.skipped("holdout", policy, reason)]
    if isinstance(pairs, str):
        return [verdicts.broken("holdout", "holdout", pairs)]
    return [verdicts.holdout(pairs, policy, metric=probe.identity["metric"], skipped=probe.skipped)]


def _benchmarks(probes: Sequence[Probe], evidence: Evidence, policy: Policy) -> list[GateResult]:
    found = [(p.name, evidence[p.name]) for p in probes if p.kind == "benchmark"]
    if not found:
        return [verdicts.skipped("benchmark", policy, "the recipe names no benchmark")]
    results = {r.name: r for r in verdicts.benchmarks([(n, e) for n, e in found if not isinstance(e, str)], policy)}
    return [verdicts.broken(n, "benchmark", e) if isinstance(e, str) else results[n] for n, e in found]


def _safety(evidence: Evidence, policy: Policy) -> list[GateResult]:
    pairs = evidence.get("safety")
    if isinstance(pairs, str):
        return [verdicts.broken("safety", "safety", pairs), verdicts.broken("over_refusal", "over_refusal", pairs)]
    harmful = [p for p in pairs or [] if p.reference == HARMFUL]
    harmless = [p for p in pairs or [] if p.reference != HARMFUL]
    why = "the recipe names no safety prompts" if pairs is None else "the safety suite holds no such prompt"
    return [
        verdicts.safety(harmful, policy, scorer=SCORER) if harmful else verdicts.skipped("safety", policy, why),
        verdicts.over_refusal(harmless, policy, scorer=SCORER)
        if harmless
        else verdicts.skipped("over_refusal", policy, why),
    ]


if __name__ == "__main__":
    sys.exit(run_child(evaluate, sys.argv))
