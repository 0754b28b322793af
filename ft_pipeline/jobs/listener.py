"""What a run says while it works, written into its job's row: status, progress, metrics, checkpoints, events. About once a second.

Training never fails because of it: a database that does not answer is tried again later, and what the run ended as is read from the
run itself (jobs/dispatch.py). Only one thing stops a run from here: its job is no longer live at this attempt, so nobody wants it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ft_pipeline.errors import FtError
from ft_pipeline.store.platform.queue import Observation, Queue, SavedCheckpoint
from ft_pipeline.store.platform.rows import JobStatus
from ft_pipeline.workers.messages import Message

EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
"""After a failure, before the next try."""
MOST_POINTS = 2000
"""Steps of an attempt whose metrics are kept: a longer run keeps every second, third, ..."""
MOST_SAID = 500
"""Sentences of a process that become events."""
RECENT_STEPS = 100
"""Whose losses are at hand when a checkpoint of them is told, a moment later."""
METRICS = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
_log = logging.getLogger(__name__)


class NotWanted(KeyboardInterrupt):
    """The job was given up or launched again without this run. Ends it as an interruption does: after a checkpoint."""


@dataclass(kw_only=True)
class JobListener:
    """A Listener that writes one job's attempt down."""

    records: Queue
    job_id: str
    attempt: int
    clock: Callable[[], float] = time.monotonic
    _seen: Observation = field(default_factory=Observation)
    _next: float = 0.0
    _said: int = 0
    _recent: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, message: Message) -> None:
        """Notes the message; writes what was noted when it is time. Raises NotWanted."""
        self._note(message)
        if self.clock() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Writes what was noted. Raises NotWanted; a database that does not answer is told to the log and tried again later."""
        if not self._seen:
            return
        self._next = self.clock() + EVERY_SECONDS
        try:
            is_wanted = self.records.observe(self.job_id, self._seen, attempt=self.attempt)
        except FtError as error:
            self._next = self.clock() + PATIENCE_SECONDS
            _log.warning("%s trains on, its status is written later: %s", self.job_id, error.what)
            return
        self._seen = Observation()
        if not is_wanted:
            raise NotWanted(f"{self.job_id} is not live at attempt {self.attempt} any more: this run ends")

    def close(self) -> None:
        """The last word of this process; nothing is raised, because the work is over."""
        try:
            self.flush()
        except NotWanted as told:
            _log.warning("%s", told)

    def _note(self, message: Message) -> None:
        match message.kind, message.task or message.text:
            case "progress", "train":
                self._trained(message)
            case "progress", "evaluate":
                self._is("evaluating", "the gate examines the model")
            case "state", "checkpointing":
                self._is("checkpointing", "a checkpoint is being written")
            case "state", "checkpointed":
                self._saved(message.facts)
            case "log", text:
                self._logged(text, message.facts)
            case "state", text:
                self._say("info", text)

    def _trained(self, message: Message) -> None:
        step, facts = int(message.done), message.facts
        self._is("running", "training goes on" if self.attempt > 1 else "training has begun")
        here = {"step": step, "planned_steps": int(message.total), **_columns(facts)}
        if (rest := facts.get("eta_seconds")) is not None:
            end = datetime.now(UTC) + timedelta(seconds=float(rest))
            here["expected_end"] = end.isoformat(timespec="microseconds")
        self._seen.progress |= here
        values = {name: facts[name] for name in METRICS if _is_number(facts.get(name))}
        self._remember(step, values)
        if step % math.ceil(max(message.total, 1) / MOST_POINTS) == 0 or step in (1, int(message.total)):
            self._seen.points[step] = self._recent[step]

    def _saved(self, facts: Mapping[str, Any]) -> None:
        self._is("running", "training goes on")
        step = int(facts["step"])
        found = self._recent.get(step, {})
        metrics = {"step": step, "train_loss": found.get("loss"), "valid_loss": found.get("valid_loss")}
        told = {name: value for name, value in metrics.items() if value is not None}
        self._seen.checkpoints.append(SavedCheckpoint(step=step, place=f"step-{step:08d}", metrics=told))

    def _logged(self, text: str, facts: Mapping[str, Any]) -> None:
        if "lost_steps" in facts:  # a pod that ended before its time (workers/kubernetes/following.py)
            self._is("preempted", text)
        if _is_number(facts.get("validation_loss")):
            step = int(facts["step"])
            self._remember(step, {"valid_loss": facts["validation_loss"]})
            self._seen.points[step] = self._recent[step]
        self._say("warn" if facts.get("spike") or "guard" in facts else "info", text)

    def _is(self, status: JobStatus, message: str) -> None:
        self._seen.status, self._seen.message = status, message

    def _say(self, level: str, text: str) -> None:
        if self._said < MOST_SAID:
            self._said += 1
            # the first line: what follows in a log is for whoever has the machine, paths of it too
            self._seen.said.append((level, text.partition("\n")[0][:500]))

    def _remember(self, step: int, values: Mapping[str, Any]) -> None:
        self._recent[step] = {**self._recent.get(step, {}), **values}
        while len(self._recent) > RECENT_STEPS:
            del self._recent[next(iter(self._recent))]


def _columns(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a step that are columns of the row."""
    found = {name: facts[name] for name in ("loss", "tokens_per_second") if _is_number(facts.get(name))}
    if _is_number(facts.get("trained_tokens")):
        found["trained_tokens"] = int(facts["trained_tokens"])
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
