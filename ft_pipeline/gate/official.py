"""Official benchmarks: what lm-evaluation-harness defines, rendered once from a local mirror of the dataset into an `eval_suite`.

lm_eval is needed to build a suite and never to score one: prompts, choices and answers lie in the suite as text. Its traps with caches,
samplers and row numbers end here (docs/benchmarks.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import DriftError, NotFoundError, UserError, did_you_mean
from ft_pipeline.gate.benchmarks import CHOICES, FACTS, PREFIXES, SUITE, WRITTEN, Metric
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.fingerprint import canonical_json, code_digest
from ft_pipeline.store.manifest import Manifest, Ref, Spec

MIRROR_KIND, SUITE_KIND = "benchmark_mirror", "eval_suite"
MIRROR_FILES = "files"
ROOM = Path(__file__).parent
SAMPLER = "first_n"
"""The first examples of the split for every question. The default sampler of lm_eval advances with each question, so that a prompt depends
on which others were asked before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Official:
    """A benchmark as lm-evaluation-harness defines it."""

    repo: str
    """Dataset on the Hub."""
    definitions: str
    """Its YAML files below `lm_eval/tasks`, one for each stratum."""
    shots: int
    metric: Metric
    questions: int
    """Of the whole set, as published."""
    refused: str = ""
    """Why it cannot be built."""


OFFICIAL = {
    "mmlu": Official(repo="cais/mmlu", definitions="mmlu/default/mmlu_*.yaml", shots=5, metric="acc", questions=14_042),
    "hellaswag": Official(
        repo="Rowan/hellaswag", definitions="hellaswag/hellaswag.yaml", shots=10, metric="acc_norm", questions=10_042
    ),
    "arc_challenge": Official(
        repo="allenai/ai2_arc", definitions="arc/arc_challenge.yaml", shots=25, metric="acc_norm", questions=1_172
    ),
    "truthfulqa_mc1": Official(
        repo="truthfulqa/truthful_qa", definitions="truthfulqa/truthfulqa_mc1.yaml", shots=0, metric="acc", questions=817
    ),
    "truthfulqa_mc2": Official(
        repo="truthfulqa/truthful_qa", definitions="truthfulqa/truthfulqa_mc2.yaml", shots=0, metric="mc2", questions=817
    ),
    "gsm8k": Official(
        repo="openai/gsm8k", definitions="gsm8k/gsm8k.yaml", shots=5, metric="exact_match", questions=1_319
    ),
    "ifeval": Official(
        repo="google/IFEval", definitions="ifeval/ifeval.yaml", shots=0, metric="exact_match", questions=541,
        refused="its checkers in lm_eval fetch a tokenizer from the network when they are imported (nltk punkt_tab)",
    ),
    "humaneval": Official(
        repo="openai/openai_humaneval", definitions="humaneval/humaneval.yaml", shots=0, metric="exact_match", questions=164,
        refused="it runs code that the model wrote, and there is no sandbox here that can be trusted with it",
    ),
}  # fmt: skip


def official(task: str) -> Official:
    """The benchmark of a name. Raises NotFoundError, UserError for one that is refused."""
    if task not in OFFICIAL:
        raise NotFoundError(f"no official benchmark {task!r}: {did_you_mean(task, OFFICIAL)}")
    found = OFFICIAL[task]
    if found.refused:
        raise UserError(
            f"{task} is not built: {found.refused}",
            why="A gate must not fetch or run what nobody has looked at.",
            cure="leave it out, or bring your own suite by `uri`",
        )
    return found


def mirrors(store: Store, repo: str) -> list[Manifest]:
    """The mirrors of a dataset in the store, oldest first."""
    found = [m for m in store.all(MIRROR_KIND) if m.config["repo"] == repo]
    return sorted(found, key=lambda m: m.created_at)


def suites(store: Store, task: str) -> list[Manifest]:
    """The built suites of an official benchmark, oldest first."""
    found = [m for m in store.all(SUITE_KIND) if m.config.get("task") == task]
    return sorted(found, key=lambda m: m.created_at)


def the_mirror(store: Store, task: str, digest: str = "") -> Ref:
    """The one mirror of a benchmark's dataset. Raises NotFoundError, UserError when there are several and none is named."""
    repo = official(task).repo
    return _only(
        mirrors(store, repo), digest, what=f"mirror of {repo}", option="--mirror",
        cure=f"`ft-pipeline benchmarks fetch {task}`; without a network: `--from FOLDER` with a copy of the dataset's repository",
    )  # fmt: skip


