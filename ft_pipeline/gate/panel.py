"""Everybody who gives an opinion in one evaluation: opened before anything is computed, asked once both arms have answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ft_pipeline.gate.measured import Evidence
from ft_pipeline.gate.opinions import HARM_KIND, REFUSAL_KIND, duels, judged_pairs, opinion_calls, opinion_pairs
from ft_pipeline.gate.probes import HARMFUL
from ft_pipeline.gate.probes.judge import judge_prompts
from ft_pipeline.judging.duels import control_calls, duel_calls, same_text_rows
from ft_pipeline.judging.families import refuse_own_kind
from ft_pipeline.judging.forms import REFUSAL, harm_form
from ft_pipeline.judging.identity import judge_of
from ft_pipeline.judging.judge import Speaker
from ft_pipeline.judging.opened import speaker_of
from ft_pipeline.judging.transcripts import Asking, Call, Row, ask_all
from ft_pipeline.recipe_gate import Judge
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Listener, progress
from ft_pipeline.workers.preemption import StopRequest

OPINIONS = "opinions"
"""Folder of a job for what was said so far."""
JUDGE, MODEL, REFUSALS = "judge_model", "safety_model", "safety_refusals"
"""Roles: of who is asked, and of the parent that a local one is."""


@dataclass
class Panel:
    """Role -> who is asked."""

    job: Job
    parents: Mapping[str, Artifact]
    listener: Listener
    stop: StopRequest
    judges: dict[str, Judge] = field(default_factory=dict)
    speakers: dict[str, Speaker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError without a key, RecipeError for a judge of the same family, before a model is loaded."""
        for role, identity in identities(self.job.spec.config).items():
            self.judges[role] = judge_of(identity, self.job.facts["reach"][role])
            self.speakers[role] = self._speaker(role)
        section = self.job.spec.config["judge"]
        if section and not section["allow_same_family"]:
            refuse_own_kind(
                self.judges[JUDGE],
                judge_names=_names(self.parents.get(JUDGE)),
                generator_names=_names(self.parents["base"]),
            )

    def ask(self, evidence: Evidence) -> list[Row]:
        """Every opinion, as rows. Puts their scores into the evidence, where a judge or classifier is to give them. Raises Interrupted."""
        return [*self._safety(evidence), *self._judge(evidence)]

    def _speaker(self, role: str) -> Speaker:
        place, judge = self.job.placement, self.judges[role]
        folder = self.parents[role].folder if judge.kind == "local" else None
        safety = self.job.spec.config["safety"]
        if role == MODEL and safety["scorer"] == "guard" and folder:
            from ft_pipeline.gate.safety_guard import Guard

            return Guard(folder, device=place.device, threshold=safety["threshold"])
        return speaker_of(judge, folder=folder, device=place.device)

    def _judge(self, evidence: Evidence) -> list[Row]:
        pairs = evidence.get("judge")
        if JUDGE not in self.judges or not isinstance(pairs, list):
            return []
        asked = duels(pairs, judge_prompts(self.job.spec.config["judge"], self.parents))
        rows = [*self._rows(JUDGE, [*duel_calls(asked), *control_calls(asked)]), *same_text_rows(asked)]
        evidence["judge"] = judged_pairs(pairs, rows)
        return rows

    def _safety(self, evidence: Evidence) -> list[Row]:
        pairs, rows = evidence.get("safety"), []
        if not isinstance(pairs, list):
            return []
        scorer = self.job.spec.config["safety"]["scorer"]
        for role, kind, form, harmful in (
            (MODEL, HARM_KIND, harm_form(scorer), True),
            (REFUSALS, REFUSAL_KIND, REFUSAL, False),
        ):
            if role in self.judges:
                of = [p for p in pairs if (p.reference == HARMFUL) == harmful]
                said = self._rows(role, opinion_calls(of, self.parents["safety"], kind=kind, form=form))
                scored = {p.id: p for p in opinion_pairs(of, said, kind=kind)}
                pairs = [scored.get(p.id, p) for p in pairs if p not in of or p.id in scored]
                rows += said
        evidence["safety"] = pairs
        return rows

    def _rows(self, role: str, calls: Sequence[Call]) -> list[Row]:
        judge = self.judges[role]
        asking = Asking(
            speaker=self.speakers[role], path=self.job.folder / OPINIONS / f"{role}.jsonl",
            calls_at_once=judge.calls_at_once if judge.kind == "endpoint" else 1, stopped=lambda: self.stop.asked, tick=self._tick(role),
        )  # fmt: skip
        rows = ask_all(calls, asking)
        if rows is None:
            self.stop.leave(f"the next question to {judge.model}")
        return rows

    def _tick(self, role: str) -> Callable[[int, int], None]:
        def tick(done: int, total: int) -> None:
            progress(self.listener, "opinions", done, total=total, unit="call", role=role)

        return tick


def identities(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Role -> identity of whom a report's config names."""
    judge, safety = config["judge"], config["safety"] or {}
    found = {JUDGE: judge and judge["judge"], MODEL: safety.get("model"), REFUSALS: safety.get("refusals")}
    return {role: identity for role, identity in found.items() if identity}


def _names(model: Artifact | None) -> list[str]:
    """What a model is called: its repository, or the architecture where it has no name."""
    if model is None:
        return []
    if repo := model.manifest.config.get("repo"):
        return [str(repo)]
    if "config.json" not in model.manifest.files:
        return []
    return [str(json.loads(model.file("config.json").read_bytes()).get("model_type", ""))]
