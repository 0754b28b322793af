"""A worker whose jobs are Kubernetes Jobs. The same door as LocalWorker: a Job in, the artifact out, or an error that says what to do."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from ft_pipeline.errors import FtError, Interrupted, StorageError, TrainingFailed
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.kubernetes.attaching import Attached, Pace, attach, detach
from ft_pipeline.workers.kubernetes.carried import forget, is_known
from ft_pipeline.workers.kubernetes.checks import refuse_faults
from ft_pipeline.workers.kubernetes.client import ApiError, Cluster
from ft_pipeline.workers.kubernetes.following import MOST_WITHOUT_PROGRESS, End, Following
from ft_pipeline.workers.kubernetes.manifest import Market, first_market, job_name, manifests, shape
from ft_pipeline.workers.kubernetes.profile import BARE, Profile
from ft_pipeline.workers.kubernetes.verdict import PodEnd, State, culprit
from ft_pipeline.workers.kubernetes.watching import Jobs
from ft_pipeline.workers.messages import Listener, log
from ft_pipeline.workers.outcome import Outcome

AGAIN = "the same command resumes from the newest checkpoint"


def always() -> bool:
    """A person pressed Ctrl-C: the run is cancelled."""
    return True


@dataclass(frozen=True, kw_only=True)
class KubernetesWorker:
    """Runs jobs in one namespace of one cluster."""

    settings: Settings
    store: Store
    cluster: Cluster
    profile: Profile = BARE
    is_cancelled: Callable[[], bool] = always
    """Asked when this process is interrupted. False: only the orchestrator goes, the Job stays and is found again."""
    jobs: Jobs | None = None
    """A watch that many runs of this process share. None: each watches its own Job."""
    pace: Pace = field(default_factory=Pace)

    def run(self, job: Job, listener: Listener) -> Artifact:
        """The artifact that the job publishes; found instead of made when the store has it.

        Raises TrainingFailed (for good), Interrupted (the Job was deleted: run again to resume), StorageError, UserError (refused).
        """
        if found := self.store.find(job.spec):
            text = f"reused {job.spec.kind} {found.ref.digest[:12]}: same inputs, nothing to compute"
            log(listener, text, reused=True)
            if is_known(self.store, job.spec.fingerprint):
                self._clear_away(job, listener)
            return found
        return _Run(self, job, listener).artifact()

    def _clear_away(self, job: Job, listener: Listener) -> None:
        """After a Job that ended while nobody looked. When the cluster does not answer, its day after the end does it."""
        name = job_name(job)
        try:
            left = self.cluster.job(name)
            if left is not None:
                self.cluster.delete_job(name, left["metadata"]["uid"])
        except ApiError as error:
            log(listener, f"Job {name} may be left in the cluster: {error.message}")
            return
        forget(self.store, job.spec.fingerprint)


@dataclass
class _Run:
    """One call of `run`."""

    worker: KubernetesWorker
    job: Job
    listener: Listener
    generation: str = field(default_factory=lambda: secrets.token_hex(6))
    attached: Attached | None = None

    def artifact(self) -> Artifact:
        market = first_market(shape(self.job, self.job.placement), self.worker.profile)
        try:
            while True:
                followed, end = self._followed(market)
                if end is not End.NO_NODES:
                    return self._result(followed, end)
                market = "on-demand"
                self._tell(
                    f"no spot node in {self.job.placement.on_demand_after_minutes:g} minutes: the Job is made again on nodes that stay"
                )
                self._detach()
        except FtError:
            raise
        except BaseException:
            self._interrupted()
            raise

    def _followed(self, market: Market) -> tuple[Following, End]:
        worker, job = self.worker, self.job
        profile = worker.profile
        objects = manifests(job, job.placement, profile, generation=self.generation, market=market)
        refuse_faults(objects, profile)
        self.attached = attach(worker.cluster, objects, self._tell, pace=worker.pace)
        self.generation = self.attached.generation
        how = "made" if self.attached.created else "found, made by an earlier orchestrator"
        self._tell(f"Job {self.attached.name} {how} ({self.attached.market})")
        followed = Following(
            job=job, attached=self.attached, cluster=worker.cluster, store=worker.store, listener=self.listener,
            pace=worker.pace, queued=profile.queue is not None,
        )  # fmt: skip
        with ExitStack() as stack:
            own = Jobs(worker.cluster, {"fieldSelector": f"metadata.name={self.attached.name}"})
            return followed, followed.until_it_ends(worker.jobs or stack.enter_context(own))

    def _result(self, followed: Following, end: End) -> Artifact:
        made = self.worker.store.find(self.job.spec)
        self._detach()
        if made is not None:
            forget(self.worker.store, self.job.spec.fingerprint)
            return made
        raise _failure(self.job, followed, end)

    def _interrupted(self) -> None:
        """This process is to leave: with the Job when the run was cancelled, without it otherwise."""
        if not self.worker.is_cancelled():
            return
        cluster, name = self.worker.cluster, job_name(self.job)
        if self.attached is None:
            found = cluster.job(name)
            notes = found["metadata"].get("annotations", {}) if found else {}
            if found is None or notes.get("ft-pipeline/generation") != self.generation:
                return
            self.attached = Attached(
                name=name, uid=found["metadata"]["uid"], generation=self.generation, market="", created=True
            )
        self._detach()

    def _detach(self) -> None:
        if self.attached is not None:
            detach(self.worker.cluster, self.attached, self._tell, pace=self.worker.pace)

    def _tell(self, text: str) -> None:
        log(self.listener, text)


def _failure(job: Job, followed: Following, end: End) -> FtError:
    ends, verdict = list(followed.ends.values()), followed.verdict
    why = f"The cluster says {verdict.reason}: {verdict.message}" if verdict.reason else ""
    said = followed.last_error or _last_words(ends)
    log_file = f"the whole log is {job.folder / 'log.txt'}"
    if end is End.GONE:
        return Interrupted(
            f"Job {followed.attached.name} was deleted by somebody", why="Its checkpoints are kept.", cure=AGAIN
        )
    if end is End.NO_PROGRESS:
        return TrainingFailed(
            f"{job.name} was interrupted {MOST_WITHOUT_PROGRESS} times in a row without a newer checkpoint: {said}",
            why="Something permanent looks like an interruption, or checkpoints come too seldom for these nodes.",
            cure=f"save more often, or use nodes that stay; {log_file}",
        )
    if end is End.ATTEMPTS:
        most = job.placement.most_attempts
        return TrainingFailed(
            f"{job.name} was given up after {most} attempts: {said}", cure=f"raise most_attempts; {AGAIN}"
        )
    if verdict.state is State.COMPLETE:
        return TrainingFailed(
            f"{job.name} exited 0 and published nothing", why="Success needs proof: a whole artifact."
        )
    return _failed(job, culprit(ends), said, why=why, reason=verdict.reason, log_file=log_file)


def _failed(job: Job, pod: PodEnd | None, said: str, *, why: str, reason: str, log_file: str) -> FtError:
    if reason == "DeadlineExceeded":
        return TrainingFailed(
            f"{job.name} did not end within its deadline: {said}", why=why, cure=f"{AGAIN}; {log_file}"
        )
    if pod is not None and pod.outcome is Outcome.STORAGE:
        return StorageError(
            f"{job.name} stopped because of its storage: {said}", why=why, cure=f"mend the storage; {AGAIN}"
        )
    if pod is not None and pod.outcome is Outcome.FAILED:
        return TrainingFailed(f"{job.name} failed for good: {said}", why=why, cure=log_file)
    code = "nothing known about its exit" if pod is None or pod.exit_code is None else f"exit code {pod.exit_code}"
    return TrainingFailed(
        f"{job.name} crashed again and again, at last with {code}: {said}", why=why, cure=f"{log_file}; {AGAIN}"
    )


def _last_words(ends: list[PodEnd]) -> str:
    pod = culprit(ends)
    return (pod.message or pod.reason or "it said nothing") if pod else "no pod ever ran"
