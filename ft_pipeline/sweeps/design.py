"""The sweep file and the trials in it: the same file gives the same trials, whatever the order of its lines."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from ft_pipeline import recipe
from ft_pipeline.errors import NotFoundError, RecipeError, did_you_mean
from ft_pipeline.recipe import STRICT, Recipe, identity, recipe_sha256
from ft_pipeline.store.fingerprint import sha256_json
from ft_pipeline.sweeps.paths import refuse_path, with_value

MOST_TRIALS = 500
DIGITS = 6
"""Significant digits of a drawn number: a learning rate that a person can read out."""
EXAMPLE = "parameters: {finetune.learning_rate: [1e-4, 3e-4], finetune.lora.rank: [8, 16]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers that a random sweep draws from, both ends included."""

    __pydantic_config__ = STRICT
    low: float
    high: float
    log: bool = False
    """Every factor is as likely as every other: for learning rates."""
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} must be above 0 where log is true")
        if self.whole and (self.low % 1 or self.high % 1):
            raise ValueError(f"low {self.low:g} and high {self.high:g} must be whole where whole is true")

    def at(self, share: float) -> float | int:
        """The value at a share in [0, 1) of the range."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        value = min(max(value, self.low), self.high if not self.whole else self.high + 0.5)
        return math.floor(value) if self.whole else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A sweep file."""

    __pydantic_config__ = STRICT
    recipe: str
    """A file (looked for beside the sweep first), a stem or `tenant/name`."""
    method: Literal["grid", "random"]
    parameters: Mapping[str, tuple[Any, ...] | Range]
    """Dotted path in the recipe -> its values, or for a random sweep a range."""
    trials: int | None = None
    """random: how many are drawn. The first ones stay when the number grows."""
    seed: int = 0
    objective: Literal["validation_loss", "holdout"] = "validation_loss"
    stop: Literal["train", "gate"] = "train"
    """After which step a trial ends. Nothing is ever registered or deployed by a sweep."""

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError(f"parameters is empty; for example {EXAMPLE}")
        if (self.trials is not None) != (self.method == "random"):
            raise ValueError("trials is needed for random" if self.method == "random" else "trials is for random: a grid has as many as its product")  # fmt: skip
        if self.trials is not None and not 1 <= self.trials <= MOST_TRIALS:
            raise ValueError(f"trials {self.trials} must be from 1 to {MOST_TRIALS}")
        if self.objective == "holdout" and self.stop != "gate":
            raise ValueError("objective holdout is measured by the gate: it needs stop: gate")
        if self.method == "grid" and (ranges := [p for p, v in self.parameters.items() if isinstance(v, Range)]):
            raise ValueError(f"{ranges[0]} is a range: a grid needs values")
        if empty := [p for p, v in self.parameters.items() if v == ()]:
            raise ValueError(f"{empty[0]} has no values")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One variant: a whole recipe, named `name-s-` and 8 hex digits of its digest."""

    number: int
    """From 1."""
    parameters: Mapping[str, Any]
    recipe: Recipe
    recipe_sha256: str
    """Of the variant under the recipe's own name."""
    same_as: int | None = None
    """The number of an earlier trial with the same outcome: this one is not run."""

    @property
    def label(self) -> str:
        """`learning_rate 0.0001, rank 8`."""
        return ", ".join(
            f"{name} {shown(v)}" for name, v in zip(short(self.parameters), self.parameters.values(), strict=True)
        )


def short(paths: Iterable[str]) -> list[str]:
    """The last part of each path; the whole path where two end alike."""
    paths = list(paths)
    ends = [path.rpartition(".")[2] for path in paths]
    return [end if ends.count(end) == 1 else path for end, path in zip(ends, paths, strict=True)]


def shown(value: Any) -> str:
    """A value in few letters."""
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return value if isinstance(value, str) else json.dumps(value)


def read(path: Path) -> Sweep:
    """The sweep in a YAML file. Raises NotFoundError, RecipeError with the field and the nearest name."""
    if not path.is_file():
        raise NotFoundError(f"no sweep at {path}", cure=f"a YAML file with recipe, method and {EXAMPLE}")
    try:
        document = recipe.document_of(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path} holds {type(document).__name__}, not a mapping", cure=EXAMPLE)
    return parse(document, origin=str(path))


def parse(document: Mapping[str, Any], *, origin: str) -> Sweep:
    """The sweep of a document. Raises RecipeError."""
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(json.dumps(document, allow_nan=False))
    except ValidationError as error:
        told = "; ".join(dict.fromkeys(_explain(e) for e in error.errors()))
    except (TypeError, ValueError) as error:
        told = str(error)
    raise RecipeError(f"{origin} is not a sweep: {told}", cure="mend the named fields; `ft-pipeline sweep FILE --dry-run` checks without running")  # fmt: skip


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Sweep)


