"""Answers vLLM's question for an adapter that it does not hold: the verified folder of the version, or nothing (404) with the reason in the log."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from ft_pipeline import settings as settings_module
from ft_pipeline.errors import FtError, StorageError
from ft_pipeline.serve.vllm_plugin.admission import Admission
from ft_pipeline.store.artifacts import open_store
from ft_pipeline.store.catalog import open_catalog

logger = logging.getLogger(f"vllm.{__name__}")
"""Below vLLM's own logger, so that it is shown as vLLM's lines are."""


class CatalogResolver(LoRAResolver):
    """A replica asks it at the first request for a name, also after a restart: no list of adapters has to be kept anywhere."""

    def __init__(self) -> None:
        """Opens nothing: vLLM makes one in every process, and only the API server asks."""
        self._admission: Admission | None = None
        self._opening = threading.Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:  # noqa: ARG002 - vLLM's signature
        """The adapter, None when it is refused. A store or catalog that does not answer is no refusal: StorageError, so 500."""
        try:
            folder = await asyncio.to_thread(self._admit, lora_name)
        except StorageError:
            raise
        except FtError as error:
            logger.warning("refused the adapter %r: %s", lora_name[:200], str(error).replace("\n", " "))
            return None
        # vLLM numbers it itself
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))

    def _admit(self, name: str) -> Path:
        start = time.perf_counter()
        folder = self._opened().admit(name)
        logger.info("verified %s in %.0f ms: %s", name, 1e3 * (time.perf_counter() - start), folder.name[:12])
        return folder

    def _opened(self) -> Admission:
        with self._opening:
            if self._admission is None:
                settings = settings_module.load()
                self._admission = Admission(
                    catalog=open_catalog(settings),
                    store=open_store(settings),
                    settings=settings,
                    base_digest=str(settings.vllm_base),
                )
            return self._admission
