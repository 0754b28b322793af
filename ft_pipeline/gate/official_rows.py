"""Renders the rows of an official benchmark with lm-evaluation-harness's own task definitions: the only file that imports lm_eval.

The definitions are used as they are shipped, with three keys changed: where the dataset lies, how many examples come first, and the sampler
that takes the first ones. Requests are built by the code that `simple_evaluate` uses, without its caches and row numbers.
"""

from __future__ import annotations

import inspect
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ft_pipeline.curate.artifact import item_sha256
from ft_pipeline.errors import DataError, NotFoundError, UserError
from ft_pipeline.gate.official import SAMPLER, Official
from ft_pipeline.store.fingerprint import sha256_bytes, sha256_json

QUESTION_COLUMNS = ("question", "ctx")
"""Where the datasets keep the question itself, as curate reads it."""
PLACES = ("dataset_path", "dataset_kwargs", "metadata")
"""Of a task's config: where it was loaded from, no part of what it is."""


@dataclass(frozen=True)
class Tasks:
    """The loaded tasks of a benchmark, one for each stratum."""

    by_stratum: dict[str, Any]
    """lm_eval tasks; a benchmark without strata has one under ''."""
    identity: dict[str, Any]
    """What decides the rows besides the mirror: lm_eval's version, a digest of the definitions."""
    facts: dict[str, Any]
    """What scoring needs that is the same for every row."""


@contextmanager
def loaded(wanted: Official, mirror: Path, *, only: Sequence[str], shots: int, work: Path) -> Iterator[Tasks]:
    """The tasks, their data read from a mirror and nowhere else. Raises UserError, NotFoundError, DataError."""
    package = _package()
    paths = _definitions(package / "tasks", wanted.definitions, only)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="benchmark-") as folder:
        place = Path(folder) / "tasks"
        own = write_definitions(place, paths, mirror=mirror, shots=shots, cache=Path(folder) / "cache")
        tasks = _load(place, [*own.values()], mirror)
        yield Tasks(
            by_stratum={stratum: tasks[name] for stratum, name in own.items()},
            identity={"lm_eval": _version(), "task_sha256": _digest(tasks)},
            facts=_facts(next(iter(tasks.values()))),
        )


def write_definitions(folder: Path, paths: dict[str, Path], *, mirror: Path, shots: int, cache: Path) -> dict[str, str]:
    """Task files for lm_eval that include the shipped ones and read a mirror: stratum -> name of the task."""
    folder.mkdir(parents=True)
    names = {}
    for stratum, path in paths.items():
        names[stratum] = f"local_{path.stem}"
        body = {
            "include": str(path), "task": names[stratum], "tag": [], "dataset_path": str(mirror),
            "dataset_kwargs": {"cache_dir": str(cache)}, "num_fewshot": shots, "fewshot_config": {"sampler": SAMPLER},
        }  # fmt: skip
        (folder / f"{names[stratum]}.yaml").write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")
    return names


def rendered(tasks: Tasks, wanted: Official) -> Iterator[dict[str, Any]]:
    """The rows of a suite, stratum by stratum in the dataset's order."""
    for stratum, task in tasks.by_stratum.items():
        with _quiet():
            task.build_all_requests(cache_requests=False)
        documents: dict[int, list[Any]] = {}
        for instance in task.instances:
            documents.setdefault(instance.doc_id, []).append(instance)
        yield from _rows((stratum, task), list(documents.values()), wanted)


def _rows(named: tuple[str, Any], documents: Sequence[Sequence[Any]], wanted: Official) -> Iterator[dict[str, Any]]:
    stratum, task = named
    prefix = _prefix([requests[0].args[0] for requests in documents], task.config.fewshot_delimiter)
    key = sha256_bytes(prefix.encode())[:16]
    seen: Counter[str] = Counter()
    for requests in documents:
        doc = requests[0].doc
        doc_hash = document_hash(doc)
        row = {
            # MMLU repeats 27 documents within subjects, so the digest alone names none of them
            "id": f"{stratum or wanted.repo.split('/')[1]}/{doc_hash[:16]}/{seen[doc_hash]}",
            "stratum": stratum, "doc_hash": doc_hash, "prefix": key, "prefix_text": prefix,
            "context": requests[0].args[0][len(prefix) :], "metric": wanted.metric,
            "item_sha256": item_sha256(next(doc[c] for c in QUESTION_COLUMNS if c in doc)),
        }  # fmt: skip
        seen[doc_hash] += 1
        yield row | (_written(task, doc) if wanted.metric == "exact_match" else _chosen(task, requests, wanted))


