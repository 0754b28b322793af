"""What the trials of a sweep came to: rows, their ranking, and `sweep.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ft_pipeline.finetune.artifact import read_completion
from ft_pipeline.finetune.metrics import perplexity
from ft_pipeline.gate.artifact import read_report
from ft_pipeline.recipe import STRICT, identity, recipe_sha256
from ft_pipeline.resources import House
from ft_pipeline.store.files import write_atomic
from ft_pipeline.sweeps.design import Sweep, Trial

State = Literal["waiting", "trained", "reused", "same", "failed", "crashed", "refused", "stopped"]
MEASURED = ("trained", "reused")
LOST = ("failed", "crashed", "refused")
PER_TOKEN = ("sft", "cpt")
"""Methods whose validation loss is a mean over tokens, so that its exponential is a perplexity (as finetune/loop.py tells it)."""
SUMMARY, PLOT, WINNER = "sweep.json", "sweep.png", "winner.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One trial's line in the table. Numbers are None until they are measured."""

    __pydantic_config__ = STRICT
    number: int
    key: str
    parameters: Mapping[str, Any]
    recipe_sha256: str
    state: State = "waiting"
    """same: as an earlier trial of this sweep. failed: training gave up for good (exit 42). crashed: it may go better next time. refused: its input cannot be used."""
    reason: str = ""
    validation_loss: float | None = None
    """Nats, of the weights that are published."""
    perplexity: float | None = None
    holdout: float | None = None
    """The adapter's score on the holdout."""
    holdout_base: float | None = None
    verdict: str | None = None
    """Of the gate."""
    steps: int | None = None
    trained_tokens: int | None = None
    seconds: float | None = None
    """Of the training job that made it, start and validation included."""
    tokens_per_second: float | None = None
    digest: str | None = None
    """Of the adapter."""
    shards: str | None = None
    """Digest of what it was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A sweep, done or on its way."""

    sweep: Sweep
    recipe: str
    recipe_sha256: str
    rows: tuple[Row, ...]
    """By number."""
    folder: Path

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The measured ones, the best first; then the others by number."""
        worst = math.inf
        scored = {row.number: score(row, self.sweep) for row in self.rows}
        return tuple(
            sorted(self.rows, key=lambda r: (worst if scored[r.number] is None else scored[r.number], r.number))
        )

    @property
    def winner(self) -> Row | None:
        """The best measured trial."""
        first = self.ranked[0]
        return first if score(first, self.sweep) is not None else None


def score(row: Row, sweep: Sweep) -> float | None:
    """What the ranking goes by, less is better; None where it was not measured."""
    if row.state not in MEASURED:
        return None
    if sweep.objective == "holdout":
        return None if row.holdout is None else -row.holdout
    return row.validation_loss


def empty_row(trial: Trial) -> Row:
    """The row of a trial before it ran."""
    known = {"number": trial.number, "key": trial.recipe.key, "parameters": trial.parameters, "recipe_sha256": trial.recipe_sha256}  # fmt: skip
    if trial.same_as is None:
        return Row(**known)
    return Row(**known, state="same", reason=f"the same outcome as trial {trial.same_as}")


def measured(house: House, trial: Trial) -> dict[str, Any]:
    """The fields of a row that the trial's artifacts tell."""
    heads = house.catalog.heads(trial.recipe.key)
    checkpoints, adapter = (house.store.fetch(heads[asset]) for asset in ("checkpoints", "adapter"))
    proof, execution = read_completion(checkpoints), checkpoints.manifest.execution
    loss = proof.validation_loss
    surprise = perplexity(loss) if loss is not None and trial.recipe.finetune.method in PER_TOKEN else None
    return {
        "validation_loss": loss,
        "perplexity": surprise if surprise is not None and math.isfinite(surprise) else None,
        "steps": proof.steps,
        "trained_tokens": proof.trained_tokens,
        "seconds": execution.get("seconds"),
        "tokens_per_second": execution.get("tokens_per_second"),
        "digest": adapter.ref.digest,
        "shards": heads["packed_shards"].digest,
    }


def judged(house: House, trial: Trial) -> dict[str, Any]:
    """The fields of a row that the gate's report tells."""
    report = read_report(house.store.fetch(house.catalog.head(trial.recipe.key, "eval_report")))
    holdout = next((gate for gate in report.gates if gate.kind == "holdout"), None)
    return {
        "verdict": report.verdict.value,
        "holdout": holdout.adapter if holdout else None,
        "holdout_base": holdout.base if holdout else None,
    }


def write(result: Result, cautions: Sequence[str]) -> dict[str, Any]:
    """Writes `sweep.json` and returns what is in it."""
    winner = result.winner
    body = {
        "recipe": result.recipe,
        "recipe_sha256": result.recipe_sha256,
        "sweep": identity(result.sweep),
        "winner": winner.key if winner else None,
        "trials": [asdict(row) | {"rank": rank} for rank, row in enumerate(result.ranked, start=1)],
        "cautions": list(cautions),
    }
    write_atomic(result.folder / SUMMARY, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())
    return body


def failed_before(folder: Path) -> dict[str, Row]:
    """recipe_sha256 -> the row of a trial that failed for good in an earlier call of the same sweep."""
    path = folder / SUMMARY
    told = json.loads(path.read_text(encoding="utf-8"))["trials"] if path.is_file() else []
    names = {field.name for field in fields(Row)}
    rows = [Row(**{name: value for name, value in row.items() if name in names}) for row in told]
    return {row.recipe_sha256: row for row in rows if row.state == "failed"}


def sweep_digest(sweep: Sweep, base: Any) -> dict[str, Any]:
    """What a sweep's folder is named by: the file and the recipe that it varies."""
    return {"sweep": identity(sweep) | {"recipe": base.key}, "recipe": recipe_sha256(base)}
