"""A recipe: every field changes the weights or the verdict. What does not (GPUs, spot, checkpoints) is a Placement.

A recipe is one whole YAML file, or the same object by REST: strict, no includes, no inheritance. Each section belongs to one
room, which hashes only its own section and its parents' digests: changing one field recomputes only what depends on it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from ft_pipeline.cron import cron_fault
from ft_pipeline.errors import NotFoundError, RecipeError, did_you_mean

# one address for every section
from ft_pipeline.recipe_data import (  # noqa: F401
    DATASET,
    NAME_RULE,
    STEP_SEPARATOR,
    STRICT,
    BaseModel,
    Benchmark,
    Contamination,
    Curate,
    Dataset,
    Encode,
    Language,
    Layout,
    NearDuplicates,
    Pii,
    PiiKind,
    Quality,
    Source,
    Splits,
    Toxicity,
    is_name,
)
from ft_pipeline.recipe_gate import BenchmarkGate, Gate, HoldoutGate, Judge, JudgeGate, SafetyGate  # noqa: F401
from ft_pipeline.recipe_training import Distill, Finetune, Lora, Preference, RewardModel  # noqa: F401
from ft_pipeline.store.fingerprint import sha256_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One model line `tenant/name`: from raw rows to a gated adapter."""

    __pydantic_config__ = STRICT
    tenant: str
    name: str
    description: str = ""
    schedule: str | None = None
    """Cron expression of the retraining schedule. With `description` and `on_base_change` the only fields that change no weight: not hashed."""
    on_base_change: Literal["examine", "retrain"] = "examine"
    """What follows when the base model moves. Adapters are always judged again; `retrain` also starts the training that is proposed then."""
    base_model: BaseModel
    dataset: Dataset
    mix: tuple[Source, ...] = ()
    """Further sources, mixed into the dataset."""
    curate: Curate = field(default_factory=Curate)
    encode: Encode = field(default_factory=Encode)
    finetune: Finetune
    gate: Gate

    def __post_init__(self) -> None:
        for part in (self.tenant, self.name):
            if not is_name(part):
                raise ValueError(f"{part!r} is not a name: {NAME_RULE}")
        names = [source.name for source in self.mix]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"mix: two sources are called {twice}")
        if (shares := sum(source.share or 0 for source in self.mix)) >= 1:
            raise ValueError(f"mix: the shares add up to {shares:g}, which leaves nothing of the dataset itself")
        if self.schedule is not None and (fault := cron_fault(self.schedule)):
            raise ValueError(f"schedule {self.schedule!r}: {fault}")

    @property
    def key(self) -> str:
        """`tenant/name`: the partition key and the model line."""
        return f"{self.tenant}/{self.name}"


def identity(section: Any) -> dict[str, Any]:
    """The section as plain JSON values: what is hashed."""
    return json.loads(json.dumps(asdict(section), allow_nan=False))


def recipe_sha256(whole: Recipe) -> str:
    """Digest of every field that changes the weights or the verdict."""
    body = identity(whole)
    del body["description"], body["schedule"], body["on_base_change"]
    return sha256_json(body)


def parse(document: Mapping[str, Any], *, origin: str) -> Recipe:
    """The recipe of a document. Raises RecipeError with the path, the value and the nearest valid name."""
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(json.dumps(document, allow_nan=False))
    except ValidationError as error:
        raise RecipeError(
            f"{origin} is not a recipe: " + "; ".join(_explain(e) for e in error.errors()),
            why="A recipe is hashed into every artifact, so nothing in it may be guessed.",
            cure="mend the named fields; `ft-pipeline plan RECIPE` checks without running",
        ) from None
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{origin} is not a recipe: {error}", cure="use plain YAML values, no NaN and no dates"
        ) from None


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)


def read(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises RecipeError, NotFoundError."""
    if not path.is_file():
        raise NotFoundError(f"no recipe at {path}", cure="`ft-pipeline recipes` lists those that are known")
    try:
        document = document_of(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a date like 2026-13-45
        raise RecipeError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise RecipeError(
            f"{path} holds {type(document).__name__}, not a mapping", cure="copy one of `ft-pipeline recipes`"
        )
    return parse(document, origin=str(path))


class _Plain(yaml.SafeLoader):
    """Only `true` and `false` are truth values, as in YAML 1.2: here `off` is a policy, and `no` is Norwegian."""


TRUTH = "tag:yaml.org,2002:bool"
_Plain.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != TRUTH]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Plain.add_implicit_resolver(TRUTH, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
# YAML 1.1 reads 1e-4 as text, because it lacks a point
_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def document_of(text: str) -> Any:
    """The plain values in a recipe's YAML. Raises yaml.YAMLError, ValueError."""
    return yaml.load(text, Loader=_Plain)  # noqa: S506 - a safe loader


def _explain(error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    place = ".".join(loc) or "recipe"
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown key {place}: {did_you_mean(loc[-1], _names_at(loc[:-1]))}"
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "value_error":
        return f"{place}: {error['msg'].removeprefix('Value error, ')}"
    return f"{place}: {error['msg']} (got {error['input']!r})"


def _names_at(path: list[str]) -> set[str]:
    """The valid keys of the section at a path."""
    section: Any = Recipe
    for part in path:
        if not is_dataclass(section) or part.isdigit():
            continue
        hint = get_type_hints(section).get(part)
        section = next((t for t in (hint, *_inner(hint)) if is_dataclass(t)), section)
    return {f.name for f in fields(section)}


def _inner(hint: Any) -> list[Any]:
    return [t for arg in get_args(hint) for t in (arg, *get_args(arg))]
