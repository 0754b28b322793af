"""`python -m ft_pipeline_tests.faults --kills 100 --seed 0 --ranks 1,2`: kills real trainers at random instants and resumes them.

A run is killed a few times, then left alone; its artifact must have the digest of a run that nobody killed, nothing half-written may be
in the store or among the checkpoints, SIGTERM may lose no step and SIGKILL no more than the checkpoint interval. Instants are planted in
what the trainer is doing (PLANTS), or come after a random time; those of `import` go to a process of its own, all others to a fork of
this one, which has the heavy imports behind it. Exit 0 when all of it holds.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ft_pipeline_tests import faulty, left_behind

EVERY_STEPS = 5
MOST_KILLS_OF_A_RUN = 6
WAIT_SECONDS = 120
TOLERANCE = 1e-3
"""Of the trained tensors, relative, for a run that went on with another number of processes: it adds in another order."""


@dataclass(frozen=True)
class Shot:
    """One kill."""

    number: signal.Signals
    instant: str
    """A plant, `import`, or `any moment`."""
    after: float
    """Which time the plant is reached (from 1), or seconds."""
    rank: int = 0
    """Process that is hit; -1 is the parent of several."""

    def __str__(self) -> str:
        where = f"{self.after:.2f} s" if self.instant in ("any moment", "import") else self.instant
        whom = "" if self.rank == 0 else " rank 1" if self.rank else ""
        return f"{self.number.name.removeprefix('SIG')}@{where}{' parent' if self.rank < 0 else whom}"


@dataclass
class Ended:
    """A run and what happened to it."""

    ranks: str
    kills: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: dict[str, list[int]] = field(default_factory=lambda: {"SIGTERM": [], "SIGKILL": []})
    """Signal -> steps that each of its kills cost."""
    result: str = ""


@dataclass
class Range:
    """Where runs are killed."""

    root: Path
    draw: random.Random
    seconds: dict[int, float] = field(default_factory=dict)
    """Number of processes -> of an uninterrupted run."""
    wanted: dict[int, str] = field(default_factory=dict)
    """Number of processes -> digest of an uninterrupted run."""

    def prepare(self, ranks: Sequence[int]) -> None:
        """Parents of all runs, and what the uninterrupted runs give."""
        faulty.in_fork(lambda: faulty.build(self.root / "parents"), self.root / "build.txt")
        for size in ranks:
            home = self.home(f"whole-{size}")
            started = time.monotonic()
            child = faulty.launch(home, size, None)
            if (code := child.wait(WAIT_SECONDS * 2)) != 0:
                raise SystemExit(
                    f"the uninterrupted run of {size} processes exited {code}:\n{left_behind.log_of(home)}"
                )
            self.seconds[size] = time.monotonic() - started
            self.wanted[size] = left_behind.digest(home)

    def home(self, name: str) -> Path:
        """A home with the parents in its store."""
        home = self.root / name
        shutil.copytree(self.root / "parents" / "store", home / "store")
        return home

    def run(self, name: str, sizes: Sequence[int], kills: int) -> Ended:
        """A run that is killed so often, with one number of processes or with changing ones, and then finishes."""
        home, ended = self.home(name), Ended("/".join(map(str, sizes)))
        used = set()
        while len(ended.kills) < kills and not left_behind.digest(home):
            size = self.draw.choice(sizes)
            used.add(size)
            self._attempt(home, size, ended)
            if ended.problems:
                break
        if not left_behind.digest(home) and not ended.problems:
            size = self.draw.choice(sizes)
            used.add(size)
            if (code := faulty.launch(home, size, None).wait(WAIT_SECONDS)) != 0:
                ended.problems.append(f"left alone it exited {code}: {left_behind.log_of(home)[-400:]}")
        if not ended.problems:
            self._compare(home, used, ended)
        if not ended.problems:
            shutil.rmtree(home)
        return ended

    def _attempt(self, home: Path, size: int, ended: Ended) -> None:
        shot = self.aimed(size)
        before = len(left_behind.steps_made(home))
        child = faulty.launch(home, size, shot)
        if shot.instant in ("any moment", "import"):
            time.sleep(shot.after)
            fired = child.hit(shot.rank, shot.number)
            code = child.wait(WAIT_SECONDS)
        else:
            code = child.wait(WAIT_SECONDS)
            fired = left_behind.fired(home)
        if not fired:
            return
        ended.kills.append(f"{shot}={code}")
        ended.problems += [f"{shot}: {problem}" for problem in self.problems(home, size, (shot, code, before), ended)]

    def aimed(self, size: int) -> Shot:
        """The next kill."""
        number = self.draw.choice((signal.SIGTERM, signal.SIGKILL))
        instant = self.draw.choice((*faulty.PLANTS, "any moment", "any moment", "any moment", "import"))
        if instant in faulty.PLANTS:
            return Shot(number, instant, self.draw.randint(1, faulty.PLANTS[instant]), self.draw.randrange(size))
        if instant == "import":
            return Shot(number, instant, self.draw.uniform(0, faulty.IMPORT_SECONDS), 0 if size == 1 else -1)
        rank = 0 if size == 1 else self.draw.randrange(-1, size)
        return Shot(number, instant, self.draw.uniform(0, self.seconds[size]), rank)

    def problems(self, home: Path, size: int, what: tuple[Shot, int, int], ended: Ended) -> list[str]:
        """What must not be after a kill."""
        shot, code, before = what
        found = left_behind.half_written(home)
        if left_behind.digest(home):
            return found
        made, kept = left_behind.steps_made(home)[before:], left_behind.newest_whole(home)
        lost = max(0, made[-1] - kept) if made else 0
        allowed = {75} if shot.number == signal.SIGTERM else {-9} if size == 1 or shot.rank < 0 else {1}
        if shot.instant == "import" or shot.after < 0.1:
            allowed |= {-int(shot.number)}  # the interpreter was not listening yet
        if code not in allowed:
            found.append(f"exit code {code}, expected {sorted(allowed)}: {left_behind.log_of(home)[-400:]}")
        ended.lost[shot.number.name].append(lost)
        if lost > (EVERY_STEPS if shot.number == signal.SIGKILL else 0):
            found.append(f"{lost} steps lost of {made[-1]}, the interval is {EVERY_STEPS}")
        return found

    def _compare(self, home: Path, used: set[int], ended: Ended) -> None:
        if len(used) == 1:
            same = left_behind.digest(home) == self.wanted[next(iter(used))]
            ended.result = "bit-exact" if same else "other bytes"
        else:
            worst = left_behind.difference(home, self.root / f"whole-{max(used)}")
            ended.result = f"within {worst:.0e}" if worst <= TOLERANCE else f"differs by {worst:.1e}"
        if ended.result == "other bytes" or ended.result.startswith("differs"):
            ended.problems.append(ended.result)


def main(words: Sequence[str]) -> int:
    """0 when every run ended as it must."""
    parser = argparse.ArgumentParser(prog="python -m ft_pipeline_tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ranks", default="1", help="numbers of processes, with commas; several are also mixed in one run"
    )
    parser.add_argument("--root", type=Path, help="set by the program itself")
    asked = parser.parse_args(words)
    if asked.root is None:
        faulty.restart_on_a_copy(Path(tempfile.mkdtemp(prefix="faults-")), words)
    sizes, root = [int(size) for size in asked.ranks.split(",")], asked.root
    faulty.preload()
    started, runs = time.monotonic(), []
    place = Range(root, random.Random(asked.seed))
    place.prepare(sizes)
    kinds = [[size] for size in sizes] + ([sizes] if len(sizes) > 1 else [])
    while (left := asked.kills - sum(len(run.kills) for run in runs)) > 0:
        kind = kinds[len(runs) % len(kinds)]
        kills = min(left, place.draw.randint(1, MOST_KILLS_OF_A_RUN))
        runs.append(place.run(f"run-{len(runs)}", kind, kills))
        told(len(runs), runs[-1])
    return summary(runs, time.monotonic() - started, root)


def told(number: int, run: Ended) -> None:
    """One line of the table."""
    print(f"{number:3} {run.ranks:>4} {run.result or 'FAILED':14} {'  '.join(run.kills)}", flush=True)
    for problem in run.problems:
        print(f"    PROBLEM {problem}", flush=True)


def summary(runs: Sequence[Ended], seconds: float, root: Path) -> int:
    """The last line, and the exit code."""
    kills = [kill for run in runs for kill in run.kills]
    results = Counter(
        "bit-exact" if run.result == "bit-exact" else run.result.partition(" ")[0] or "failed" for run in runs
    )
    where = Counter(kill.partition("=")[0].removesuffix(" rank 1").removesuffix(" parent") for kill in kills)
    instants = Counter({name: n for name, n in where.items() if not name.endswith(" s")})
    lost = {name: max((n for run in runs for n in run.lost[name]), default=0) for name in ("SIGTERM", "SIGKILL")}
    problems = sum(len(run.problems) for run in runs)
    print(
        f"planted: {', '.join(f'{name} {n}' for name, n in sorted(instants.items()))}; by time: {len(kills) - instants.total()}"
    )
    print(
        f"{len(kills)} kills ({sum(k.startswith('TERM') for k in kills)} SIGTERM, {sum(k.startswith('KILL') for k in kills)} SIGKILL) of "
        f"{len(runs)} runs: {dict(results)}, {problems} problems; a SIGTERM lost at most {lost['SIGTERM']} steps, a SIGKILL "
        f"{lost['SIGKILL']}, the interval is {EVERY_STEPS}; {seconds:.0f} s"
    )
    if not problems:
        shutil.rmtree(root)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
