"""The child that exports and compares: `python -m ft_pipeline.serve.export.main job.json`.

Runs in two environments: quantising in that of FT_EXPORT_PYTHON, which has llmcompressor and neither peft nor dagster; merging and
comparing in ours. So nothing but the store and the workers is imported before it is known what is asked.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.workers.child import run_child
from ft_pipeline.workers.job import Job
from ft_pipeline.workers.messages import Listener, log

WEIGHTS = (".safetensors", ".index.json")
OF_ADAPTERS = "adapter_config.json"


def body(job: Job, store: Store, mailbox: Listener) -> None:
    """Makes the `exported_model` of the job, or the report on one."""
    if job.spec.kind == "exported_model":
        export(job, store, mailbox)
        return
    from ft_pipeline.serve.export.judge import judge

    judge(job, store, mailbox)


def export(job: Job, store: Store, mailbox: Listener) -> None:
    """Publishes the weights, with tokenizer, template and proof of training of what they were made from."""
    started = time.monotonic()
    parents = {role: store.fetch(ref) for role, ref in job.spec.parents.items()}
    with store.publish(job.spec) as draft:
        if "unquantised" in parents:
            from ft_pipeline.serve.export.quantise import quantise

            draft.counts.update(quantise(job, parents, draft.folder))
        else:
            from ft_pipeline.serve.export.merge import merge

            draft.counts.update(merge(job, parents, draft.folder))
        carry(parents.get("unquantised") or parents["adapter"], draft.folder)
        seconds = round(time.monotonic() - started, 1)
        draft.execution.update(seconds=seconds, device=job.placement.device)
    log(mailbox, f"{job.name}: {_megabytes(draft.artifact):.1f} MB in {seconds} s")


def carry(source: Artifact, folder: Path) -> None:
    """Copies what is no weights and was not written anew: tokenizer, template, proof of completion."""
    for name in source.manifest.files:
        if name.endswith(WEIGHTS) or name == OF_ADAPTERS or (folder / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.file(name), folder / name)


def _megabytes(made: Artifact | None) -> float:
    return made.manifest.size_bytes / 1e6 if made else 0.0


if __name__ == "__main__":
    sys.exit(run_child(body, sys.argv))
