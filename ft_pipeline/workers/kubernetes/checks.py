"""What is wrong with manifests before anything is submitted: the schema, what a server refuses, and what would only show on the night.

A schema sees 6 of the 21 broken manifests of the tests; a real API server (v1.36) refuses most of the others, and accepts the rest, which
then wait for ever, are killed while they save, or run as root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ft_pipeline.errors import RecipeError
from ft_pipeline.workers.kubernetes.check_job import job_faults, trainer_faults
from ft_pipeline.workers.kubernetes.check_pod import pod_faults
from ft_pipeline.workers.kubernetes.check_together import together_faults
from ft_pipeline.workers.kubernetes.found import LABEL, NAME, Found, part, rows
from ft_pipeline.workers.kubernetes.profile import Profile

KUBERNETES = "1.36"
"""The version that the schemas are of, unless another is asked for."""
TRAINER = "trainer"
KNOWN: Mapping[tuple[str, str], frozenset[str]] = MappingProxyType(
    {
        ("kueue.x-k8s.io", "ResourceFlavor"): frozenset({"nodeLabels", "nodeTaints", "tolerations", "topologyName"}),
        ("kueue.x-k8s.io", "ClusterQueue"): frozenset({
            "resourceGroups", "cohortName", "queueingStrategy", "namespaceSelector", "flavorFungibility", "preemption",
            "admissionChecksStrategy", "stopPolicy", "fairSharing", "admissionScope",
        }),
        ("kueue.x-k8s.io", "LocalQueue"): frozenset({"clusterQueue", "stopPolicy", "fairSharing"}),
        ("kueue.x-k8s.io", "WorkloadPriorityClass"): frozenset(),
        ("karpenter.sh", "NodePool"): frozenset({"template", "disruption", "limits", "weight", "replicas"}),
        ("karpenter.k8s.aws", "EC2NodeClass"): frozenset({
            "amiSelectorTerms", "amiFamily", "role", "instanceProfile", "subnetSelectorTerms", "securityGroupSelectorTerms",
            "blockDeviceMappings", "instanceStorePolicy", "metadataOptions", "tags", "userData", "kubelet",
            "capacityReservationSelectorTerms", "detailedMonitoring", "associatePublicIPAddress", "context",
        }),
    }
)  # fmt: skip
"""(group, kind) -> the keys of `spec` of objects that Kubernetes' own schemas do not have (Kueue v1beta2, Karpenter v1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong."""

    object: str
    """`Job/ft-checkpoints-0a1b`."""
    field: str
    what: str
    cure: str
    severe: bool = True
    """False: it works and should not be signed."""


def faults_of(
    objects: Sequence[Mapping[str, Any]], *, profile: Profile | None = None, kubernetes: str | None = KUBERNETES
) -> list[Fault]:
    """Everything wrong with these objects, those of one run or of one installation together.

    profile: of the cluster they are for. kubernetes: version of the schemas; None leaves the schema out.
    """
    found: list[Fault] = []
    for made in objects:
        of = f"{made.get('kind', '?')}/{part(made, 'metadata').get('name', '?')}"
        seen = [*(_schema_faults(made, kubernetes) if kubernetes else ()), *_own_faults(made)]
        found += [Fault(object=of, field=f, what=w, cure=c, severe=s) for f, w, c, s in _told(seen)]
    for of, fault in together_faults(objects, profile):
        found += [Fault(object=of, field=f, what=w, cure=c, severe=s) for f, w, c, s in _told([fault])]
    return found


def refuse_faults(objects: Sequence[Mapping[str, Any]], profile: Profile | None = None) -> None:
    """Raises RecipeError for the first severe fault; without schemas, which need a package of the development environment."""
    severe = [fault for fault in faults_of(objects, profile=profile, kubernetes=None) if fault.severe]
    if severe:
        first = severe[0]
        more = f" ({len(severe) - 1} more: `ft-pipeline k8s check`)" if len(severe) > 1 else ""
        raise RecipeError(f"{first.object}: {first.field}: {first.what}{more}", cure=first.cure)


def has_schemas() -> bool:
    """True when the package with the Kubernetes schemas is installed."""
    from importlib.util import find_spec

    return find_spec("kubernetes_validate") is not None


def _told(found: Iterable[Found]) -> Iterator[tuple[str, str, str, bool]]:
    """A cure that begins with `advice:` is of a fault that is not severe."""
    for field, what, cure in found:
        yield field, what, cure.removeprefix("advice: "), not cure.startswith("advice: ")


