"""Lets a version into a vLLM replica: stage, base, signature, chain and bytes are verified, then its files stand in a folder named by their digest.

Knows no vLLM: the resolver calls it in each replica, and whoever loads adapters beforehand may call it too.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.errors import GateRefused, IntegrityError, NotFoundError, UserError
from ft_pipeline.finetune.artifact import ADAPTER_CONFIG
from ft_pipeline.serve.deploy import verified
from ft_pipeline.serve.live import PERMITTED
from ft_pipeline.serve.servable import vllm_fault
from ft_pipeline.settings import Settings
from ft_pipeline.store.artifacts import Artifact, Store
from ft_pipeline.store.catalog import Catalog, ModelVersion
from ft_pipeline.store.damage import broken_artifact, damage
from ft_pipeline.store.files import beside, clear_errors, locked
from ft_pipeline.store.paths import vllm_adapter_folder

VERSION_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*@[1-9][0-9]{0,8}", re.ASCII)
"""`tenant/name@3`. Names that move, `tenant/name` and `tenant/name:production`, are the gateway's to resolve."""
READ_BY_VLLM = ("chat_template.jinja", "tokenizer.json")
"""vLLM takes these from the base for every adapter on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """The door of one replica."""

    catalog: Catalog
    store: Store
    settings: Settings
    base_digest: str
    """Of the base model that the replica holds."""

    def admit(self, name: str) -> Path:
        """The folder with the verified files of a version. Raises NotFoundError, GateRefused, IntegrityError, UserError with the reason."""
        version = self._permitted(name)
        registered = verified(version, catalog=self.catalog, store=self.store, settings=self.settings)
        adapter = self.store.fetch(registered.adapter)
        self._require_servable(version, adapter)
        return materialised(adapter, self.settings.work)

    def _permitted(self, name: str) -> ModelVersion:
        """The version, by its catalog row: it may answer, and here."""
        if not VERSION_NAME.fullmatch(name):
            raise NotFoundError(f"{name!r} does not name a version", cure="a replica knows tenant/name@3 only")
        version = self.catalog.model(name)
        if version.label != name:
            raise NotFoundError(f"{name!r} is not how {version.label} is written")
        if version.stage not in PERMITTED:
            raise GateRefused(f"{name} is in {version.stage}", why=f"Only {' and '.join(PERMITTED)} answer.")
        if version.artifact_type != "lora_adapter":
            raise UserError(f"{name} is a {version.artifact_type}", cure="it takes a replica of its own")
        if version.base_digest != self.base_digest:
            raise GateRefused(
                f"{name} stands on base {version.base_digest[:12]}, this replica holds {self.base_digest[:12]}",
                why="An adapter on another base gives fluent, wrong answers.",
            )
        return version

    def _require_servable(self, version: ModelVersion, adapter: Artifact) -> None:
        config = json.loads(adapter.file(ADAPTER_CONFIG).read_bytes())
        trained_on = adapter.manifest.parents["base"].digest
        if config.get("revision") != trained_on:
            raise IntegrityError(
                f"the config of {version.label} names base {str(config.get('revision'))[:12]}, its manifest {trained_on[:12]}"
            )
        if fault := vllm_fault(config, max_rank=self.settings.vllm_rank):
            raise UserError(f"vLLM cannot serve {version.label}: {fault}", cure="`ft-pipeline serve` can")
        base = self.store.recorded(self.catalog.ref(self.base_digest))
        for name in READ_BY_VLLM:
            ours, theirs = adapter.manifest.files.get(name), base.files.get(name)
            if ours and theirs and ours.sha256 != theirs.sha256:
                raise GateRefused(
                    f"{version.label} was trained with another {name} than the base's",
                    why="vLLM reads every prompt with the base's: the adapter would be asked in a form it never saw.",
                    cure="`ft-pipeline serve` uses the adapter's own",
                )


def materialised(adapter: Artifact, work: Path) -> Path:
    """The files of a fetched adapter in a folder named by its digest, hashed after they were copied; a damaged copy is replaced.

    vLLM caches by path and reads the files again after an eviction, so a path never gets other bytes.
    """
    place = vllm_adapter_folder(work, adapter.ref.digest)
    with clear_errors(f"writing {place}"), locked(place.parent / "lock"):
        if place.is_dir() and damage(place, adapter.manifest) is None:
            return place
        draft, before = beside(place), beside(place)
        try:
            _copy(adapter, draft)
            if place.exists():
                place.rename(before)
            draft.rename(place)
        finally:
            for leftover in (draft, before):
                shutil.rmtree(leftover, ignore_errors=True)
    return place


def _copy(adapter: Artifact, folder: Path) -> None:
    for name in adapter.manifest.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(adapter.file(name), target)
    if broken := damage(folder, adapter.manifest):
        raise broken_artifact(str(folder), broken)
