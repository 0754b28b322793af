"""What a tenant's recipe may name. A recipe is read by the platform's own processes: with its files, its network, its secrets, its code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.errors import RecipeError
from ft_pipeline.jobs.offer import Offer
from ft_pipeline.recipe import Recipe
from ft_pipeline.recipe_gate import FUNCTION, Judge
from ft_pipeline.recipe_reinforce import MODEL

HUB = "hf://datasets/"
LARGEST: Mapping[str, float] = {
    "encode.window_tokens": 131_072, "finetune.epochs": 100, "finetune.windows_per_step": 8192, "finetune.lora.rank": 512,
    "finetune.lora.alpha": 4096, "finetune.reinforce.max_new_tokens": 16_384, "finetune.reinforce.completions": 256,
    "finetune.reinforce.updates_per_rollout": 64, "finetune.reinforce.resamples": 64, "finetune.distill.top_k": 1024,
    "gate.holdout.max_new_tokens": 8192, "gate.safety.max_new_tokens": 8192, "gate.judge.max_new_tokens": 8192,
}  # fmt: skip
"""What no sensible job exceeds and a typing error does. Money and GPU hours are the quotas' business."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A URI in a recipe and what it may be."""

    field: str
    uri: str
    revision: str | None = None
    rows: bool = False
    """True where data sets of the Hub may be named."""
    files: bool = True
    """True where a file of the tenant may be named."""


def refuse_forbidden(found: Recipe, offer: Offer, *, own: frozenset[str]) -> None:
    """Raises RecipeError for what a tenant may not name. own: URIs of its files."""
    for place in places(found):
        _refuse_place(place, offer, own)
    for field, name in _functions(found):
        if "code" not in offer.allow:
            raise _forbidden(field, name, "It is Python code that would run on the platform's machines.")
    for field, judge in _judges(found):
        if judge.kind == "endpoint" and "judges" not in offer.allow:
            why = "The platform would call an address of yours, with a secret of its own where key_variable names one."
            raise _forbidden(field, judge.base_url, why)
    if found.gate.policy not in offer.policies:
        raise _forbidden("gate.policy", found.gate.policy, f"Offered: {', '.join(offer.policies)}.")
    _refuse_schemas(found)
    _refuse_large(found)


def places(found: Recipe) -> Iterator[Place]:
    """Every URI that a run of the recipe reads, but the base model's."""
    yield Place(field="dataset", uri=found.dataset.uri, revision=found.dataset.revision)
    for source in found.mix:
        yield Place(field=f"mix {source.name}", uri=source.uri, revision=source.revision, rows=True)
    for benchmark in found.curate.contamination.benchmarks:
        # no data set of the Hub: a plan would have to fetch it while its asker waits
        yield Place(field=f"curate.contamination.benchmarks {benchmark.name}", uri=benchmark.uri)
    if found.curate.toxicity.words:
        yield Place(field="curate.toxicity.words", uri=found.curate.toxicity.words)
    for suite in found.gate.benchmarks:
        if suite.uri:
            yield Place(field=f"gate.benchmarks {suite.name}", uri=suite.uri)
    if found.gate.safety:
        yield Place(field="gate.safety", uri=found.gate.safety.uri)
    if found.gate.judge and found.gate.judge.uri:
        yield Place(field="gate.judge", uri=found.gate.judge.uri)
    for reward in found.finetune.reinforce.rewards if found.finetune.reinforce else ():
        if reward.probes:
            yield Place(field=f"finetune.reinforce.rewards {reward.name}", uri=reward.probes, files=False)


