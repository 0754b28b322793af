"""Runs the trials of a sweep one after the other: what is there is found, what fails is a row, what was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ft_pipeline import planner
from ft_pipeline.errors import FtError, Interrupted, RecipeError, StorageError, TrainingFailed, UserError
from ft_pipeline.finetune.artifact import CHECKPOINTS_KIND
from ft_pipeline.planner import Plan
from ft_pipeline.recipe import Recipe, identity, recipe_sha256
from ft_pipeline.resources import House
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import sha256_json
from ft_pipeline.store.paths import sweep_folder
from ft_pipeline.sweeps import figure
from ft_pipeline.sweeps.design import Sweep, Trial, cautions, trials
from ft_pipeline.sweeps.result import (
    LOST,
    PLOT,
    WINNER,
    Result,
    Row,
    State,
    empty_row,
    failed_before,
    judged,
    measured,
    sweep_digest,
    write,
)

Make = Callable[[Recipe, tuple[str, ...]], object]
"""Runs a recipe up to some assets, as `ft-pipeline run` does (cli/launch.py). Raises FtError."""
FOR_GOOD = "failed for good"
"""How workers/local.py tells exit 42 from a crash, which the next call tries again."""
SOURCES = ("base_model", "dataset", "mix")
DATA = (*SOURCES, "curate", "encode")
"""Sections of a recipe that decide what is trained on."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep of a recipe, checked and not yet run."""

    house: House
    sweep: Sweep
    base: Recipe
    trials: tuple[Trial, ...]
    folder: Path

    @property
    def until(self) -> tuple[str, ...]:
        """What a trial ends with."""
        return ("eval_report",) if self.sweep.stop == "gate" else ("adapter",)

    def varies(self, sections: tuple[str, ...]) -> bool:
        """True when a parameter is in one of the recipe's sections."""
        return any(path.split(".")[0] in sections for path in self.sweep.parameters)


def study(house: House, sweep: Sweep, *, base: Recipe, name: str) -> Study:
    """The sweep of a recipe. Raises RecipeError, NotFoundError for every trial that could not run, before anything does."""
    if sweep.objective == "validation_loss" and not base.curate.splits.validation:
        raise RecipeError(
            f"{base.key} has no validation split, so validation_loss is never measured",
            cure="curate.splits.validation in the recipe, or objective: holdout with stop: gate",
        )
    made = trials(sweep, base)
    for trial in made:
        planner.refuse_impossible(trial.recipe, house.settings)
    folder = sweep_folder(house.settings.home, name, sha256_json(sweep_digest(sweep, base)))
    return Study(house=house, sweep=sweep, base=base, trials=made, folder=folder)


def planned(made: Study) -> Iterator[tuple[Trial, Plan | None]]:
    """Each trial with its plan against the store as it is now; None for one that is the same as an earlier."""
    for trial in made.trials:
        yield trial, _plan(made, trial) if trial.same_as is None else None


def _plan(made: Study, trial: Trial) -> Plan:
    """From the raw rows and the base model that the recipe's own line has now, unless the trials have other ones."""
    found = trial.recipe if made.varies(SOURCES) else replace(trial.recipe, name=made.base.name)
    return planner.plan(made.house, found)


def state_of(plan: Plan, asset: str = CHECKPOINTS_KIND) -> str:
    """`reuse` or `compute` of one asset."""
    return next(step.state for step in plan.steps if step.asset == asset)


def run(made: Study, *, make: Make, tell: Callable[[Trial, str], None], retry: bool = False) -> Result:
    """Runs every trial and ranks them. Raises Interrupted, StorageError: what is measured is written, the same call goes on.

    retry: trials that failed in an earlier call are tried again. TrainingFailed when none could be trained.
    """
    _prepare(made, make)
    before = {} if retry else failed_before(made.folder)
    rows = {trial.number: empty_row(trial) for trial in made.trials}
    at = 0
    try:
        for trial in made.trials:
            if trial.same_as is not None:
                continue
            at, known = trial.number, before.get(trial.recipe_sha256)
            rows[at] = known if known and _is_about(made, known) else _row(made, trial, (make, tell))
            tell(trial, rows[at].state)
            write(_result(made, rows), cautions(made.sweep))
    except (Interrupted, KeyboardInterrupt, StorageError):
        rows[at] = replace(rows[at], state="stopped")
        raise
    finally:
        result = _published(made, rows)
    _refuse_all_failed(result)
    return result