def _explain(error: Any) -> str:
    place = ".".join(str(p) for p in error["loc"] if not str(p).startswith(("tuple[", "Range")))
    if error["type"] == "unexpected_keyword_argument":
        kind = Range if "Range" in error["loc"] else Sweep
        return f"unknown key {place}: {did_you_mean(str(error['loc'][-1]), (f.name for f in fields(kind)))}"
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "value_error":
        return f"{place}: {error['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    if error["type"] in ("tuple_type", "dataclass_type"):
        return f"{place}: neither a list of values nor a range {{low, high, log, whole}} (got {error['input']!r})"
    return f"{place}: {error['msg']} (got {error['input']!r})"


def trials(sweep: Sweep, base: Recipe) -> tuple[Trial, ...]:
    """Every trial of a sweep of a recipe, each a valid recipe. Raises RecipeError before anything runs."""
    for path in sweep.parameters:
        refuse_path(base, path, others=sweep.parameters, trained_only=sweep.stop == "train")
    if (
        sweep.method == "grid"
        and (count := math.prod(len(_values(v)) for v in sweep.parameters.values())) > MOST_TRIALS
    ):
        raise RecipeError(f"the grid has {count:,} trials", why=f"{MOST_TRIALS} are the most.", cure="fewer values, or method: random with trials: N")  # fmt: skip
    made: list[Trial] = []
    first: dict[str, int] = {}
    for number, parameters in enumerate(_drawn(sweep), start=1):
        trial, effect = _trial(sweep, base, (number, parameters))
        same_as = first.setdefault(effect, number)
        made.append(trial if same_as == number else _repeated(trial, same_as))
    return tuple(made)


def _drawn(sweep: Sweep) -> Iterator[dict[str, Any]]:
    paths = sorted(sweep.parameters)
    if sweep.method == "grid":
        values = [_values(sweep.parameters[path]) for path in paths]
        yield from (dict(zip(paths, chosen, strict=True)) for chosen in itertools.product(*values))
        return
    for number in range(sweep.trials or 0):
        yield {path: _draw(sweep, path, number) for path in paths}


def _draw(sweep: Sweep, path: str, number: int) -> Any:
    share, given = _share(f"{sweep.seed} {path} {number}"), sweep.parameters[path]
    if isinstance(given, Range):
        return given.at(share)
    values = _values(given)
    return values[int(share * len(values))]


def _share(text: str) -> float:
    """In [0, 1), by SHA-256: each draw depends on its own seed, path and number alone, not on those before it."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) >> 3) / 2**53


def _values(given: Any) -> list[Any]:
    """The distinct values in an order of their own: numbers by size, then the rest by its text."""
    texts = {json.dumps(value, sort_keys=True): value for value in given}
    numbers = {t: v for t, v in texts.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return sorted(numbers.values()) + [texts[t] for t in sorted(texts.keys() - numbers.keys())]


def _trial(sweep: Sweep, base: Recipe, drawn: tuple[int, dict[str, Any]]) -> tuple[Trial, str]:
    """The trial, and a digest of all that its outcome depends on."""
    number, parameters = drawn
    document = functools.reduce(lambda d, item: with_value(d, *item), parameters.items(), identity(base))
    origin = f"trial {number} ({', '.join(f'{p}: {shown(v)}' for p, v in parameters.items())})"
    digest = recipe_sha256(recipe.parse(document, origin=origin))
    document["name"] = f"{base.name}-s-{digest[:8]}"
    document["description"] = f"Trial of a sweep of {base.key}: {', '.join(f'{p} {shown(v)}' for p, v in parameters.items())}"  # fmt: skip
    document["schedule"] = None
    made = recipe.parse(document, origin=origin)
    effect = identity(made)
    for field in ("tenant", "name", "description", "schedule", *(["gate"] if sweep.stop == "train" else [])):
        del effect[field]
    return Trial(number=number, parameters=parameters, recipe=made, recipe_sha256=digest), sha256_json(effect)


def _repeated(trial: Trial, same_as: int) -> Trial:
    from dataclasses import replace

    return replace(trial, same_as=same_as)


def cautions(sweep: Sweep) -> tuple[str, ...]:
    """What to know before the objective is believed."""
    said, paths = [], sorted(sweep.parameters)
    data_paths = [p for p in paths if p.split(".")[0] in ("base_model", "dataset", "mix", "curate", "encode")]
    if data_paths and sweep.objective == "validation_loss":
        said.append(f"{', '.join(data_paths)}: the trials do not share a validation split or tokens, so their losses are not measured on the same thing; objective: holdout asks all the same questions unless the holdout differs, too")  # fmt: skip
    losses = [p for p in paths if p == "finetune.method" or p.split(".")[1:2] in (["preference"], ["reward"], ["distill"])]  # fmt: skip
    if losses and sweep.objective == "validation_loss":
        said.append(f"{', '.join(losses)}: the loss itself is another one in each trial; objective: holdout compares what it leads to")  # fmt: skip
    if sweep.objective == "holdout":
        said.append("the winner is chosen on the holdout that the gate judges with: its score there is the best of several draws, so it is too good; confirm it on rows that no trial saw")  # fmt: skip
    return tuple(said)
