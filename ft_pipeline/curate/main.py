"""`python -m ft_pipeline.curate.main job.json`: one member of a team that curates together, on one machine or as an Indexed Job.

The files are the same, byte for byte, as those of one process: member 0 writes them, the others wait until they are published.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from ft_pipeline import settings
from ft_pipeline.curate import references
from ft_pipeline.curate.consolidate import Curation, curate, curation_of
from ft_pipeline.recipe import Recipe, identity, parse
from ft_pipeline.store.artifacts import Store
from ft_pipeline.store.manifest import Ref
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job, Placement
from ft_pipeline.workers.messages import Mailbox
from ft_pipeline.workers.team import Team


def curate_job(recipe: Recipe, curation: Curation, *, base: Ref | None, work: Path, placement: Placement) -> Job:
    """The job of every member. Its folder, like the team's results, must be shared by the members."""
    spec = curation.spec()
    facts = {
        "recipe": identity(recipe),
        "raw": asdict(curation.raw),
        "base": asdict(base) if base else None,
        "forgotten": list(curation.forgotten),
    }
    return Job(
        name=f"curate {recipe.key}", module="ft_pipeline.curate.main", spec=spec, section=identity(recipe.curate),
        folder=run_folder(work, spec.fingerprint), placement=placement, facts=facts,
    )  # fmt: skip


def body(job: Job, store: Store, mailbox: Mailbox) -> None:
    """Publishes the `curated_dataset` of the job, or waits until member 0 has."""
    here = settings.load()
    team = Team(member=here.team_member, size=here.team_size, folder=job.folder / f"team-of-{here.team_size}")
    recipe = parse(dict(job.facts["recipe"]), origin=job.name)
    base = Ref(**job.facts["base"]) if job.facts["base"] else None
    opened = references.opened(recipe.curate, settings=here, store=store, listener=mailbox)
    curation = curation_of(
        recipe, raw=Ref(**job.facts["raw"]), base=base, store=store, forgotten=job.facts["forgotten"], **opened
    )
    curate(curation, store=store, workforce=team, memory_gib=here.memory_gib, listener=mailbox)


if __name__ == "__main__":
    sys.exit(run_child(body, sys.argv))
