"""`k8s`: the manifests of a training run, their checks, what a cluster has instead, and whether a cluster is ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ft_pipeline import resources, settings
from ft_pipeline.cli.completion import RECIPE
from ft_pipeline.cli.show import console, json_option, table
from ft_pipeline.errors import UserError
from ft_pipeline.settings import Settings

if TYPE_CHECKING:
    from ft_pipeline.recipe import Recipe
    from ft_pipeline.store.manifest import Ref
    from ft_pipeline.workers.job import Job, Placement
    from ft_pipeline.workers.kubernetes.looking import Looking
    from ft_pipeline.workers.kubernetes.profile import Profile

Manifest = dict[str, Any]
ISSUED = ("packed_shards", "pinned_base")
PROVISIONAL = "# The name is provisional: it is a hash of what goes in, and shards, base or the other models of this recipe are not made yet.\n"
OWNED = "# Service and ConfigMap get an ownerReference to the Job when they are made: one delete removes all three.\n"


def _placed(command: Any) -> Any:
    """The options that say where: a placement file, or its fields."""
    for option in reversed((
        click.option("--placement", "file", type=click.Path(path_type=Path), help="A placement file. Default: FT_PLACEMENT."),
        click.option("--gpu", metavar="KIND", help="For example h100-80gb."),
        click.option("--nodes", type=int),
        click.option("--processes", type=int, help="GPUs of a node."),
        click.option("--spot/--on-demand", default=None),
        click.option("--cluster", help="Profile: bare, eks-karpenter, gke, aks. Default: FT_CLUSTER."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.group()
def k8s() -> None:
    """What a run is in a Kubernetes cluster: render, check, diff; and doctor for the cluster."""


@k8s.command()
@click.argument("name", metavar="RECIPE", type=RECIPE)
@_placed
def render(name: str, *, file: Path | None, cluster: str | None, **said: Any) -> None:
    """Print the Job, Service and ConfigMap that train RECIPE. Talks to no cluster.

    The same recipe, placement and profile give the same bytes; what the checks find goes to stderr.
    """
    objects, profile, exact = _rendered(name, said, file=file, cluster=cluster)
    click.echo(("" if exact else PROVISIONAL) + OWNED + _text(objects), nl=False)
    faults = _faults(objects, profile)
    if faults:
        click.echo("\n".join(f"{f['object']}: {f['field']}: {f['what']}. Cure: {f['cure']}" for f in faults), err=True)


@k8s.command()
@click.argument("targets", metavar="RECIPE|FILE|FOLDER...", nargs=-1, required=True)
@click.option("--kubernetes", default="1.36", show_default=True, help="Version of the schemas.")
@_placed
@json_option
def check(
    targets: tuple[str, ...], *, kubernetes: str, file: Path | None, cluster: str | None, as_json: bool, **said: Any
) -> None:
    """Check manifests before anything is submitted: schema, what a server refuses, what would lose work. Exit 1 when severe.

    A RECIPE is rendered first. FILEs are YAML manifests; of a FOLDER, every manifest below it.
    """
    from ft_pipeline.workers.kubernetes.checks import has_schemas

    faults, count = [], 0
    for target in targets:
        files = _files(Path(target))
        objects, profile = (_read(files), None) if files else _rendered(target, said, file=file, cluster=cluster)[:2]
        count += len(objects)
        faults += _faults(objects, profile, kubernetes)
    if not as_json and not has_schemas():
        console.print("schemas are not checked: pip install kubernetes-validate", style="yellow")
    if as_json:
        table(faults, as_json=True)
    else:
        _tell(faults, count)
    if any(fault["severe"] for fault in faults):
        raise click.exceptions.Exit(1)


@k8s.command()
@click.argument("target", metavar="RECIPE|FILE|FOLDER")
@_placed
def diff(target: str, *, file: Path | None, cluster: str | None, **said: Any) -> None:
    """Show what the cluster has that is other than RECIPE or FILE says. Exit 1 when something is other or missing."""
    from ft_pipeline.workers.kubernetes.client import ApiError
    from ft_pipeline.workers.kubernetes.difference import difference
    from ft_pipeline.workers.kubernetes.looking import told

    files = _files(Path(target))
    objects, profile = (
        (_read(files), _profile(cluster)) if files else _rendered(target, said, file=file, cluster=cluster)[:2]
    )
    other = False
    try:
        for of, state, lines in difference(_looking(profile), objects):
            other = other or state != "same"
            console.print(
                f"{of}: {state}", style={"same": "green", "missing": "yellow"}.get(state, "red"), markup=False
            )
            click.echo("".join(f"  {line}\n" for line in lines), nl=False)
    except ApiError as error:
        raise told(error, f"looking at {target}") from error
    if other:
        raise click.exceptions.Exit(1)


@k8s.command()
@click.option("--cluster", help="Profile: bare, eks-karpenter, gke, aks. Default: FT_CLUSTER.")
@json_option
def doctor(*, cluster: str | None, as_json: bool) -> None:
    """Check that the cluster is reached and ready for jobs: permissions, namespace, GPUs, queue. Exit 1 when something is missing."""
    from ft_pipeline.workers.kubernetes.health import findings

    profile = _profile(cluster)
    rows = [
        {"check": name, "state": state, "seen": seen, "cure": cure}
        for name, (state, seen, cure) in findings(_looking(profile), profile)
    ]
    table(rows, as_json=as_json)
    if any(row["state"] == "missing" for row in rows):
        raise click.exceptions.Exit(1)


def _rendered(
    name: str, said: Mapping[str, Any], *, file: Path | None, cluster: str | None
) -> tuple[list[Manifest], Profile, bool]:
    """(objects, profile, whether the name is final)."""
    from ft_pipeline.workers.kubernetes.manifest import manifests
    from ft_pipeline.workers.placed import cluster_profile

    where = _where(cluster)
    recipe, placement, profile = (
        resources.find_recipe(where, name),
        _placement(where, file, said),
        cluster_profile(where),
    )
    job, exact = _job(where, recipe, placement)
    return manifests(job, placement, profile), profile, exact


def _job(where: Settings, recipe: Recipe, placement: Placement) -> tuple[Job, bool]:
    """The training job, and whether all that goes in is known. Raises RecipeError for what cannot be trained there."""
    from ft_pipeline.finetune.artifact import checkpoints_spec, refuse_unsupported
    from ft_pipeline.finetune.compatibility import refuse_incompatible
    from ft_pipeline.finetune.launch import refuse_apart
    from ft_pipeline.recipe import identity, recipe_sha256
    from ft_pipeline.store.paths import run_folder
    from ft_pipeline.workers.job import Job

    refuse_unsupported(recipe)
    refuse_incompatible(recipe, placement)
    refuse_apart(recipe, placement)
    shards, base, exact = _parents(where, recipe)
    spec = checkpoints_spec(recipe.finetune, shards=shards, base=base)
    return Job(
        name=f"finetune {recipe.key}", module="ft_pipeline.finetune.main", spec=spec, section=identity(recipe.finetune),
        folder=run_folder(where.work, spec.fingerprint), placement=placement,
        facts={"model_line": recipe.key, "recipe_sha256": recipe_sha256(recipe)},
    ), exact  # fmt: skip


def _parents(where: Settings, recipe: Recipe) -> tuple[Ref, Ref, bool]:
    """What was made of the recipe, else stand-ins that are the same each time."""
    from ft_pipeline.encode.artifact import needs_reference
    from ft_pipeline.finetune.policies import is_policy
    from ft_pipeline.recipe import recipe_sha256
    from ft_pipeline.store.catalog import open_catalog
    from ft_pipeline.store.fingerprint import sha256_json
    from ft_pipeline.store.manifest import Ref

    catalog = open_catalog(where)
    try:
        heads = catalog.heads(recipe.key)
    finally:
        catalog.close()
    section = recipe.finetune
    alone = not (needs_reference(section) or is_policy(section) or section.method == "distill")
    if alone and set(ISSUED) <= set(heads):
        return heads[ISSUED[0]], heads[ISSUED[1]], True
    digests = [sha256_json({"recipe": recipe_sha256(recipe), "role": role}) for role in ISSUED]
    shards, base = (Ref(kind=k, fingerprint=d, digest=d) for k, d in zip(ISSUED, digests, strict=True))
    return shards, base, False


def _placement(where: Settings, file: Path | None, said: Mapping[str, Any]) -> Placement:
    from ft_pipeline.workers.placed import placement_of, read_placement

    given = {key: value for key, value in said.items() if value is not None}
    path = file or where.placement
    if path is not None and not given:
        found = read_placement(path, threads=where.threads)
    elif path is not None:
        raise UserError("a placement file and fields of a placement", cure="say one of them")
    else:
        found = placement_of({"kind": "kubernetes", **given}, threads=where.threads)
    if found.worker != "kubernetes":
        raise UserError(f"{path} says kind: local: it becomes no manifest", cure="kind: kubernetes")
    return found


def _where(cluster: str | None) -> Settings:
    found = settings.load()
    return replace(found, cluster=cluster) if cluster else found


def _profile(cluster: str | None) -> Profile:
    """Without what only pods need: to look at a cluster no store is needed."""
    from ft_pipeline.errors import did_you_mean
    from ft_pipeline.workers.kubernetes.profile import PROFILES, queue_of

    where = _where(cluster)
    if where.cluster not in PROFILES:
        raise UserError(f"no profile {where.cluster!r}: {did_you_mean(where.cluster, PROFILES)}")
    found = PROFILES[where.cluster]
    queue = queue_of(where.queue) if where.queue else found.queue
    return replace(found, namespace=where.namespace or found.namespace, queue=queue)


def _looking(profile: Profile) -> Looking:
    from ft_pipeline.workers.kubernetes.client import connect
    from ft_pipeline.workers.kubernetes.looking import Looking

    return Looking(connect(profile.namespace).api, profile.namespace)


def _tell(faults: Sequence[Mapping[str, Any]], count: int) -> None:
    for fault in faults:
        style = "red" if fault["severe"] else "yellow"
        console.print(f"{fault['object']}: {fault['field']}", style=style, markup=False, soft_wrap=True)
        console.print(f"  {fault['what']}\n  Cure: {fault['cure']}", markup=False, soft_wrap=True)
    severe = sum(fault["severe"] for fault in faults)
    console.print(f"{count} objects, " + (f"{severe} wrong, {len(faults) - severe} to be signed only after a look" if faults else "nothing wrong"))  # fmt: skip


def _faults(objects: Sequence[Manifest], profile: Profile | None, kubernetes: str = "1.36") -> list[dict[str, Any]]:
    from ft_pipeline.workers.kubernetes.checks import faults_of

    found = faults_of(objects, profile=profile, kubernetes=kubernetes)
    return [{"object": f.object, "field": f.field, "what": f.what, "cure": f.cure, "severe": f.severe} for f in found]


def _text(objects: Sequence[Manifest]) -> str:
    """YAML documents, texts of several lines as blocks."""
    import yaml

    class Blocks(yaml.SafeDumper):
        """Knows how a person would write a long text."""

    def written(dumper: yaml.SafeDumper, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Blocks.add_representer(str, written)
    return yaml.dump_all(objects, Dumper=Blocks, sort_keys=False, width=130)


def _files(target: Path) -> list[Path]:
    """The manifests that a path means; none when it is a recipe."""
    if target.is_dir():
        return [path for path in sorted(target.rglob("*.yaml")) if _is_manifest(path)]
    return [target] if target.suffix in (".yaml", ".yml") and target.is_file() and _is_manifest(target) else []


def _is_manifest(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return "\nkind:" in f"\n{text}" and "apiVersion:" in text and path.name != "kustomization.yaml"


def _read(files: Sequence[Path]) -> list[Manifest]:
    import yaml

    found: list[Manifest] = []
    for path in files:
        try:
            found += [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(d, dict)]
        except yaml.YAMLError as error:
            raise UserError(f"{path} is no YAML: {error}", cure="mend the file") from error
    return found