def document_hash(doc: dict[str, Any]) -> str:
    """lm_eval's digest of a document."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False))


def _chosen(task: Any, requests: Sequence[Any], wanted: Official) -> dict[str, Any]:
    doc = requests[0].doc
    choices, target = task.doc_to_choice(doc), task.doc_to_target(doc)
    answer = choices.index(target) if isinstance(target, str) else target
    delimiter = requests[0].args[1][: -len(choices[0])]
    if any(r.args != (requests[0].args[0], delimiter + c) for r, c in zip(requests, choices, strict=True)):
        raise DataError(
            f"document {requests[0].doc_id} of {task.config.task} does not put its choices behind one context"
        )
    row = {"choices": choices, "answer": answer, "delimiter": delimiter}
    if wanted.metric == "mc2":
        row["right"] = [i for i, label in enumerate(doc["mc2_targets"]["labels"]) if label == 1]
    return row


def _written(task: Any, doc: dict[str, Any]) -> dict[str, Any]:
    return {"target": str(task.doc_to_target(doc))}


def _prefix(contexts: Sequence[str], delimiter: str) -> str:
    """What all contexts begin with, up to the last end of an example."""
    first, last = min(contexts), max(contexts)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    cut = first.rfind(delimiter, 0, common)
    return first[: cut + len(delimiter)] if cut >= 0 else ""


def _facts(task: Any) -> dict[str, Any]:
    """For written answers: where they end, and how the answer is found in them, by the last filter (GSM8K: the last number)."""
    if task.OUTPUT_TYPE != "generate_until":
        return {}
    chosen = task.config.filter_list[-1]
    extract = next(f for f in chosen["filter"] if f["function"] == "regex")
    compare = next(m for m in task.config.metric_list if m["metric"] == "exact_match")
    settings = task.config.generation_kwargs
    return {
        "until": settings["until"], "max_new_tokens": settings.get("max_gen_toks", 256), "filter": chosen["name"],
        "regex": extract["regex_pattern"], "group": extract.get("group_select", 0),
        "ignore": compare.get("regexes_to_ignore", []), "ignore_case": bool(compare.get("ignore_case")),
    }  # fmt: skip


def _load(folder: Path, names: Sequence[str], mirror: Path) -> dict[str, Any]:
    """Name -> task. Only our folder is indexed: the 14,683 shipped entries take 8 s."""
    from lm_eval.tasks import TaskManager

    try:
        with _quiet():
            return TaskManager(include_path=str(folder), include_defaults=False).load(list(names))["tasks"]
    except (ValueError, FileNotFoundError, KeyError) as error:
        # what `datasets` raises for an unknown configuration, a missing file, a missing split
        raise DataError(
            f"the mirror in {mirror} does not hold what lm_eval asks for: {str(error).splitlines()[0]}",
            why="The task's definition names configurations, splits and columns of the dataset's repository.",
            cure="fetch the whole repository, README.md included",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Two progress bars for each subject are nothing that a person reads."""
    import datasets

    shown = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _definitions(root: Path, pattern: str, only: Sequence[str]) -> dict[str, Path]:
    """Stratum -> the shipped definition. The stratum is the dataset's configuration where there are several."""
    found = sorted(root.glob(pattern))
    if len(found) == 1:
        named = {"": found[0]}
    else:
        bodies = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in found}
        named = {str(b["dataset_name"]): path for path, b in bodies.items() if "dataset_name" in b}
    if missing := sorted(set(only) - set(named)):
        raise NotFoundError(f"no stratum {missing[0]!r}", cure=f"there are: {', '.join(named) or 'none'}")
    return {stratum: path for stratum, path in named.items() if not only or stratum in only}


def _package() -> Path:
    try:
        import lm_eval
    except ImportError:
        raise UserError(
            "lm_eval is not installed",
            why="Official benchmarks are rendered with its task definitions; scoring them needs it no more.",
            cure="pip install 'ft-pipeline[eval]'",
        ) from None
    return Path(inspect.getfile(lm_eval)).parent


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _digest(tasks: dict[str, Any]) -> str:
    """Of the definitions as they were used, the code of their functions included."""
    configs = {name: {k: v for k, v in vars(task.config).items() if k not in PLACES} for name, task in tasks.items()}
    return sha256_json(_plain(configs))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if callable(value):
        return inspect.getsource(value)
    return value if isinstance(value, str | int | float | bool | None) else _plain(vars(value))
