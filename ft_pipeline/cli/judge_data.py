"""`data judge-pairs`: a judge labels candidate answers, and what it is sure of becomes a preference dataset with lineage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ft_pipeline import resources, settings
from ft_pipeline.acquire.dataset import acquire
from ft_pipeline.acquire.judged import FACTS, SCHEME, Order, facts_of, judged_pairs
from ft_pipeline.cli.show import console, json_option
from ft_pipeline.errors import RecipeError
from ft_pipeline.gate.judge_config import model_ref
from ft_pipeline.judging.endpoint import Endpoint
from ft_pipeline.judging.families import refuse_own_kind
from ft_pipeline.judging.forms import PAIR
from ft_pipeline.judging.identity import identity_of
from ft_pipeline.judging.opened import speaker_of
from ft_pipeline.judging.sampling import Sampling, read_prompts, sample
from ft_pipeline.recipe import Dataset, Judge, document_of

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def data() -> None:
    """Data sets that are made from others."""


@data.command("judge-pairs")
@click.argument("candidates", metavar="CANDIDATES")
@click.option("--judge", "judge_file", required=True, type=FILE, help="YAML with the fields of a recipe's judge.")
@click.option(
    "--keep",
    type=click.Choice(["best", "all"]),
    default="best",
    show_default=True,
    help="One pair of each prompt, or all.",
)
@click.option(
    "--licence", default="unknown", show_default=True, help="Of the answers, handed on to whatever is trained on them."
)
@click.option("--generator", multiple=True, help="Model that wrote the candidates: a judge of its family is refused.")
@json_option
def judge_pairs(
    candidates: str, judge_file: Path, keep: Any, *, licence: str, generator: tuple[str, ...], as_json: bool
) -> None:
    """Label CANDIDATES, JSONL rows {prompt, candidates: [text, text]}, by a judge that sees every two answers in both orders.

    What wins in both becomes a row {prompt, chosen, rejected}; the rest is in the ledger. The address that is printed is the
    `uri` of a recipe's dataset.
    """
    judge = read_judge(judge_file)
    if generator:
        refuse_own_kind(judge, generator_names=generator)
    house = resources.open_house()
    raw = acquire(
        Dataset(uri=candidates, licence=licence), settings=house.settings, store=house.store, listener=house.listener
    )
    local = {"judge_model": model_ref(house.store, judge.model)} if judge.kind == "local" else {}
    order = Order(candidates=raw.ref, judge=identity_of(judge, PAIR), keep=keep, licence=licence, parents=local)
    folder = house.store.fetch(local["judge_model"]).folder if local else None
    artifact = judged_pairs(
        order, house.store, speaker=speaker_of(judge, folder=folder), listener=house.listener,
        calls_at_once=judge.calls_at_once if judge.kind == "endpoint" else 1,
    )  # fmt: skip
    for one in (raw, artifact):
        house.catalog.index(one.manifest)
    told = {"uri": f"{SCHEME}{artifact.ref.digest}", **facts_of(artifact), "facts": str(artifact.file(FACTS))}
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    _print(told)


@data.command("sample")
@click.argument("prompts", type=FILE)
@click.option(
    "--base-url", required=True, help="OpenAI-compatible server, up to and with /v1; `ft-pipeline serve` is one."
)
@click.option("--model", required=True, help="Name of the model or adapter there.")
@click.option("--samples", default=4, show_default=True, type=click.IntRange(min=2), help="Answers to each prompt.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(min=0.0, min_open=True))
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(min=1))
@click.option("--key-variable", default="", help="Environment variable with the server's key.")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Candidates for `judge-pairs`."
)
def sample_candidates(
    prompts: Path, base_url: str, model: str, *, samples: int, temperature: float, max_new_tokens: int, key_variable: str, out: Path
) -> None:  # fmt: skip
    """Draw answers to PROMPTS, JSONL rows {prompt}, from a model that is served; a stopped command goes on where it was."""
    key = settings.secret(key_variable) if key_variable else ""
    endpoint = Endpoint(base_url=base_url, model=model, key=key, max_new_tokens=max_new_tokens)
    made = sample(read_prompts(prompts), Sampling(endpoint=endpoint, samples=samples, temperature=temperature), out)
    console.print(f"{made:,} prompts with {samples} answers each are in {out}")


def read_judge(path: Path) -> Judge:
    """The judge in a YAML file. Raises RecipeError."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Judge).validate_json(json.dumps(document_of(path.read_text(encoding="utf-8"))))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the judge"
        raise RecipeError(
            f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}",
            cure="kind: endpoint, model: NAME, base_url: http://host/v1, key_variable: NAME_OF_VARIABLE",
        ) from None


def _print(told: dict[str, Any]) -> None:
    agreed = f"{told['consistent']:,} of {told['compared']:,} comparisons have the same winner in both orders"
    console.print(f"{told['pairs']:,} pairs of {told['prompts']:,} prompts; {agreed}")
    for reason, number in told["left_out"].items():
        console.print(f"  {number:,} left out: {reason}")
    console.print(f"\ndataset:\n  uri: {told['uri']}\n  layout: preference", highlight=False, soft_wrap=True)
