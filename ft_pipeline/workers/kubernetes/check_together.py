"""Rules that one object alone cannot break: a Job with its Service and ConfigMap, and with the cluster it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ft_pipeline.workers.kubernetes.found import Found, part, rows
from ft_pipeline.workers.kubernetes.manifest import MARKET, RENDEZVOUS_PORT
from ft_pipeline.workers.kubernetes.profile import Profile, Toleration

Object = Mapping[str, Any]


def together_faults(objects: Sequence[Object], profile: Profile | None) -> Iterator[tuple[str, Found]]:
    """(object, fault) for every training Job among these."""
    for job in objects:
        if job.get("kind") != "Job" or _labels(job).get("app.kubernetes.io/component") != "trainer":
            continue
        name = str(part(job, "metadata").get("name", ""))
        for fault in _job_faults(job, name, objects):
            yield f"Job/{name}", fault
        for kind in ("Service", "ConfigMap"):
            for fault in _owner_faults(kind, name, objects):
                yield f"{kind}/{name}", fault
        if profile is not None:
            for fault in _profile_faults(job, profile):
                yield f"Job/{name}", fault


def _job_faults(job: Object, name: str, objects: Sequence[Object]) -> Iterator[Found]:
    pod = part(job, "spec", "template", "spec")
    if pod.get("subdomain") != name:
        yield (
            "spec.template.spec.subdomain",
            f"{pod.get('subdomain')!r}: pods do not find each other",
            f"{name}, the name of the Service",
        )
    service = _named("Service", name, objects)
    if service is None:
        yield "spec.template.spec.subdomain", f"there is no Service {name}", "a headless Service of the Job's name"
    else:
        yield from _service_faults(service, name)
    folder = {part(v, "configMap").get("name") for v in rows(pod, "volumes")} - {None}
    config = _named("ConfigMap", name, objects)
    if folder != {name} or config is None:
        yield (
            "spec.template.spec.volumes",
            f"no ConfigMap {name} with job.json: pods wait for ever",
            "the three are named alike",
        )
    else:
        yield from _spec_faults(job, config)


def _service_faults(service: Object, name: str) -> Iterator[Found]:
    spec = part(service, "spec")
    if spec.get("clusterIP") != "None":
        yield "Service.spec.clusterIP", f"{spec.get('clusterIP')!r}: pods get no names of their own", "None, in quotes"
    if spec.get("publishNotReadyAddresses") is not True:
        yield "Service.spec.publishNotReadyAddresses", "is not true: names come after the pods need them", "true"
    if spec.get("selector") != {"batch.kubernetes.io/job-name": name}:
        yield (
            "Service.spec.selector",
            f"{spec.get('selector')} does not name the Job",
            f"batch.kubernetes.io/job-name: {name}",
        )
    if RENDEZVOUS_PORT not in [port.get("port") for port in rows(spec, "ports")]:
        yield "Service.spec.ports", f"no port {RENDEZVOUS_PORT}", f"port: {RENDEZVOUS_PORT}"


def _spec_faults(job: Object, config: Object) -> Iterator[Found]:
    """job.json and the Job speak of the same run."""
    try:
        placement = part(json.loads(str(part(config, "data").get("job.json", ""))), "placement")
    except ValueError as error:
        yield "ConfigMap.data.job.json", f"is no JSON: {error}", "render it again"
        return
    if placement.get("nodes") != part(job, "spec").get("completions"):
        yield "spec.completions", f"{part(job, 'spec').get('completions')} pods for {placement.get('nodes')} nodes in job.json", "render it again"  # fmt: skip


def _owner_faults(kind: str, name: str, objects: Sequence[Object]) -> Iterator[Found]:
    """A rendered object has no owner yet: its uid is known when the Job is there, and the client sets it then."""
    made = _named(kind, name, objects)
    for owner in rows(made, "metadata", "ownerReferences"):
        if (owner.get("kind"), owner.get("name")) != ("Job", name):
            yield (
                "metadata.ownerReferences",
                f"{owner.get('kind')}/{owner.get('name')}: it would stay or go with another",
                f"Job/{name}",
            )


def _profile_faults(job: Object, profile: Profile) -> Iterator[Found]:
    pod, notes = part(job, "spec", "template", "spec"), part(job, "metadata", "annotations")
    gpu = any(profile.gpu_resource in part(c, "resources", "limits") for c in rows(pod, "containers"))
    wanted = profile.gpu_tolerations if gpu else ()
    if notes.get(MARKET) == "spot":
        wanted = (*wanted, *profile.spot_tolerations)
    for toleration in wanted:
        if not any(_meets(said, toleration) for said in rows(pod, "tolerations")):
            yield "spec.template.spec.tolerations", f"{toleration.key} of profile {profile.name} is not tolerated: no node takes the pod", f"tolerate {toleration.key}"  # fmt: skip
    if (where := part(job, "metadata").get("namespace")) != profile.namespace:
        yield "metadata.namespace", f"{where!r}, and the profile's is {profile.namespace!r}", profile.namespace
    if (account := pod.get("serviceAccountName")) != profile.service_account:
        yield "spec.template.spec.serviceAccountName", f"{account!r} may not read the store", profile.service_account


def _meets(said: Object, toleration: Toleration) -> bool:
    value = said.get("value") if said.get("operator", "Equal") == "Equal" else toleration.value
    return (
        said.get("key") == toleration.key
        and value == toleration.value
        and said.get("effect") in (None, toleration.effect)
    )


def _named(kind: str, name: str, objects: Sequence[Object]) -> Object | None:
    return next((o for o in objects if o.get("kind") == kind and part(o, "metadata").get("name") == name), None)


def _labels(made: Object) -> Object:
    return part(made, "metadata", "labels")