def _prepare(made: Study, make: Make) -> None:
    """What all trials share, once, under the recipe's own line: its pinned base model, and its rows unless they are varied."""
    make(made.base, ("raw_dataset", "pinned_base") if made.varies(DATA) else ("packed_shards",))
    catalog, uri = made.house.catalog, made.base.base_model.uri
    pinned = catalog.pinned(made.base.key, uri)
    for trial in made.trials:
        _write_recipe(made.folder / "trials" / f"{trial.recipe.name}.yaml", trial.recipe)
        if pinned and catalog.pinned(trial.recipe.key, uri) is None:
            catalog.pin(trial.recipe.key, uri, pinned)


def _is_about(made: Study, failed: Row) -> bool:
    """True when the trial failed on the rows that there are now."""
    now = made.house.catalog.heads(failed.key if made.varies(DATA) else made.base.key).get("packed_shards")
    return now is not None and now.digest == failed.shards


def _row(made: Study, trial: Trial, hands: tuple[Make, Callable[[Trial, str], None]]) -> Row:
    make, tell = hands
    there = {manifest.fingerprint for manifest in made.house.store.all(CHECKPOINTS_KIND)}
    row = empty_row(trial)
    try:
        if not _is_there(made, trial):
            tell(trial, "runs")
            make(trial.recipe, made.until)
        trained = made.house.catalog.head(trial.recipe.key, CHECKPOINTS_KIND)
        row = replace(row, **measured(made.house, trial), state="reused" if trained.fingerprint in there else "trained")
        return replace(row, **judged(made.house, trial)) if made.sweep.stop == "gate" else row
    except StorageError:
        raise
    except TrainingFailed as error:
        state: State = "failed" if FOR_GOOD in error.what else "crashed"
        shards = made.house.catalog.heads(trial.recipe.key).get("packed_shards")
        return replace(row, state=state, reason=_reason(error), shards=shards.digest if shards else None)
    except UserError as error:
        return replace(row, state="refused", reason=_reason(error))


def _is_there(made: Study, trial: Trial) -> bool:
    """True when the trial's own line ends in what a run would find: then Dagster need not look again."""
    if made.varies(SOURCES):
        return False
    heads = made.house.catalog.heads(trial.recipe.key)
    found = {step.asset: step.why for step in _plan(made, trial).steps if step.state == "reuse"}
    wanted = ("packed_shards", CHECKPOINTS_KIND, "adapter")
    if any(asset not in heads or not heads[asset].digest.startswith(found.get(asset, "-")) for asset in wanted):
        return False
    return made.sweep.stop == "train" or state_of(planner.plan(made.house, trial.recipe), "eval_report") == "reuse"


def _reason(error: FtError) -> str:
    """One line: of a traceback its last, which names the error."""
    lines = [line for line in error.what.splitlines() if line.strip()]
    told = (
        lines[0]
        if len(lines) == 1 or "Traceback" not in lines[0]
        else f"{lines[0].partition('Traceback')[0]}{lines[-1]}"
    )
    return told[:300]


def _result(made: Study, rows: dict[int, Row]) -> Result:
    ordered = tuple(rows[number] for number in sorted(rows))
    return Result(sweep=made.sweep, recipe=made.base.key, recipe_sha256=recipe_sha256(made.base), rows=ordered, folder=made.folder)  # fmt: skip


def _published(made: Study, rows: dict[int, Row]) -> Result:
    """The result with its files: summary, plot, and the winner's recipe under the name of the line, so that `run` promotes it there."""
    result = _result(made, rows)
    write(result, cautions(made.sweep))
    figure.draw(made.folder / PLOT, result)
    if winner := result.winner:
        best = next(t.recipe for t in made.trials if t.number == winner.number)
        told = f"{made.base.description} Best of {len(made.trials)} trials by {made.sweep.objective}.".strip()
        own = replace(best, name=made.base.name, description=told, schedule=made.base.schedule)
        _write_recipe(made.folder / WINNER, own)
    return result


def _write_recipe(path: Path, found: Recipe) -> None:
    write_atomic(path, yaml.safe_dump(identity(found), sort_keys=False).encode())


def _refuse_all_failed(result: Result) -> None:
    if result.winner is None:
        reasons = [row.reason for row in result.rows if row.reason and row.state in LOST]
        raise TrainingFailed(
            f"no trial of {len(result.rows)} could be measured: {reasons[0] if reasons else 'no objective'}",
            cure=f"{result.folder} has each reason; mend the recipe, or try again with --retry",
        )
