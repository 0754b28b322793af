"""The child that evaluates: `python -m ft_pipeline.gate.main job.json`. A report with a FAIL in it is a success of this process."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.workers.preemption import StopRequest, listen, stop_request

if __name__ == "__main__":
    listen()

import torch

from ft_pipeline.gate import verdicts
from ft_pipeline.gate.arms import Arms
from ft_pipeline.gate.artifact import EvalReport, GateResult
from ft_pipeline.gate.asking import ANSWERS, Asking, Meter
from ft_pipeline.gate.contaminated import with_clean_scores
from ft_pipeline.gate.leaked import judged_on_unseen, seen_before
from ft_pipeline.gate.measured import Evidence, Measured
from ft_pipeline.gate.panel import OPINIONS, Panel
from ft_pipeline.gate.policy import Policy, parse_policy
from ft_pipeline.gate.probes import Probe, plan
from ft_pipeline.gate.report import write_report
from ft_pipeline.gate.safety_scoring import safety_gates
from ft_pipeline.judging.transcripts import TRANSCRIPTS, Row, write_rows
from ft_pipeline.store.artifacts import Store
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Listener, log


def body(job: Job, store: Store, mailbox: Listener) -> None:
    """The whole evaluation of a process that may be told to stop: what was answered until then is kept."""
    evaluate(job, store, mailbox, stop=stop_request())


def evaluate(job: Job, store: Store, mailbox: Listener, *, stop: StopRequest) -> None:
    """Asks both arms, decides, publishes the `eval_report`. Raises DataError when the adapter does not fit the base, Interrupted."""
    started = time.monotonic()
    torch.set_num_threads(job.placement.threads)
    parents = {role: store.fetch(ref) for role, ref in job.spec.parents.items()}
    arms = Arms(parents["base"].folder, parents["adapter"].folder, job.placement.device)
    probes = plan(job.spec.config, parents, arms.tokenizer)
    policy = parse_policy(job.spec.config["policy"], origin=job.spec.config["policy_name"])
    measured = Measured(probes, policy, {p.name: parents[p.role].ref.digest for p in probes})
    asking = Asking(job, store, arms, Meter(mailbox, total=2 * measured.most), stop)
    panel = Panel(job, parents, mailbox, stop)
    measured.run(asking)
    exam = measured.evidence.get("holdout")
    seen = seen_before(asking, exam, parents=parents, section=job.spec.config["holdout"])
    arms.release()
    said = panel.ask(measured.evidence)
    report = with_clean_scores(decide(probes, measured, job.spec.config, said=said), measured.evidence, parents)
    report = judged_on_unseen(report, seen, exam, policy=policy)
    with store.publish(job.spec) as draft:
        write_report(draft, report, {n: e for n, e in measured.evidence.items() if not isinstance(e, str)})
        if said:
            draft.logical[TRANSCRIPTS] = write_rows(draft.folder / TRANSCRIPTS, said)
        draft.execution.update(seconds=round(time.monotonic() - started, 1), device=job.placement.device)
    for name in (ANSWERS, OPINIONS):
        shutil.rmtree(job.folder / name, ignore_errors=True)
    log(mailbox, f"{report.verdict}: {report.reason}", verdict=str(report.verdict))


def decide(
    probes: Sequence[Probe], measured: Measured, config: Mapping[str, Any], *, said: Sequence[Row] = ()
) -> EvalReport:
    """The report: every gate's verdict and the one over all of them. `said`: what judges and classifiers said."""
    policy, evidence = measured.policy, measured.evidence
    safety = safety_gates(evidence, policy, section=config["safety"], rows=said)
    gates = [*_holdout(probes[0], evidence, policy), *_benchmarks(measured), *safety, *_judge(measured, config, said)]
    report = verdicts.overall(gates, policy, name=config["policy_name"])
    return verdicts.with_noise(report, measured.noise, policy)


def _holdout(probe: Probe, evidence: Evidence, policy: Policy) -> list[GateResult]:
    pairs = evidence.get("holdout")
    if pairs is None:
        reason = "the holdout holds no row with an answer to compare with"
        return [verdicts.skipped("holdout", policy, reason)]
    if isinstance(pairs, str):
        return [verdicts.broken("holdout", "holdout", pairs)]
    section = probe.identity
    return [
        verdicts.holdout(
            pairs, policy, metric=section["metric"], parameters=section["parameters"], skipped=probe.skipped
        )
    ]


def _benchmarks(measured: Measured) -> list[GateResult]:
    policy = measured.policy
    found = [(p, measured.evidence[p.name]) for p in measured.probes if p.kind == "benchmark"]
    if not found:
        return [verdicts.skipped("benchmark", policy, "the recipe names no benchmark")]
    whole = [(p.name, e) for p, e in found if not isinstance(e, str)]
    sizes = {p.name: p.num_questions for p, _ in found}
    results = {r.name: r for r in verdicts.benchmarks(whole, policy, sizes=sizes)}
    return [verdicts.broken(p.name, "benchmark", e) if isinstance(e, str) else results[p.name] for p, e in found]


def _judge(measured: Measured, config: Mapping[str, Any], rows: Sequence[Row]) -> list[GateResult]:
    policy, pairs = measured.policy, measured.evidence.get("judge")
    if pairs is None:
        asked = config["judge"] or "judge" in policy.required
        return [verdicts.skipped("judge", policy, "the recipe names no judge, or no prompt for it")] if asked else []
    if isinstance(pairs, str):
        return [verdicts.broken("judge", "judge", pairs)]
    return [verdicts.judge(rows, policy, who=config["judge"]["judge"]["model"])]


if __name__ == "__main__":
    sys.exit(run_child(body, sys.argv))
