"""What each method needs of a recipe, of a dataset, and which artifacts must be there before it trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ft_pipeline.encode.artifact import (
    measure_of,
    needs_reference,
    reference_job,
    reference_model,
    reference_spec,
    refuse_other_tokenizer,
)
from ft_pipeline.errors import RecipeError
from ft_pipeline.finetune.policies import OBJECTIVES, refuse_policy
from ft_pipeline.recipe import Finetune, Preference
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Spec
from ft_pipeline.store.paths import run_folder
from ft_pipeline.workers.job import Job, Placement

TEACHER_KIND = "teacher_logprobs"
TEACHER_CODE = ("teacher.py", "teacher_main.py", "methods/distill.py", "batches.py", "attention.py")
SECTIONS = ("preference", "reward", "distill", "reinforce")
READS: Mapping[str, str | None] = {
    "dpo": "preference", "simpo": "preference", "orpo": "preference", "kto": "preference", "reward": "reward", "distill": "distill",
    **dict.fromkeys(OBJECTIVES, "reinforce"),
}  # fmt: skip
"""Method -> the section that is its own."""
MAY_LACK = ("reward",)
"""Sections without a decision in them."""
EXAMPLES: Mapping[str, str] = {
    "dpo": "pair",
    "simpo": "pair",
    "orpo": "pair",
    "reward": "pair",
    "process_reward": "stepwise",
    "kto": "labelled",
    **dict.fromkeys(OBJECTIVES, "prompt"),
}
"""Method -> kind of its rows in the shards; the others train on windows."""
LAYOUTS: Mapping[str | None, str] = {
    None: "of conversations, completions or texts", "pair": "of layout preference", "labelled": "of layout kto",
    "prompt": "of layout rlvr", "stepwise": "of layout stepwise",
}  # fmt: skip
FIELDS: Mapping[str, tuple[str, ...]] = {
    "dpo": ("beta", "loss", "label_smoothing", "sft_weight", "reference"),
    "simpo": ("beta", "gamma", "label_smoothing", "sft_weight"),
    "orpo": ("beta",),
    "kto": ("beta", "loss", "desirable_weight", "undesirable_weight", "reference"),
}
"""Fields of `preference` that a method reads."""
LABEL_LOSSES = ("kto", "apo_zero_unpaired")
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses of dpo that label_smoothing changes."""
BASE = "base"


def refuse_sections(section: Finetune) -> None:
    """Raises RecipeError when a section or a field of another method is given, or the method's own is missing."""
    wanted = READS.get(section.method)
    for name in SECTIONS:
        given = getattr(section, name)
        if given is not None and name != wanted:
            owners = ", ".join(method for method, read in READS.items() if read == name)
            raise RecipeError(
                f"finetune.{name} belongs to {owners}, not to {section.method}",
                why="It would change nothing, and look as if it did.",
                cure="leave it out",
            )
    if wanted and wanted not in MAY_LACK and getattr(section, wanted) is None:
        raise RecipeError(
            f"finetune.method {section.method} needs finetune.{wanted}", cure=f"{wanted}: {{{_example(wanted)}}}"
        )
    if section.preference is not None:
        _refuse_preference(section.method, section.preference)
    refuse_policy(section)


def refuse_kind(section: Finetune, kind: str | None) -> None:
    """Raises RecipeError when the rows of the shards (`examples` of their statistics) are not what the method trains on."""
    wanted = EXAMPLES.get(section.method)
    if kind == wanted:
        return
    fitting = [method for method, needs in EXAMPLES.items() if needs == kind] or ["sft", "cpt", "distill"]
    held = f"rows of kind {kind}" if kind else "packed windows"
    raise RecipeError(
        f"the dataset holds {held}, finetune.method {section.method} trains on {f'rows of kind {wanted}' if wanted else 'windows'}",
        why="Which rows a method can read follows from the layout of the dataset.",
        cure=f"a dataset {LAYOUTS[wanted]}" + (f", or method: {' or '.join(fitting)}" if kind != "prompt" else ""),
    )


def parent_specs(
    section: Finetune, *, shards: Artifact, base: Artifact, find: Callable[[str], Artifact]
) -> dict[str, Spec]:
    """Role -> the spec of what must be made before `checkpoints`, in order; empty for most methods.

    find: the artifact whose digest begins so, for a reference or a teacher that is not the base. Raises RecipeError for one of another kind.
    """
    if needs_reference(section):
        reference = reference_model(section, base=base, find=find)
        return {"reference": reference_spec(measure_of(section), shards=shards, reference=reference, base=base)}
    if section.distill is not None:
        teacher = _teacher(section.distill.teacher, base=base, find=find)
        return {"teacher": teacher_spec(section, shards=shards, models=(teacher, base))}
    return {}


