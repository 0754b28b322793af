"""What a trainer leaves in its home when it ends: steps, checkpoints, artifacts, last words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def store_of(home: Path) -> Any:
    """The store of a home."""
    from ft_pipeline.store.artifacts import Store
    from ft_pipeline.store.files import Bucket

    return Store(Bucket(str(home / "store")), home / "work")


def run_folder(home: Path) -> Path:
    """Of the one run of a home."""
    return next((home / "work" / "runs").iterdir())


def fired(home: Path) -> bool:
    """True when a planted shot was reached."""
    return (home / "fired").exists()


def log_of(home: Path) -> str:
    """What the trainer said."""
    path = home / "log.txt"
    return path.read_text(errors="replace") if path.is_file() else ""


def steps_made(home: Path) -> list[int]:
    """In the order in which they were made."""
    paths = list((home / "work" / "runs").glob("*/metrics.jsonl"))
    return [json.loads(line)["step"] for path in paths for line in path.read_text().splitlines()]


def newest_whole(home: Path) -> int:
    """Step of the newest checkpoint that is what its manifest says; 0 when there is none."""
    from ft_pipeline.finetune.checkpoint import damage

    folders = (run_folder(home) / "checkpoints").glob("step-*")
    return max((int(f.name.removeprefix("step-")) for f in folders if damage(f) is None), default=0)


def half_written(home: Path) -> list[str]:
    """Checkpoints and artifacts under a final name that are not whole."""
    from ft_pipeline.errors import FtError
    from ft_pipeline.finetune.checkpoint import damage

    found = [f"{f.name}: {damage(f)}" for f in (run_folder(home) / "checkpoints").glob("step-*") if damage(f)]
    try:
        store = store_of(home)
        for manifest in store.all("checkpoints"):
            store.fetch(manifest.ref)
    except FtError as error:
        found.append(str(error))
    return found


def digest(home: Path) -> str:
    """Of the published artifact, "" when there is none."""
    return next((manifest.ref.digest for manifest in store_of(home).all("checkpoints")), "")


def difference(home: Path, other: Path) -> float:
    """Largest difference of a trained tensor of two runs, relative to its largest value."""
    import numpy as np
    from safetensors.numpy import load_file

    files = [next((h / "store").glob("*/checkpoints/*/adapter_model.safetensors")) for h in (home, other)]
    one, two = (load_file(path) for path in files)
    return max(float(np.abs(one[name] - two[name]).max() / np.abs(two[name]).max()) for name in one)
