"""What a real API server (v1.36) answers with 422 or 400: the rules that a wrong manifest of ours could break."""

from __future__ import annotations

import re
from typing import Any

from ft_pipeline_tests.workers.fake_cluster import Refused

LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
QUANTITY = re.compile(r"[0-9.]+(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def refuse_invalid(plural: str, body: dict[str, Any]) -> None:
    """Raises Refused with the message of a server."""
    about = body["metadata"]
    faults = [] if NAME.fullmatch(about["name"]) else [f'metadata.name: Invalid value: "{about["name"]}": RFC 1123']
    faults += [
        f'metadata.labels: Invalid value: "{value}"'
        for value in (about.get("labels") or {}).values()
        if len(value) > 63 or not LABEL.fullmatch(value)
    ]
    if plural == "jobs":
        faults += _faults_of_job(body["spec"], about["name"])
    if faults:
        kind = body["kind"]
        raise Refused(422, f'{kind}.batch "{about["name"]}" is invalid: ' + ", ".join(faults), "Invalid")


def _faults_of_job(spec: dict[str, Any], name: str) -> list[str]:
    template = spec["template"]["spec"]
    faults = []
    if spec.get("completionMode") not in (None, "Indexed", "NonIndexed"):
        faults.append(f'spec.completionMode: Unsupported value: "{spec["completionMode"]}"')
    if len(name) > 61:
        faults.append("metadata.name: an index would make the host name longer than 63 characters")
    if template.get("restartPolicy") not in ("Never", "OnFailure"):
        faults.append('spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"')
    policy = spec.get("podFailurePolicy")
    if policy:
        faults += _faults_of_policy(policy, template)
        if template.get("restartPolicy") != "Never":
            faults.append(
                "spec.template.spec.restartPolicy: only Never is supported when podFailurePolicy is specified"
            )
        if spec.get("podReplacementPolicy") == "TerminatingOrFailed":
            faults.append("spec.podReplacementPolicy: only Failed is supported when podFailurePolicy is specified")
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        faults.append("spec.maxFailedIndexes: requires backoffLimitPerIndex")
    return faults + [
        fault for container in template["containers"] for fault in _faults_of_container(container, template)
    ]


def _faults_of_policy(policy: dict[str, Any], template: dict[str, Any]) -> list[str]:
    faults, names = [], [c["name"] for c in template["containers"]]
    for rule in policy["rules"]:
        if rule["action"] not in ("FailJob", "FailIndex", "Ignore", "Count"):
            faults.append(f'podFailurePolicy.rules.action: Unsupported value: "{rule["action"]}"')
        codes = rule.get("onExitCodes")
        if codes:
            values = codes["values"]
            if codes.get("containerName") not in (None, *names):
                faults.append(f'onExitCodes.containerName: Invalid value: "{codes["containerName"]}"')
            if values != sorted(set(values)):
                faults.append("onExitCodes.values: must be ordered and unique")
            if 0 in values and codes["operator"] == "In":
                faults.append("onExitCodes.values: must not be 0 for the In operator")
    return faults


def _faults_of_container(container: dict[str, Any], template: dict[str, Any]) -> list[str]:
    volumes = {v["name"] for v in template.get("volumes", ())}
    faults = [
        f'volumeMounts.name: Not found: "{m["name"]}"'
        for m in container.get("volumeMounts", ())
        if m["name"] not in volumes
    ]
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name, value in [*requests.items(), *limits.items()]:
        if not QUANTITY.fullmatch(str(value)):
            faults.append(f'resources.{name}: quantities must match the regular expression: "{value}"')
    for name in {*requests, *limits}:
        if "/" in name and requests.get(name, limits.get(name)) != limits.get(name):
            faults.append(f"resources.limits.{name}: must be equal to request")
    ports = [p["containerPort"] for p in container.get("ports", ()) if not 0 < p["containerPort"] < 65536]
    return faults + [f"ports.containerPort: Invalid value: {port}" for port in ports]
