"""Where an artifact lives: the only file that joins paths of the store."""

from __future__ import annotations

from pathlib import Path

ROOM_OF = {
    "raw_dataset": "acquire",
    "base_model": "acquire",
    "benchmark_mirror": "acquire",
    "curated_dataset": "curate",
    "benchmark_index": "curate",
    "packed_shards": "encode",
    "reference_logprobs": "encode",
    "reward_function": "finetune",
    "checkpoints": "finetune",
    "teacher_logprobs": "finetune",
    "rollouts": "finetune",
    "adapter": "finetune",
    "eval_suite": "gate",
    "baseline": "gate",
    "noise_floor": "gate",
    "eval_report": "gate",
    "recertification": "gate",
    "override": "register",
    "promotion_request": "register",
    "registered_model": "register",
    "exported_model": "serve",
    "deployment": "serve",
}
"""Kind of artifact -> the room that makes it: the storage prefix."""

MANIFEST = "manifest.json"
DRAFTS = ".drafts"
PROBE = ".conditional-put-probe"
BLOBS = "blobs"
"""Below the store's root: what tenants uploaded, by content."""
PARTS = ".uploads"
"""Below the store's root: parts of uploads that are not complete."""


def artifact_path(kind: str, fingerprint: str) -> str:
    """`room/kind/fingerprint`, relative to the store's root: the same on every machine, disk and bucket."""
    return f"{ROOM_OF[kind]}/{kind}/{fingerprint}"


def content_path(artifact: str, content_sha256: str) -> str:
    """Where the files of an artifact in a bucket are: below a digest of their bytes, so that a second run overwrites nothing.

    On a disk they are beside the manifest, because a folder is renamed as a whole.
    """
    return f"{artifact}/{content_sha256}"


def drafts_folder(root: str, work: Path) -> Path:
    """Where drafts are made: on a disk below the store's root, so that a rename publishes them; for a bucket below `work`."""
    return work / "drafts" if "://" in root else Path(root) / DRAFTS


def blob_path(sha256: str) -> str:
    """Where uploaded bytes are, relative to the store's root."""
    return f"{BLOBS}/{sha256[:2]}/{sha256}"


def part_path(upload_id: str, part_id: str) -> str:
    """Where a part of an upload waits for the others, relative to the store's root."""
    return f"{PARTS}/{upload_id}/{part_id}"


def arrivals_folder(work: Path) -> Path:
    """Where bodies are written while they come in; each file is locked by the process that writes it."""
    return work / "arrivals"


def validation_lock(work: Path, file_id: str) -> Path:
    """Held while a process of this machine validates an uploaded file."""
    return work / "validation" / file_id


def download_folder(work: Path) -> Path:
    """Where blobs of a bucket lie while they are read."""
    return work / "blobs"


def under(root: str, *parts: str) -> str:
    """A URI or path below a root."""
    return "/".join([root.rstrip("/"), *parts])


def resolve(uri: str, home: Path) -> str:
    """`home://x` and `file://x` as a plain path, `~` expanded; every other URI as it is."""
    if uri.startswith("home://"):
        return str(home / uri.removeprefix("home://"))
    if uri.startswith("file://"):
        return uri.removeprefix("file://")
    return uri if "://" in uri else str(Path(uri).expanduser())


def run_folder(work: Path, fingerprint: str) -> Path:
    """Where a training run keeps its checkpoints, log and lock until its artifact is published."""
    return work / "runs" / fingerprint


def vllm_adapter_folder(work: Path, digest: str) -> Path:
    """Where a vLLM replica of this machine reads an adapter from. vLLM dies when one that it may load again is gone."""
    return work / "vllm" / digest


def carried_folder(fingerprint: str) -> str:
    """Below the store's root: what a run on other machines needs to go on, and what it says. Gone when its artifact is there."""
    return f".runs/{fingerprint}"


def sweep_folder(home: Path, name: str, digest: str) -> Path:
    """Where the results of a sweep are: for people, beside the store."""
    return home / "sweeps" / f"{name}-{digest[:8]}"


def lineage_path(home: Path, label: str) -> Path:
    """Where the lineage page of a version `tenant/name@N` is: for people, beside the store."""
    return home / "lineage" / f"{label.replace('/', '.')}.html"


def fleet_report_path(home: Path) -> Path:
    """What the last pass over the vLLM fleet found and did: for people and for the next pass."""
    return home / "fleet" / "report.json"


def adapter_folders(cache: Path) -> dict[str, Path]:
    """Digest -> folder of the adapters that a vLLM replica's resolver keeps on its disk; drafts and everything else are left out."""
    found = cache.iterdir() if cache.is_dir() else iter(())
    return {path.name: path for path in sorted(found) if len(path.name) == 64 and path.is_dir()}
