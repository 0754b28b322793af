"""From either body to one Ask: methods, knobs, graders, files. Refuses what this platform does not do, with the parameter's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ft_pipeline.jobs.ask import Ask, Examination, Hyper, Rows
from ft_pipeline.jobs.compose import Find
from ft_pipeline.jobs.presets import Method as MethodName
from ft_pipeline.web.job_bodies import AliasBody, EvalConfig, Hyperparameters, JobBody, Method
from ft_pipeline.web.refusals import Refusal

ANSWERS = ("{{item.reference_answer}}", "{{ item.reference_answer }}", "{{item.answer}}", "{{ item.answer }}")


def ask_of(body: JobBody | AliasBody, tenant: str, *, find: Find) -> Ask:
    """The request in the house's words. Raises Refusal, and what `find` raises."""
    method, section = _method(body.method)
    hyper = _hyper(body.hyperparameters, section.get("hyperparameters"))
    _refuse_beta(hyper, method)
    return Ask(
        tenant=tenant,
        model=body.model if isinstance(body, JobBody) else body.base_model,
        training=_rows(find, body.training_file, "training_file"),
        validation=_rows(find, body.validation_file, "validation_file") if body.validation_file else None,
        method=method,
        hyper=hyper,
        rewards=_rewards(section.get("grader"), body),
        seed=body.seed or 0,
        suffix=body.suffix or None,
        examination=_examination(body, find),
        sections=_sections(body, section),
    )


def _method(said: str | Method | None) -> tuple[MethodName, Mapping[str, Any]]:
    """(method, OpenAI's section of it)."""
    if said is None:
        return "lora", {}
    if isinstance(said, str):
        return said, {}  # type: ignore[return-value] - a Literal of both
    for other in ("supervised", "dpo", "reinforcement"):
        if other != said.type and getattr(said, other) is not None:
            raise Refusal(f"method.type is {said.type}, and method.{other} is given", param=f"method.{other}")
    section = getattr(said, said.type)
    if said.type == "reinforcement" and section is None:
        raise Refusal("method.type reinforcement without method.reinforcement.grader", param="method.reinforcement")
    names: dict[str, MethodName] = {"supervised": "lora", "dpo": "dpo", "reinforcement": "grpo"}
    return names[said.type], {} if section is None else dict(section)


def _hyper(old: Hyperparameters | None, new: Hyperparameters | None) -> Hyper:
    """OpenAI moved the knobs into `method`; old clients still send them beside it."""
    said: dict[str, Any] = {}
    for place, knobs in (("hyperparameters", old), ("method hyperparameters", new)):
        for field in fields(Hyper):
            value = getattr(knobs, field.name, None)
            if value in (None, "auto"):
                continue
            if said.setdefault(field.name, value) != value:
                raise Refusal(
                    f"{field.name} is {said[field.name]} in hyperparameters and {value} in {place}", param=field.name
                )
    if "lora_target_modules" in said:
        said["lora_target_modules"] = tuple(said["lora_target_modules"])
    return Hyper(**said)


def _refuse_beta(hyper: Hyper, method: str) -> None:
    if hyper.beta is not None and method != "dpo":
        raise Refusal(f"beta {hyper.beta} with method {method}", param="hyperparameters.beta", why="It belongs to dpo.")


def _rewards(grader: Mapping[str, Any] | None, body: JobBody | AliasBody) -> tuple[Mapping[str, Any], ...]:
    """The built-in reward that computes what the grader does; others would be something else than was asked for."""
    if grader is None or _has_rewards(body):
        return ()
    compares = grader.get("input") in ("{{sample.output_text}}", "{{ sample.output_text }}")
    if grader.get("type") == "string_check" and compares and grader.get("reference") in ANSWERS:
        if (operation := grader.get("operation")) == "eq":
            return ({"name": "exact_answer"},)
        what = f"operation {operation!r} of a string_check grader"
    else:
        what = f"a grader of type {grader.get('type')!r} over these fields"
    raise Refusal(
        f"{what} is not built in",
        param="method.reinforcement.grader",
        code="unsupported_grader",
        why="Python graders run code of yours on the platform, and no built-in reward scores exactly as this one.",
        cure="string_check with eq of {{sample.output_text}} and {{item.reference_answer}}; or name rewards in "
        "platform.recipe.finetune.reinforce.rewards (docs/methods.md)",
    )


def _has_rewards(body: JobBody | AliasBody) -> bool:
    section = body.platform.recipe.get("finetune")
    return isinstance(section, Mapping) and "reinforce" in section


def _examination(body: JobBody | AliasBody, find: Find) -> Examination | None:
    said: EvalConfig | None = body.platform.eval_config
    if isinstance(body, AliasBody) and body.eval_config is not None:
        if said is not None:
            raise Refusal("eval_config and platform.eval_config say the same", param="platform.eval_config")
        said = body.eval_config
    if said is None:
        return None
    tested = _rows(find, said.task_eval_file, "eval_config.task_eval_file") if said.task_eval_file else None
    return Examination(
        run_mmlu_regression=said.run_mmlu_regression, task_eval_file=tested, safety_scan=said.safety_scan
    )


def _sections(body: JobBody | AliasBody, section: Mapping[str, Any]) -> Mapping[str, Any]:
    """`platform.recipe`, with OpenAI's `eval_interval` where it was said."""
    if isinstance(body, JobBody) and body.integrations:
        raise Refusal(
            f"integrations: {len(body.integrations)} are asked for",
            param="integrations",
            code="unsupported_integration",
            why="Metrics go to the platform's own tracker and to the job's events; nothing is sent to Weights & Biases.",
            cure="leave integrations out; GET /v1/fine_tuning/jobs/{id}/events has every metric",
        )
    knobs = section.get("hyperparameters")
    every = getattr(knobs, "eval_interval", None)
    if not isinstance(every, int):
        return body.platform.recipe
    finetune = body.platform.recipe.get("finetune")
    finetune = finetune if isinstance(finetune, Mapping) else {}
    return {**body.platform.recipe, "finetune": {"evaluate_every_steps": every, **finetune}}


def _rows(find: Find, file_id: str, param: str) -> Rows:
    """As `find`, with the parameter's name in the refusal."""
    try:
        return find(file_id)
    except Refusal as refusal:
        refusal.param = param
        raise
