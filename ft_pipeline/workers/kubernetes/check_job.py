"""Rules of a batch/v1 Job: what the server refuses, and what a training Job of ours must say to survive its cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ft_pipeline.workers.kubernetes.found import Found, part, rows
from ft_pipeline.workers.outcome import FAILED_FOR_GOOD, PREEMPTED, STOPPED

LONGEST_NAME = 61
"""With the index of a pod behind it the host name has 63 characters."""
MARGIN_SECONDS = 2
"""Of the grace, after the trainer has saved: the launcher sends the rest and leaves."""
ACTIONS = ("FailJob", "FailIndex", "Ignore", "Count")
CRASHES = (1, 134, 137)
POLICY = "spec.podFailurePolicy.rules"


def job_faults(job: Mapping[str, Any]) -> Iterator[Found]:
    """What a server refuses of any Job."""
    spec, pod = part(job, "spec"), part(job, "spec", "template", "spec")
    mode, restart = spec.get("completionMode", "NonIndexed"), pod.get("restartPolicy")
    if mode not in ("Indexed", "NonIndexed"):
        yield "spec.completionMode", f"{mode!r} is not known", "Indexed"
    if restart not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy", f"{restart!r} is not for Jobs", "Never"
    if "podFailurePolicy" in spec:
        if restart != "Never":
            yield (
                "spec.template.spec.restartPolicy",
                f"{restart!r} with a podFailurePolicy",
                "Never: the policy judges ended pods",
            )
        if spec.get("podReplacementPolicy", "Failed") != "Failed":
            yield "spec.podReplacementPolicy", f"{spec['podReplacementPolicy']!r} with a podFailurePolicy", "Failed: never two writers for one index"  # fmt: skip
        for number, rule in enumerate(rows(spec, "podFailurePolicy", "rules")):
            yield from _rule_faults(rule, f"{POLICY}[{number}]", spec)
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        yield "spec.maxFailedIndexes", "without backoffLimitPerIndex", "set backoffLimitPerIndex: 3"


def trainer_faults(job: Mapping[str, Any]) -> Iterator[Found]:
    """What a server accepts of a training Job, and what would lose work."""
    spec, name = part(job, "spec"), str(part(job, "metadata").get("name", ""))
    if len(name) > LONGEST_NAME:
        yield "metadata.name", f"{len(name)} characters: pods could not be named", f"at most {LONGEST_NAME}"
    if "backoffLimit" in spec:
        yield "spec.backoffLimit", f"{spec['backoffLimit']}: counts pods of all indexes and waits up to 10 minutes", "remove it; backoffLimitPerIndex: 3 and maxFailedIndexes: 0"  # fmt: skip
    if spec.get("completionMode") == "NonIndexed" or "completionMode" not in spec:
        yield "spec.completionMode", "a gang needs an index for each pod", "Indexed"
    if spec.get("completions") != spec.get("parallelism"):
        yield "spec.parallelism", f"{spec.get('parallelism')} of {spec.get('completions')} pods: the gang waits for itself", "the same as completions"  # fmt: skip
    for field, cure in (
        ("backoffLimitPerIndex", "3"), ("maxFailedIndexes", "0"), ("podReplacementPolicy", "Failed"),
        ("activeDeadlineSeconds", "172800: a pod that never starts must end some day"),
        ("ttlSecondsAfterFinished", "86400: an ended Job goes by itself, with what it owns"),
    ):  # fmt: skip
        if field not in spec:
            yield f"spec.{field}", "is missing", cure
    yield from _policy_faults(spec)
    yield from _grace_faults(part(spec, "template", "spec"))


def _rule_faults(rule: Mapping[str, Any], where: str, spec: Mapping[str, Any]) -> Iterator[Found]:
    if rule.get("action") not in ACTIONS:
        yield f"{where}.action", f"{rule.get('action')!r} is not known", f"one of {', '.join(ACTIONS)}"
    if rule.get("action") == "FailIndex" and "backoffLimitPerIndex" not in spec:
        yield f"{where}.action", "FailIndex without backoffLimitPerIndex", "set spec.backoffLimitPerIndex"
    if "onExitCodes" not in rule:
        return
    codes = part(rule, "onExitCodes")
    names = [container.get("name") for container in rows(spec, "template", "spec", "containers")]
    if codes.get("containerName") not in (None, *names):
        yield f"{where}.onExitCodes.containerName", f"there is no container {codes.get('containerName')!r}", f"one of {', '.join(map(str, names))}"  # fmt: skip
    values = codes.get("values")
    values = [v for v in values if isinstance(v, int)] if isinstance(values, list) else []
    if values != sorted(set(values)):
        yield f"{where}.onExitCodes.values", f"{values} is not ordered and unique", f"{sorted(set(values))}"
    if 0 in values and codes.get("operator") == "In":
        yield f"{where}.onExitCodes.values", "0 with In: success is no failure", "remove 0"


def _policy_faults(spec: Mapping[str, Any]) -> Iterator[Found]:
    """The codes of workers/outcome.py mean here what they mean there."""
    rules = rows(spec, "podFailurePolicy", "rules")
    wanted = ((FAILED_FOR_GOOD, "FailJob", "would train into the same NaN again"), (PREEMPTED, "Ignore", "an interruption would be counted as a crash"), (STOPPED, "Ignore", "an interruption would be counted as a crash"))  # fmt: skip
    for code, action, why in wanted:
        if (said := _action(rules, code)) != action:
            yield POLICY, f"exit code {code} is {said or 'in no rule'}: it {why}" if code == FAILED_FOR_GOOD else f"exit code {code} is {said or 'in no rule'}: {why}", f"{action} on [{code}]"  # fmt: skip
    for code in CRASHES:
        if _action(rules, code) in ("Ignore", "FailJob"):
            yield (
                POLICY,
                f"exit code {code}, a crash, is {_action(rules, code)}",
                "leave it out: crashes are counted, three for each index",
            )
    if not any(rule.get("action") == "Ignore" and _on_disruption(rule) for rule in rules):
        yield (
            POLICY,
            "no rule for DisruptionTarget: a lost spot node is counted as a crash",
            "Ignore onPodConditions DisruptionTarget",
        )


def _action(rules: list[Mapping[str, Any]], code: int) -> str | None:
    """Of the first rule that a code meets."""
    for rule in rules:
        codes = part(rule, "onExitCodes")
        values = codes.get("values")
        if isinstance(values, list) and (code in values) == (codes.get("operator") == "In"):
            return str(rule.get("action"))
    return None


def _on_disruption(rule: Mapping[str, Any]) -> bool:
    return any(condition.get("type") == "DisruptionTarget" for condition in rows(rule, "onPodConditions"))


def _grace_faults(pod: Mapping[str, Any]) -> Iterator[Found]:
    said = pod.get("terminationGracePeriodSeconds", 30)
    shutdown = next((int(a.partition("=")[2]) for a in _arguments(pod) if a.startswith("--shutdown-seconds=")), None)
    if shutdown is None:
        yield "spec.template.spec.containers[trainer].args", "no --shutdown-seconds: the trainer is killed after 30 s", "the profile's shutdown_seconds"  # fmt: skip
    elif not isinstance(said, int) or said < shutdown + MARGIN_SECONDS:
        yield "spec.template.spec.terminationGracePeriodSeconds", f"{said} s with --shutdown-seconds={shutdown}: killed while it saves", f"at least {shutdown + MARGIN_SECONDS}"  # fmt: skip


def _arguments(pod: Mapping[str, Any]) -> list[str]:
    return [str(a) for container in rows(pod, "containers") for a in container.get("args") or ()]