def the_suite(store: Store, task: str, digest: str = "") -> Ref:
    """The one suite of an official benchmark. Raises NotFoundError, UserError when there are several and none is named."""
    wanted = official(task)
    cure = f"`ft-pipeline benchmarks build {task}`"
    if not mirrors(store, wanted.repo):
        cure = f"`ft-pipeline benchmarks fetch {task}` where there is a network or a copy of {wanted.repo}, then {cure}"
    return _only(suites(store, task), digest, what=f"suite of {task}", option="`suite:` in the recipe", cure=cure)


def build(store: Store, task: str, *, mirror: Ref, only: Sequence[str] = (), shots: int | None = None) -> Artifact:
    """The suite of a benchmark, rendered from a mirror. `only`: strata (MMLU's subjects). Raises UserError, NotFoundError, DriftError."""
    from ft_pipeline.gate.official_rows import loaded, rendered

    wanted = official(task)
    shots = wanted.shots if shots is None else shots
    with loaded(wanted, store.fetch(mirror).folder / MIRROR_FILES, only=only, shots=shots, work=store.work) as tasks:
        spec = _spec(task, mirror, {"only": sorted(only), "shots": shots, **tasks.identity})
        if found := store.find(spec):
            return found
        files = _files(task, rendered(tasks, wanted), tasks.facts)
    with store.publish(spec) as draft:
        for name, content in files.items():
            (draft.folder / name).write_bytes(content)
        draft.counts["rows"] = files[SUITE].count(b"\n")
    assert draft.artifact is not None
    return draft.artifact


def verify(store: Store, suite: Ref) -> Artifact:
    """Re-hashes a suite and its mirror and renders it again. Raises IntegrityError, DriftError."""
    from ft_pipeline.gate.official_rows import loaded, rendered

    stored = store.fetch(suite)
    config = stored.manifest.config
    task, wanted = config["task"], official(config["task"])
    folder = store.fetch(stored.manifest.parents["mirror"]).folder / MIRROR_FILES
    with loaded(wanted, folder, only=config["only"], shots=config["shots"], work=store.work) as tasks:
        changed = [k for k, v in tasks.identity.items() if config[k] != v]
        files = _files(task, rendered(tasks, wanted), tasks.facts)
    changed += [name for name, content in files.items() if stored.file(name).read_bytes() != content]
    if changed:
        raise DriftError(
            f"{task} {suite.digest[:12]} renders otherwise now: {', '.join(changed)}",
            why="Scores on two renderings cannot be compared.",
            cure="install the lm_eval that built it, or build a new suite and name it in the recipe",
        )
    return stored


def _spec(task: str, mirror: Ref, config: dict[str, Any]) -> Spec:
    kind = WRITTEN if OFFICIAL[task].metric == "exact_match" else CHOICES
    code = code_digest(ROOM / "official.py", ROOM / "official_rows.py")
    config = {"name": task, "task": task, "kind": kind, "sampler": SAMPLER, **config}
    return Spec(kind=SUITE_KIND, config=config, parents={"mirror": mirror}, code=code)


def _files(task: str, made: Iterator[dict[str, Any]], facts: dict[str, Any]) -> dict[str, bytes]:
    """The suite's files. Each prefix is written once: it is most of the text."""
    rows, prefixes = [], {}
    for row in made:
        prefixes[row["prefix"]] = row.pop("prefix_text")
        rows.append(canonical_json(row) + b"\n")
    said = {"name": task, "rows": len(rows), **facts}
    return {
        SUITE: b"".join(rows), PREFIXES: canonical_json(prefixes) + b"\n", FACTS: json.dumps(said, sort_keys=True).encode() + b"\n",
    }  # fmt: skip


def _only(found: Sequence[Manifest], digest: str, *, what: str, option: str, cure: str) -> Ref:
    matching = [m for m in found if m.digest.startswith(digest)]
    if not matching:
        named = f" with digest {digest}" if digest and found else ""
        raise NotFoundError(
            f"no {what}{named} in the store", why="A benchmark is scored from local files only.", cure=cure
        )
    if len(matching) > 1:
        raise UserError(
            f"{len(matching)} of them: {what} {', '.join(m.digest[:12] for m in matching)}",
            why="Which one is scored must not depend on what else is in the store.",
            cure=f"name one by its digest: {option}",
        )
    return matching[0].ref
