"""What tells that a policy may be gaming its reward: divergence, drift of length and reward, prompts that teach nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline.recipe_reinforce import Guards
from ft_pipeline.workers.messages import Listener, log

WATCHED = ("kl_completion", "length", "reward", "flat_groups")
"""Of a step's entry in losses.jsonl."""


def alarms(groups: Sequence[Mapping[str, float]], guards: Guards) -> dict[str, str]:
    """Name of a guard -> what it saw, for the newest of some groups of steps (means of WATCHED, oldest first)."""
    now, before = groups[-1], groups[:-1]
    found: dict[str, str] = {}
    if now.get("kl_completion", 0) > guards.kl:
        found["kl"] = f"{now['kl_completion']:.2f} nats from the reference a completion, the guard is {guards.kl:g}"
    if now.get("flat_groups", 0) > guards.flat_groups:
        found["flat_groups"] = (
            f"{now['flat_groups']:.0%} of the prompts have completions of one reward and teach nothing"
        )
    if before and "length" in now:
        found |= _length(groups[0]["length"], now["length"], guards)
    if before and "reward" in now:
        found |= _reward([group["reward"] for group in groups], guards)
    return found


@dataclass
class Drift:
    """Watches a run step by step; tells each guard when it begins to see something. Its answer belongs into the metrics."""

    guards: Guards
    listener: Listener
    groups: list[dict[str, float]] = field(default_factory=list)
    _open: list[Mapping[str, Any]] = field(default_factory=list)
    _told: frozenset[str] = frozenset()

    def resumed(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Takes in the steps of earlier attempts without telling them again."""
        for entry in history:
            self._take(entry)

    def stepped(self, entry: Mapping[str, Any]) -> dict[str, float]:
        """`alarm_NAME: 1` for every guard that sees something in the steps that this one ends; nothing in between."""
        before = self._told
        found = self._take(entry)
        for name in sorted({*found} - before):
            log(self.listener, f"guard {name} at step {entry['step']}: {found[name]}; look at the rollouts", guard=name)
        return {f"alarm_{name}": 1.0 for name in sorted(found)}

    def _take(self, entry: Mapping[str, Any]) -> dict[str, str]:
        self._open.append(entry)
        if len(self._open) < self.guards.window_steps:
            return {}
        self.groups.append(
            {
                n: sum(float(e[n]) for e in self._open) / len(self._open)
                for n in WATCHED
                if all(n in e for e in self._open)
            }
        )
        self._open = []
        found = alarms(self.groups, self.guards)
        self._told = frozenset(found)
        return found


def _length(first: float, now: float, guards: Guards) -> dict[str, str]:
    ratio = max(now, 1e-9) / max(first, 1e-9)
    if 1 / guards.length_ratio <= ratio <= guards.length_ratio:
        return {}
    return {"length": f"completions have {now:.1f} tokens, {first:.1f} at the start"}


def _reward(rewards: Sequence[float], guards: Guards) -> dict[str, str]:
    found, best, last, now = {}, max(rewards), rewards[-2], rewards[-1]
    if best - now > guards.reward_drop:
        found["reward_drop"] = f"mean reward {now:.3f}, it was {best:.3f}"
    if now - last > guards.reward_jump:
        found["reward_jump"] = f"mean reward {now:.3f} after {last:.3f}: a leap is more often an exploit than learning"
    return found
