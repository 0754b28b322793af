"""What a run would do before it does it: what is refused, what is reused, how many steps, how much memory, time and money."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ft_pipeline.acquire.places import listing
from ft_pipeline.curate import references
from ft_pipeline.curate.consolidate import curation_of
from ft_pipeline.encode.artifact import (
    REFERENCE_KIND,
    base_digests,
    needs_reference,
    newest,
    resolved,
    shards_spec,
    starting_adapter,
)
from ft_pipeline.errors import FtError, UserError
from ft_pipeline.finetune import artifact as finetune
from ft_pipeline.finetune.compatibility import refuse_incompatible
from ft_pipeline.finetune.requirements import parent_specs
from ft_pipeline.gate.evaluation import report_config
from ft_pipeline.gate.official import the_suite
from ft_pipeline.gate.policy import read_policy
from ft_pipeline.planning import work
from ft_pipeline.planning.cost import Ask
from ft_pipeline.planning.estimate import Estimate, estimate
from ft_pipeline.planning.prices import Prices, read_prices
from ft_pipeline.planning.shapes import Shape
from ft_pipeline.planning.sources import Wish, shape_at, shape_in, work_at
from ft_pipeline.planning.work import Work
from ft_pipeline.recipe import Recipe
from ft_pipeline.resources import House
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.store.manifest import Manifest, Ref, Spec
from ft_pipeline.store.paths import resolve

ROAD = (
    "raw_dataset", "pinned_base", "curated_dataset", "packed_shards", REFERENCE_KIND, "checkpoints", "adapter", "eval_report", "registered_model", "deployment",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One asset of the road."""

    asset: str
    state: str
    """`reuse` or `compute`."""
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A dry run."""

    steps: tuple[Step, ...]
    optimizer_steps: int | None
    """None until the shards exist."""
    estimate: Estimate | None
    """None when the base model's shape is not known: another form than Llama's, or a place that was not read yet."""
    shape_from: str | None


def refuse_impossible(found: Recipe, where: Settings, *, places: bool = True) -> None:
    """Raises what would fail later, before anything is computed: RecipeError, NotFoundError, DataError."""
    finetune.refuse_unsupported(found)
    read_policy(found.gate.policy)
    if not places:
        return
    for suite in found.gate.benchmarks:
        if suite.task:
            the_suite(open_store(where), suite.task, suite.suite)
    for field, uri in _places(found):
        if "://" in resolve(uri, where.home):
            continue
        try:
            listing(uri, where, wanted=lambda _name: True, what="file")
        except UserError as error:
            raise type(error)(f"{found.key} {field}: {error.what}", why=error.why, cure=error.cure) from None


def _places(found: Recipe) -> Iterator[tuple[str, str]]:
    """Field -> URI of everything that a run reads from outside the store. A pinned dataset may be in the store alone."""
    yield "base_model", found.base_model.uri
    if found.dataset.revision is None:
        yield "dataset", found.dataset.uri
    for source in found.mix:
        if source.revision is None:
            yield f"mix {source.name}", source.uri
    for benchmark in found.curate.contamination.benchmarks:
        yield f"curate.contamination.benchmarks {benchmark.name}", benchmark.uri
    if found.curate.toxicity.words:
        yield "curate.toxicity.words", found.curate.toxicity.words
    yield from ((f"gate.benchmarks {suite.name}", suite.uri) for suite in found.gate.benchmarks if suite.uri)
    if found.gate.safety:
        yield "gate.safety", found.gate.safety.uri
    if found.gate.judge and found.gate.judge.uri:
        yield "gate.judge", found.gate.judge.uri


def plan(house: House, found: Recipe, wish: Wish | None = None) -> Plan:
    """The plan of a recipe against what the store holds now. Raises RecipeError when the recipe cannot run.

    Exact: each artifact's spec is computed from its parents' digests, as the run does it, until one is not in the store. Where the
    number of rows is said (`wish.rows`), neither data nor base model has to be there.
    """
    wish = wish or Wish()
    refuse_impossible(found, house.settings, places=wish.rows is None)
    refuse_incompatible(found, house.placement)
    if wish.rows is None:
        found = resolved(found, newest(house.catalog))
    made = _made(house, found)
    shape = _shape(house, made["pinned_base"]) or shape_at(found.base_model.uri, house.settings)
    return Plan(
        steps=tuple(_step(a, made[a]) for a in made if a != REFERENCE_KIND or needs_reference(found.finetune)),
        optimizer_steps=_optimizer_steps(found, made["packed_shards"]),
        estimate=_estimate(house, found, shape=shape[1], made=made, wish=wish) if shape else None,
        shape_from=shape[0] if shape else None,
    )


def _estimate(house: House, found: Recipe, *, shape: Shape, made: dict[str, Manifest | None], wish: Wish) -> Estimate:
    prices = read_prices(house.settings.prices)
    if wish.mfu:
        prices = replace(prices, assumed=replace(prices.assumed, mfu=wish.mfu, mfu_nf4=wish.mfu))
    ask = Ask(
        found=found, shape=shape, work=_work(house, found, made=made, prices=prices, wish=wish), prices=prices,
        gpu=wish.gpu, gpus=wish.gpus, within_hours=wish.within_hours, market=wish.market,
    )  # fmt: skip
    return estimate(ask, grace_seconds=house.placement.grace_seconds)


def _work(house: House, found: Recipe, *, made: dict[str, Manifest | None], prices: Prices, wish: Wish) -> Work:
    """Counted where the shards are in the store, else estimated."""
    shards, curated = made["packed_shards"], made["curated_dataset"]
    if shards is None or wish.rows or wish.row_tokens or not shards.counts.get("tokens"):
        if curated and not wish.rows:
            wish = replace(wish, rows=curated.counts["rows_kept"])
        return work_at(found, house.settings, prices=prices, wish=wish)
    counts = shards.counts
    share = counts["train_windows"] / max(1, counts["windows"])
    return Work(
        rows=round(counts["rows"] * share), holdout=curated.counts["holdout"] if curated else 0,
        tokens=round(counts["tokens"] * share), windows=counts["train_windows"],
        trained_share=counts["trained_tokens"] / counts["tokens"], exact=True, row_tokens=counts["tokens"] / max(1, counts["rows"]),
        known_from=f"counted: {counts['rows']:,} rows in {counts['windows']:,} windows in the store",
    )  # fmt: skip


def _step(asset: str, there: Manifest | None) -> Step:
    why = there.digest[:12] if there else "not in the store"
    return Step(asset=asset, state="reuse" if there else "compute", why=why)


def _made(house: House, found: Recipe) -> dict[str, Manifest | None]:
    """Asset -> its manifest when the run would find it, in the order of the road."""
    heads = {a: house.store.manifest(ref.kind, ref.fingerprint) for a, ref in house.catalog.heads(found.key).items()}
    made: dict[str, Manifest | None] = dict.fromkeys(ROAD)
    raw, base = heads.get("raw_dataset"), heads.get("pinned_base")
    made.update(raw_dataset=raw, pinned_base=base)
    if raw and base:
        made.update(_walk(house, found, raw=raw.ref, base=base.ref))
    report, adapter = heads.get("eval_report"), made["adapter"]
    if report and adapter and report.parents["adapter"] == adapter.ref and _same_gate(found, report):
        made.update({asset: heads.get(asset) for asset in ("eval_report", "registered_model", "deployment")})
    return made


def _same_gate(found: Recipe, report: Manifest) -> bool:
    config = report_config(found.gate, read_policy(found.gate.policy))
    return config == dict(report.config)


def _walk(house: House, found: Recipe, *, raw: Ref, base: Ref) -> Iterator[tuple[str, Manifest]]:
    """The artifacts from the curated rows to the adapter that are there, up to the first that is not."""
    opened = references.known(found.curate, settings=house.settings, store=house.store)
    if opened is None:
        return
    gone = house.catalog.forgotten()
    specs: list[tuple[str, Callable[[Ref], Spec]]] = [
        ("curated_dataset", lambda raw: curation_of(found, raw=raw, base=base, store=house.store, forgotten=gone, **opened).spec()),
        ("packed_shards", lambda curated: shards_spec(found.encode, curated=curated, base_digests=base_digests(house.store.fetch(base)))),
    ]  # fmt: skip
    parent, refs = raw, {}
    for asset, spec_of in specs:
        made = _there(house, spec_of(parent))
        if made is None:
            return
        yield asset, made
        parent = refs[asset] = made.ref
    yield from _trained(house, found, shards=parent, base=base)


def _trained(house: House, found: Recipe, *, shards: Ref, base: Ref) -> Iterator[tuple[str, Manifest]]:
    """The artifacts from the reference to the adapter that are there."""
    others = _others(house, found, shards=shards, base=base)
    if "reference" in others:
        yield REFERENCE_KIND, house.store.recorded(others["reference"])
    trained = _there(house, finetune.checkpoints_spec(found.finetune, shards=shards, base=base, others=others))
    if trained is None:
        return
    yield "checkpoints", trained
    start = others.get(finetune.START)
    last = finetune.adapter_spec(found.base_model.uri, checkpoints=trained.ref, shards=shards, base=base, start=start)
    if adapter := _there(house, last):
        yield "adapter", adapter


def _others(house: House, found: Recipe, *, shards: Ref, base: Ref) -> dict[str, Ref]:
    """What the method reads besides (a reference, a teacher, an adapter to start from), as far as it is in the store."""
    pinned = house.store.fetch(base)
    specs = parent_specs(found.finetune, shards=house.store.fetch(shards), base=pinned, find=house.find)
    start = starting_adapter(found.finetune, base=pinned, find=house.find)
    others = {role: made.ref for role, spec in specs.items() if (made := _there(house, spec))}
    return {**others, **({finetune.START: start.ref} if start else {})}


def _there(house: House, spec: Spec) -> Manifest | None:
    return house.store.manifest(spec.kind, spec.fingerprint)


def _optimizer_steps(found: Recipe, shards: Manifest | None) -> int | None:
    if shards is None or "train_windows" not in shards.counts:
        return None
    return work.steps(found, shards.counts["train_windows"])


def _shape(house: House, base: Manifest | None) -> tuple[str, Shape] | None:
    """(where it is from, shape) of the pinned base model in the store; None when it is not there or has another form."""
    if base is None:
        return None
    try:
        shape = shape_in(Path(house.store.fetch(base.ref).file("config.json")))
    except FtError:
        return None
    return (f"config.json of {base.digest[:12]}", shape) if shape else None
