"""What comes over from OpenAI: a training file checked as it is, job settings as a request and a recipe of ours, and everything that differs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ft_pipeline.curate.read import raw_rows
from ft_pipeline.errors import UserError, did_you_mean
from ft_pipeline.jobs.ask import Rows
from ft_pipeline.jobs.compose import Composed, compose
from ft_pipeline.jobs.offer import Offer
from ft_pipeline.web.job_ask import ask_of
from ft_pipeline.web.job_bodies import JobBody
from ft_pipeline.web.report import report_of
from ft_pipeline.web.sniff import suffix_of_rows

TRAINING = "file-of-the-import"
SENT = ("model", "training_file", "validation_file", "hyperparameters", "method", "seed", "suffix", "metadata")
"""What a request says. Everything else in a job is OpenAI's answer."""
ANSWERED = (
    "id", "object", "created_at", "finished_at", "status", "fine_tuned_model", "organization_id", "result_files", "trained_tokens",
    "error", "estimated_finish", "user_provided_suffix", "integrations", "usage_metrics", "shared_with_openai", "eval_id",
)  # fmt: skip
KNOBS = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
ALWAYS = (
    "learning_rate_multiplier multiplies the preset's rate of this platform, not OpenAI's, which is not known: compare losses, not numbers",
    "batch_size counts packed windows of tokens (pairs for dpo), not rows: short rows share a window",
    "a gate judges every version: a job may succeed and its version still not be promoted (`platform.promotion`)",
    "the version is an adapter of an open base model: `tenant/suffix@N` in place of `ft:gpt-...`",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A job of OpenAI's as one of ours."""

    request: Mapping[str, Any]
    """Body of POST /v1/fine_tuning/jobs; `training_file` still has to be the id of the uploaded file."""
    composed: Composed
    differs: tuple[str, ...]


def check_file(path: Path) -> dict[str, Any]:
    """The report of a training file, and how often each of OpenAI's features is in it. Raises Refusal, DataError."""
    suffix = suffix_of_rows(path)
    found: Counter[str] = Counter()
    for _, row in raw_rows({f"rows{suffix}": path}, lambda _bytes: None):
        if row.value is not None:
            found.update(_features(row.value))
    return {**report_of(path, suffix), "openai": dict(found.most_common()), "notes": _notes(found)}


def convert(job: Mapping[str, Any], offer: Offer, *, rows: Rows, model: str | None, tenant: str) -> Settings:
    """A job (a request, or what `jobs.retrieve` gave) as ours. Raises UserError for what cannot be carried over."""
    if unknown := sorted(set(job) - set(SENT) - set(ANSWERED)):
        raise UserError(
            f"{unknown[0]!r} is no field of a fine-tuning job: {did_you_mean(unknown[0], SENT)}",
            cure="give the JSON of a request, or of `client.fine_tuning.jobs.retrieve(...)`",
        )
    request = {name: job[name] for name in SENT if job.get(name) is not None}
    request |= {"training_file": TRAINING, "model": _model(job, offer, model)}
    if suffix := job.get("suffix") or job.get("user_provided_suffix"):
        request["suffix"] = suffix
    differs = [*_differences(job, request), *ALWAYS]
    request.pop("validation_file", None)
    if "method" in request:  # the answer repeats the knobs beside the method, where they are one request too many
        request.pop("hyperparameters", None)
    try:
        body = JobBody.model_validate(request)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", why="This platform cannot do it so."
        ) from None
    composed = compose(ask_of(body, tenant, find=lambda _id: rows), offer, find=lambda _id: rows)
    return Settings(request=request, composed=composed, differs=(*_became(job, composed), *differs))


def _model(job: Mapping[str, Any], offer: Offer, model: str | None) -> str:
    named = model or job.get("model")
    if named in offer.bases:
        return str(named)
    raise UserError(
        f"model {named!r} is not offered here",
        why="OpenAI's weights cannot be had; an open base model takes their place.",
        cure=f"--model with one of: {', '.join(offer.bases)}",
    )


def _differences(job: Mapping[str, Any], request: Mapping[str, Any]) -> Iterator[str]:
    if job.get("model") != request["model"]:
        yield f"model {job.get('model')} becomes {request['model']}"
    if job.get("integrations"):
        yield "integrations are left out: losses and metrics are in MLflow and in the job's events"
    if job.get("validation_file"):
        yield f"validation_file {job['validation_file']} has to be uploaded too and named again"
    if job.get("seed") is None:
        yield "seed is 0: OpenAI draws one, here the same request gives the same weights"


def _became(job: Mapping[str, Any], composed: Composed) -> Iterator[str]:
    """What each knob is now."""
    said = _knobs(job)
    for name, value in composed.hyperparameters.items():
        if said.get(name, "auto") == "auto":
            yield f"{name} auto becomes {value}"
        elif said[name] != value:
            yield f"{name} {said[name]} becomes {value}"


def _knobs(job: Mapping[str, Any]) -> dict[str, Any]:
    method = job.get("method") or {}
    section = method.get(method.get("type"), {}) if isinstance(method, Mapping) else {}
    said = {**(job.get("hyperparameters") or {}), **((section or {}).get("hyperparameters") or {})}
    return {name: said[name] for name in KNOBS if name in said}


def _features(row: Mapping[str, Any]) -> Iterator[str]:
    if "preferred_output" in row:
        yield "preference"
    if "reference_answer" in row:
        yield "reinforcement"
    asked = row.get("input") if isinstance(row.get("input"), Mapping) else row
    for name in ("tools", "functions", "parallel_tool_calls"):
        if asked is not None and asked.get(name) is not None:
            yield name
    messages = row.get("messages")
    turns = [turn for turn in messages if isinstance(turn, Mapping)] if isinstance(messages, list) else []
    for name in ("weight", "tool_calls", "function_call", "name", "refusal", "audio"):
        if any(turn.get(name) is not None for turn in turns):
            yield name
    if any(isinstance(turn.get("content"), list) for turn in turns):
        yield "content_parts"
    if any(turn.get("role") == "developer" for turn in turns):
        yield "developer"


def _notes(found: Mapping[str, int]) -> list[str]:
    said = {
        "preference": "rows of preferred_output / non_preferred_output are read as they are: method dpo",
        "reinforcement": "reference_answer is what answers are checked against: method reinforcement, with a grader that compares text",
        "functions": "functions and function_call (the old form) are read as tools and tool_calls",
        "parallel_tool_calls": "parallel_tool_calls changes nothing: what the assistant turns hold is learned",
        "weight": "weight 0 leaves an assistant turn out of the loss, as at OpenAI; 1 trains it",
        "developer": "developer turns become system turns",
        "refusal": "`refusal` is not trained on: write the words into content",
        "audio": "audio is not trained on",
        "name": "the name of a turn is kept, and rendered where the base's chat template does",
    }
    return [text for feature, text in said.items() if found.get(feature)]


def read_job(path: Path) -> Mapping[str, Any]:
    """The JSON object of a file. Raises UserError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object", cure="give the JSON of one job")
    return found