def parent_jobs(
    section: Finetune,
    *,
    parts: Mapping[str, Artifact],
    find: Callable[[str], Artifact],
    work: Path,
    placement: Placement,
) -> dict[str, Job]:
    """Role -> the job that makes it, as `parent_specs`. parts: `shards` and `base`."""
    shards, base = parts["shards"], parts["base"]
    specs = parent_specs(section, shards=shards, base=base, find=find)
    if "reference" in specs:
        model, measure = reference_model(section, base=base, find=find), measure_of(section)
        job = reference_job(measure, shards=shards, reference=model, base=base, work=work, placement=placement)
        return {"reference": job}
    return {role: _teacher_job(spec, (work, placement)) for role, spec in specs.items()}


def teacher_spec(section: Finetune, *, shards: Artifact, models: tuple[Artifact, Artifact]) -> Spec:
    """What decides a teacher's log-probabilities: windows, teacher, how many tokens are kept, temperature, number type.

    models: teacher and student. The vocabulary is the smaller one: models of one family are padded to several sizes.
    """
    distill, (teacher, _) = section.distill, models
    assert distill is not None
    here, vocabulary = Path(__file__).parent, min(map(_vocabulary, models))
    config: dict[str, Any] = {
        "top_k": min(distill.top_k, vocabulary), "temperature": distill.temperature, "dtype": section.dtype,
        "vocabulary": vocabulary,
    }  # fmt: skip
    return Spec(
        kind=TEACHER_KIND,
        config=config,
        parents={"shards": shards.ref, "teacher": teacher.ref},
        code=code_digest(*(here / name for name in TEACHER_CODE)),
    )


def _teacher_job(spec: Spec, where: tuple[Path, Placement]) -> Job:
    work, placement = where
    return Job(
        name="teacher", module="ft_pipeline.finetune.teacher_main", spec=spec, section=dict(spec.config),
        folder=run_folder(work, spec.fingerprint), placement=placement, facts={},
    )  # fmt: skip


def _teacher(named: str, *, base: Artifact, find: Callable[[str], Artifact]) -> Artifact:
    """The frozen model of `distill.teacher`."""
    if named == BASE:
        return base
    found = find(named)
    if found.manifest.kind != base.manifest.kind:
        raise RecipeError(
            f"finetune.distill.teacher {named[:16]} is of kind {found.manifest.kind}, not a {base.manifest.kind}",
            why="An adapter has no vocabulary digests of its own.",
            cure="export it merged, and pin the result as a base_model",
        )
    refuse_other_tokenizer(found, base, "distill.teacher")
    return found


def _vocabulary(model: Artifact) -> int:
    config = json.loads(model.file("config.json").read_text(encoding="utf-8"))
    return config.get("text_config", config)["vocab_size"]


def _refuse_preference(method: str, section: Preference) -> None:
    for name, default in {f.name: f.default for f in fields(section)}.items():
        if name not in FIELDS[method] and getattr(section, name) != default:
            owners = [other for other, read in FIELDS.items() if name in read]
            raise RecipeError(
                f"finetune.preference.{name} {getattr(section, name)} belongs to {', '.join(owners)}, not to {method}",
                why="It would change nothing, and look as if it did.",
                cure="leave it out",
            )
    loss = section.loss or ("kto" if method == "kto" else "sigmoid")
    if (loss in LABEL_LOSSES) != (method == "kto"):
        raise RecipeError(
            f"finetune.preference.loss {loss} is not a loss of {method}",
            cure="kto: kto or apo_zero_unpaired; dpo: any other",
        )
    if method == "dpo":
        _refuse_smoothing(loss, section.label_smoothing)


def _refuse_smoothing(loss: str, smoothing: float) -> None:
    if smoothing and loss not in SMOOTHED:
        raise RecipeError(
            f"finetune.preference.label_smoothing {smoothing} does not change the loss {loss}",
            cure=f"leave it out, or loss: {', '.join(SMOOTHED)}",
        )
    if loss == "exo_pair" and not smoothing:
        raise RecipeError(
            "finetune.preference.loss exo_pair needs a label_smoothing above 0: it takes its logarithm",
            cure="label_smoothing: 0.001",
        )


def _example(section: str) -> str:
    return {
        "preference": "beta: 0.1",
        "distill": "teacher: DIGEST, alpha: 0.5",
        "reinforce": "max_new_tokens: 64, rewards: [...]",
    }[section]