def _schema_faults(made: Mapping[str, Any], version: str) -> Iterator[Found]:
    if not {"apiVersion", "kind"} <= set(made):
        yield "apiVersion, kind", "is missing", "every object says what it is"
        return
    known = _known(made)
    if known is not None:
        yield from _unknown_keys(made, known)
        return
    if not has_schemas():
        return
    from kubernetes_validate import SchemaNotFoundError, ValidationError, validate

    try:
        validate(dict(made), version, strict=True)
    except SchemaNotFoundError:
        kind = f"{made['kind']} of {made['apiVersion']}"
        yield "kind", f"Kubernetes {version} has no {kind}", "mend apiVersion or kind"
    except ValidationError as error:
        field = ".".join(str(step) for step in error.path) or "(top)"
        yield field, error.message[:300], f"as the schema of Kubernetes {version} says: {error.validator}"


def _known(made: Mapping[str, Any]) -> frozenset[str] | None:
    return KNOWN.get((str(made["apiVersion"]).partition("/")[0], str(made["kind"])))


def _unknown_keys(made: Mapping[str, Any], known: frozenset[str]) -> Iterator[Found]:
    for key in part(made, "spec"):
        if key not in known:
            yield f"spec.{key}", f"{made['kind']} has no such field", f"one of {', '.join(sorted(known))}"


def _own_faults(made: Mapping[str, Any]) -> Iterator[Found]:
    yield from _metadata_faults(made)
    kind, spec = made.get("kind"), part(made, "spec")
    if kind == "Job":
        yield from job_faults(made)
        if part(made, "metadata", "labels").get("app.kubernetes.io/component") == TRAINER:
            yield from trainer_faults(made)
    if kind in RULES:
        yield from RULES[kind](made)
    pod, where = _pod(made, spec)
    if pod:
        yield from pod_faults(pod, where)


def _pod(made: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    kind = made.get("kind")
    if kind == "Pod":
        return spec, "spec"
    if kind == "CronJob":
        return part(spec, "jobTemplate", "spec", "template", "spec"), "spec.jobTemplate.spec.template.spec"
    if kind in ("Job", "Deployment", "StatefulSet", "DaemonSet"):
        return part(spec, "template", "spec"), "spec.template.spec"
    return {}, ""


def _metadata_faults(made: Mapping[str, Any]) -> Iterator[Found]:
    about = part(made, "metadata")
    name = str(about.get("name", ""))
    if not NAME.fullmatch(name) or len(name) > 253:
        # Roles of the API server's own may have colons; ours do not
        yield (
            "metadata.name",
            f"{name!r} is no RFC 1123 name",
            "lower-case letters, digits and '-', 63 characters at most",
        )
    for key, value in part(about, "labels").items():
        if not isinstance(value, str) or len(value) > 63 or not LABEL.fullmatch(value):
            yield (
                f"metadata.labels.{key}",
                f"{value!r} is no label value",
                "at most 63 letters, digits, '-', '_' and '.'",
            )


def _service_faults(made: Mapping[str, Any]) -> Iterator[Found]:
    for port in rows(made, "spec", "ports"):
        if not _is_port(port.get("port")):
            yield "spec.ports.port", f"{port.get('port')} is no port", "a number from 1 to 65535"
    if part(made, "spec").get("type") in ("NodePort", "LoadBalancer"):
        yield (
            "spec.type",
            f"{part(made, 'spec')['type']} opens it to the world",
            "ClusterIP; an Ingress with authentication in front",
        )


def _is_port(said: object) -> bool:
    return isinstance(said, int) and 0 < said < 65536


def _priority_faults(made: Mapping[str, Any]) -> Iterator[Found]:
    if "value" not in made:
        yield "value", "a PriorityClass without a value is accepted and means 0", "say value: 1000"


def _namespace_faults(made: Mapping[str, Any]) -> Iterator[Found]:
    said = part(made, "metadata", "labels").get("pod-security.kubernetes.io/enforce")
    if said != "restricted":
        yield (
            "metadata.labels.pod-security.kubernetes.io/enforce",
            f"is {said!r}: a pod may run as root here",
            "restricted; every pod of ours fits",
        )


def _role_faults(made: Mapping[str, Any]) -> Iterator[Found]:
    for number, rule in enumerate(rows(made, "rules")):
        for field in ("verbs", "resources", "apiGroups"):
            if "*" in (rule.get(field) or ()):
                yield f"rules[{number}].{field}", "'*' gives more than is needed", "name what is needed"
        if "secrets" in (rule.get("resources") or ()):
            yield f"rules[{number}].resources", "secrets can be read", "mount the one secret that a pod needs"


RULES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Found]]] = MappingProxyType(
    {
        "Service": _service_faults,
        "PriorityClass": _priority_faults,
        "Namespace": _namespace_faults,
        "Role": _role_faults,
        "ClusterRole": _role_faults,
    }
)
"""Kind -> what is asked of it besides its schema."""
