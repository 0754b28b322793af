"""A trainer that counts: each step adds its number, a checkpoint is the sum, the artifact is the list of sums. No torch.

section: steps, seconds (of a step), every (steps between checkpoints), do: what it does at `at`, the step, in its first attempt:
`nan`, `crash`, `stubborn` (never heeds SIGTERM), `exit 0`. With several nodes the pods share a folder, FAKE_GANG: index 0 counts, the
others wait; a peer that stops makes all save and stop, a peer that is killed breaks index 0, as gloo does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from ft_pipeline import settings
from ft_pipeline.errors import Interrupted, TrainingFailed
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.files import write_atomic
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Mailbox, log, progress


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    asked: list[int] = []
    do, index = job.section.get("do", ""), settings.load().team_member
    signal.signal(signal.SIGTERM, (lambda *_: None) if do == "stubborn" else (lambda *_: asked.append(1)))
    gang = Gang(Path(os.environ.get("FAKE_GANG", job.folder / "gang")), index, job.placement.nodes)
    if index > 0:
        return gang.follow(asked)
    gang.gather(asked)
    state = _newest(job.folder)
    log(mailbox, f"starts at step {state['step']}", step=state["step"])
    _count(job, mailbox, (state, asked, gang))
    if do == "exit 0":
        return None
    with store.publish(job.spec) as draft:
        (draft.folder / "sums.json").write_text(json.dumps(state["sums"]))
        draft.execution["started_at"] = state["started"]
    gang.done()
    return None


def _count(job: Job, mailbox: Mailbox, running: tuple[dict, list[int], Gang]) -> None:
    state, asked, gang = running
    steps, do = int(job.section["steps"]), job.section.get("do", "")
    while state["step"] < steps:
        time.sleep(job.section.get("seconds", 0.02))
        state["step"] += 1
        state["sums"].append(state["step"] + (state["sums"] or [0])[-1])
        progress(mailbox, "train", state["step"], total=steps, unit="step")
        if state["step"] == job.section.get("at", 0) and (do == "nan" or not state.get("resumed")):
            _misbehave(do)
        gang.check()
        if asked or gang.stopping:
            _save(job.folder, state)
            gang.stop()
            raise Interrupted(f"stopped after step {state['step']}")
        if state["step"] % int(job.section.get("every", 10)) == 0:
            _save(job.folder, state)


def _misbehave(do: str) -> None:
    if do == "nan":
        raise TrainingFailed("loss is NaN at step 5", cure="a lower learning rate")
    if do == "crash":
        raise RuntimeError("a bug")
    if do == "exit 0":
        sys.exit(0)


def _newest(folder: Path) -> dict:
    found = sorted((folder / "checkpoints").glob("step-*/state.json"))
    if not found:
        return {"step": 0, "sums": [], "started": [0]}
    state = json.loads(found[-1].read_text())
    return {**state, "started": [*state["started"], state["step"]], "resumed": True}


def _save(folder: Path, state: dict) -> None:
    draft = folder / "checkpoints" / f".step-{state['step']:08d}.tmp"
    target = draft.with_name(f"step-{state['step']:08d}")
    if not target.exists():
        write_atomic(draft / "state.json", json.dumps(state).encode())
        draft.rename(target)


class Gang:
    """The pods of a run, by files in a folder that outlives them."""

    def __init__(self, folder: Path, index: int, size: int) -> None:
        self.folder, self.index, self.size = folder, index, size
        folder.mkdir(parents=True, exist_ok=True)
        self.mine = folder / f"pid-{index}"
        if index == 0:
            (folder / "done").unlink(missing_ok=True)
        write_atomic(self.mine, str(os.getpid()).encode())

    @property
    def stopping(self) -> bool:
        """Of the gang of this leader: what one before was told is over."""
        return (self.folder / f"stop-{self._pid(0)}").exists()

    def gather(self, asked: list[int]) -> None:
        """Index 0: until all are there."""
        while not all(self._alive(i) for i in range(self.size)):
            if asked:
                raise Interrupted("stopped before the first step")
            time.sleep(0.02)

    def check(self) -> None:
        """Index 0: a peer that was killed breaks the connection."""
        if not self.stopping and not all(self._alive(i) for i in range(self.size)):
            raise RuntimeError("Connection closed by peer")

    def follow(self, asked: list[int]) -> None:
        """Another index: until index 0 is done, stops, or dies."""
        leader = False
        while not (self.folder / "done").exists():
            time.sleep(0.02)
            leader = leader or self._alive(0)
            if asked:
                self.stop()
            if asked or (leader and self.stopping):
                raise Interrupted("stopped with the others")
            if leader and not self._alive(0):
                raise RuntimeError("Connection closed by peer")

    def stop(self) -> None:
        (self.folder / f"stop-{self._pid(0)}").touch()

    def done(self) -> None:
        (self.folder / "done").touch()

    def _pid(self, index: int) -> int:
        path = self.folder / f"pid-{index}"
        return int(path.read_text() or 0) if path.exists() else 0

    def _alive(self, index: int) -> bool:
        try:
            state = Path(f"/proc/{self._pid(index)}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"


if __name__ == "__main__":
    sys.exit(run_child(body, sys.argv))
