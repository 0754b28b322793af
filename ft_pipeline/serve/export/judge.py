"""The report on an export: what its ordinary gate said, and how far it is from what it was made from. One verdict over both."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from ft_pipeline.encode.artifact import end_of_turn
from ft_pipeline.gate.artifact import holdout_tasks, read_report, write_joined
from ft_pipeline.serve.export.fidelity import Text, chosen, compare
from ft_pipeline.serve.export.formats import UNQUANTISED
from ft_pipeline.serve.export.merge import unmerged
from ft_pipeline.serve.export.policy import Fidelity, judged, parse_policy
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Listener, log, progress

FIDELITY = "fidelity.json"


def judge(job: Job, store: Store, mailbox: Listener) -> None:
    """Publishes the `eval_report` of an export: the gates of its ordinary report and the three of its fidelity."""
    started = time.monotonic()
    disable_progress_bar()
    torch.set_num_threads(job.placement.threads)
    parents = {role: store.fetch(ref) for role, ref in job.spec.parents.items()}
    found = measure(store, parents, device=job.placement.device, mailbox=mailbox)
    config = job.spec.config
    policy = parse_policy(config["fidelity"], origin=config["fidelity_policy"])
    gates = [*judged(found, policy), *read_report(parents["report"]).gates]
    with store.publish(job.spec) as draft:
        report = write_joined(draft, gates)
        told = {**asdict(found), "perplexity_ratio": found.perplexity_ratio}
        (draft.folder / FIDELITY).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        draft.execution.update(seconds=round(time.monotonic() - started, 1), device=job.placement.device)
    log(mailbox, f"{report.verdict}: {report.reason}", verdict=str(report.verdict))


def measure(store: Store, parents: Mapping[str, Artifact], *, device: str, mailbox: Listener) -> Fidelity:
    """The export against the model that it was made from, on the holdout of its line."""
    exported = parents["adapter"]
    texts = texts_of(parents["curated"], AutoTokenizer.from_pretrained(exported.folder))
    before = exported.manifest.parents
    if UNQUANTISED in before:
        reference = _load(store.fetch(before[UNQUANTISED]).folder, device)
    else:
        reference = unmerged(parents["base"].folder, store.fetch(before["adapter"]).folder, device)
    return compare(
        reference, _load(exported.folder, device), chosen(texts),
        tick=lambda done, total: progress(mailbox, "fidelity", done, total=total, unit="row"),
    )  # fmt: skip


def texts_of(curated: Artifact, tokenizer: Any) -> list[Text]:
    """The holdout rows as the model reads them: prompt by the chat template, then the reference answer and the end of the turn."""
    end = end_of_turn(tokenizer)
    return [_text(task, tokenizer, end) for task in holdout_tasks(curated)]


def _text(task: Any, tokenizer: Any, end: int | None) -> Text:
    if task.messages:
        rendered = tokenizer.apply_chat_template(
            list(task.messages), tools=task.tools, add_generation_prompt=True, tokenize=False
        )
        before = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    else:
        before, end = tokenizer(task.prompt)["input_ids"], tokenizer.eos_token_id
    answer = tokenizer(task.reference, add_special_tokens=False)["input_ids"] + ([] if end is None else [end])
    return Text(id=task.id, ids=(*before, *answer), answer_from=len(before))


def _load(folder: Path, device: str) -> Any:
    """In the precision that it is stored in; compressed weights are unpacked, activations rounded as an engine rounds them."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa").to(device).eval()