def artifacts(found: Recipe) -> Iterator[tuple[str, str]]:
    """Field -> digest or model line of everything in the store that a recipe names: whose it is, the catalog knows."""
    section = found.finetune
    if section.preference and section.preference.reference != "base":
        yield "finetune.preference.reference", section.preference.reference
    if section.distill and section.distill.teacher != "base":
        yield "finetune.distill.teacher", section.distill.teacher
    if section.reinforce and section.reinforce.teacher:
        yield "finetune.reinforce.teacher", section.reinforce.teacher
    for reward in section.reinforce.rewards if section.reinforce else ():
        if reward.name.startswith(MODEL):
            yield "finetune.reinforce.rewards", reward.name.removeprefix(MODEL)
    for field, judge in _judges(found):
        if judge.kind == "local":
            yield field, judge.model
    for suite in found.gate.benchmarks:
        if suite.suite:
            yield f"gate.benchmarks {suite.name}", suite.suite


def _refuse_place(place: Place, offer: Offer, own: frozenset[str]) -> None:
    from_hub = place.rows and place.uri.startswith(HUB) and ".." not in place.uri
    if from_hub and "hub" in offer.allow:
        return
    if not (place.files and place.uri in own) and place.uri not in offer.suites.values():
        kinds = ", ".join(
            (["a file of yours (file-...)"] if place.files else [])
            + ["a suite of the platform (FT_OFFER)"]
            + ([f"a public {HUB}..."] if place.rows and "hub" in offer.allow else [])
        )
        raise RecipeError(
            f"{place.field}: {place.uri!r} may not be named here",
            why="The platform's own processes would read it, with the platform's rights.",
            cure=f"name {kinds}",
        )
    if place.revision is not None:
        why = "By its revision alone the store would hand out rows, whoever they belong to."
        raise RecipeError(f"{place.field}: revision {place.revision!r} of a file", why=why, cure="leave it out")


def _functions(found: Recipe) -> Iterator[tuple[str, str]]:
    """Field -> `package.module:function` of all Python that a recipe names."""
    if FUNCTION.fullmatch(found.gate.holdout.metric):
        yield "gate.holdout.metric", found.gate.holdout.metric
    for reward in found.finetune.reinforce.rewards if found.finetune.reinforce else ():
        if ":" in reward.name and not reward.name.startswith(MODEL):
            yield "finetune.reinforce.rewards", reward.name
    for field, judge in _judges(found):
        if judge.kind == "scripted":
            yield field, judge.model


def _judges(found: Recipe) -> Iterator[tuple[str, Judge]]:
    if found.gate.judge:
        yield "gate.judge.judge", found.gate.judge.judge
    if found.gate.safety:
        for name in ("model", "refusals"):
            if judge := getattr(found.gate.safety, name):
                yield f"gate.safety.{name}", judge


def _refuse_schemas(found: Recipe) -> None:
    """A schema may point at another document, which the validator would fetch."""
    schemas: list[tuple[str, Any]] = [("gate.holdout.parameters", found.gate.holdout.parameters)]
    if found.finetune.reinforce:
        schemas += [(f"finetune.reinforce.rewards {r.name}", r.parameters) for r in found.finetune.reinforce.rewards]
    for field, values in schemas:
        if outside := next(_references(values), None):
            raise _forbidden(
                field, outside, "A $ref may point within its own schema only: another one would be fetched."
            )


def _references(values: Any) -> Iterator[str]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            if (
                key in ("$ref", "$dynamicRef", "$schema", "$id")
                and isinstance(value, str)
                and not _is_within(key, value)
            ):
                yield value
            yield from _references(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _references(value)


def _is_within(key: str, value: str) -> bool:
    return value.startswith("#") or (key == "$schema" and value.startswith("https://json-schema.org/"))


def _refuse_large(found: Recipe) -> None:
    for field, most in LARGEST.items():
        value: Any = found
        for part in field.split("."):
            value = getattr(value, part, None)
        if value is not None and value > most:
            raise RecipeError(f"{field} is {value}", why=f"The platform takes {most} at most.", cure=f"at most {most}")


def _forbidden(field: str, value: str, why: str) -> RecipeError:
    return RecipeError(
        f"{field}: {value!r} is not allowed in a tenant's recipe",
        why=why,
        cure="use what is built in, or ask the operator of the platform (FT_OFFER)",
    )
