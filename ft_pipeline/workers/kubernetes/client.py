"""The calls that a worker makes to an API server, through the official client, with plain dictionaries in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import RecipeError, UserError

Manifest = dict[str, Any]
CALL_TIMEOUT = (5, 30)
"""Seconds to connect, and to wait for an answer."""
WATCH_SECONDS = 60
"""Of one watch; then it is listed again, so that nothing is missed for longer whatever happens on the way."""


class ApiError(Exception):
    """An answer of the API server that is no success. `status` 0: there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message

    @property
    def passes(self) -> bool:
        """True for what may be different in a moment: no answer, an overloaded server, a webhook that is down."""
        return self.status in (0, 408, 429) or self.status >= 500

    def told(self, action: str) -> UserError:
        """The same for a person."""
        if self.status in (400, 422):
            return RecipeError(f"the API server refuses {action}: {self.message}", cure="mend the placement or profile")
        if self.status in (401, 403):
            return UserError(
                f"no permission for {action}: {self.message}",
                cure="bind the role of k8s/workers to the account, or use another kubeconfig",
            )
        return UserError(f"{action} failed with {self.status}: {self.message}", cure="check the namespace and cluster")


@dataclass(frozen=True)
class Cluster:
    """One namespace of one API server."""

    api: Any
    """A kubernetes.client.ApiClient."""
    namespace: str

    def create(self, manifest: Manifest) -> Manifest:
        """The object as the server made it."""
        version = manifest["apiVersion"]
        root = "/api/v1" if version == "v1" else f"/apis/{version}"
        plural = manifest["kind"].lower() + "s"
        return self._json("POST", f"{root}/namespaces/{self.namespace}/{plural}", body=manifest)

    def job(self, name: str) -> Manifest | None:
        """None: there is none."""
        try:
            return self._json("GET", self._jobs(name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def jobs(self, **selectors: str) -> tuple[list[Manifest], str]:
        """Jobs, and the resourceVersion from which to watch."""
        found = self._json("GET", self._jobs(), query=selectors)
        return found["items"], found["metadata"]["resourceVersion"]

    def watch_jobs(self, version: str, **selectors: str) -> Iterator[tuple[str, Manifest]]:
        """Events (type, object) until the server ends the stream. Raises ApiError for 410, 504 and a broken connection."""
        query = selectors | {
            "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS),
        }  # fmt: skip
        for line in self._lines("GET", self._jobs(), query=query, timeout=(5, WATCH_SECONDS + 15)):
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise ApiError(int(event["object"].get("code") or 500), event["object"].get("message", ""))
            yield event["type"], event["object"]

    def pods(self, job: str) -> list[Manifest]:
        """Of a Job, those that are going and those that have ended."""
        query = {"labelSelector": f"batch.kubernetes.io/job-name={job}"}
        return self._json("GET", f"{self._core()}/pods", query=query)["items"]

    def events(self, name: str) -> list[Manifest]:
        """About one object."""
        query = {"fieldSelector": f"involvedObject.name={name}"}
        return self._json("GET", f"{self._core()}/events", query=query)["items"]

    def log(self, pod: str, *, since: str | None = None) -> Iterator[bytes]:
        """Lines of a pod's log with their times, until the container ends."""
        query = {"follow": "true", "timestamps": "true"} | ({"sinceTime": since} if since else {})
        yield from self._lines("GET", f"{self._core()}/pods/{pod}/log", query=query, timeout=(5, 600))

    def workloads(self, job_uid: str) -> list[Manifest]:
        """Of Kueue: what admits the Job; empty where Kueue is not installed or may not be read."""
        path = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{self.namespace}/workloads"
        try:
            return self._json("GET", path, query={"labelSelector": f"kueue.x-k8s.io/job-uid={job_uid}"})["items"]
        except ApiError as error:
            if error.status in (403, 404):
                return []
            raise

    def owned(self, kind: str, name: str) -> list[str]:
        """Uids of the owners of a Service or ConfigMap; empty when there is none of this name."""
        try:
            found = self._json("GET", f"{self._core()}/{kind.lower()}s/{name}")
        except ApiError as error:
            if error.status == 404:
                return []
            raise
        return [owner["uid"] for owner in found["metadata"].get("ownerReferences") or ()]

    def delete_job(self, name: str, uid: str) -> None:
        """Foreground: the pods end first, then what the Job owns, then its name is free. The default would orphan running pods.

        A Job of the same name that somebody made since is left alone.
        """
        body = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground", "preconditions": {"uid": uid},
        }  # fmt: skip
        try:
            self._json("DELETE", self._jobs(name), body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def _core(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}"

    def _jobs(self, name: str = "") -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs" + (f"/{name}" if name else "")

    def _json(self, method: str, path: str, **more: Any) -> Manifest:
        response = self._call(method, path, **more)
        try:
            return json.loads(response.data)
        except ValueError as error:
            raise ApiError(0, f"an answer that is no JSON: {error}") from error
        finally:
            response.release_conn()

    def _lines(self, method: str, path: str, **more: Any) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        response, rest = self._call(method, path, **more), b""
        try:
            for piece in response.stream(65536, decode_content=False):
                *lines, rest = (rest + piece).split(b"\n")
                yield from (line for line in lines if line)
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"the stream broke: {error}") from error
        finally:
            response.close()

    def _call(self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, timeout: Any = CALL_TIMEOUT) -> Any:  # fmt: skip
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self.api.call_api(
                path, method, query_params=list((query or {}).items()), body=body, auth_settings=["BearerToken"],
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                _preload_content=False, _return_http_data_only=True, _request_timeout=timeout,
            )  # fmt: skip
        except ApiException as error:
            raise ApiError(int(error.status or 0), _message(error)) from error
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"{self.api.configuration.host} does not answer: {error}") from error


def connect(namespace: str, *, kubeconfig: str | None = None, context: str | None = None) -> Cluster:
    """The cluster that this pod is in, else the one of the kubeconfig. Raises UserError when there is neither."""
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    made = client.Configuration()
    try:
        try:
            if kubeconfig or context:
                raise ConfigException
            config.load_incluster_config(client_configuration=made)
        except ConfigException:
            config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=made)
    except (ConfigException, OSError) as error:
        raise UserError(
            f"no cluster to talk to: {error}",
            cure="set KUBECONFIG, or run inside a cluster with a service account token",
        ) from error
    return cluster_of(made, namespace)


def cluster_of(configuration: Any, namespace: str) -> Cluster:
    """A cluster for a kubernetes.client.Configuration. Retries are ours: the client's own would hide a server that is down."""
    from kubernetes import client

    configuration.retries = False
    configuration.connection_pool_maxsize = 64
    return Cluster(client.ApiClient(configuration), namespace)


def _message(error: Any) -> str:
    """What a Status object says, else the body."""
    body = (
        error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or error.reason or "")
    )
    try:
        return json.loads(body).get("message") or body
    except (ValueError, AttributeError):
        return body[:500]
