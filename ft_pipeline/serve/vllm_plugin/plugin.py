"""The entry point `vllm.general_plugins`: vLLM calls `register` in each of its processes (API server, engine, workers).

vLLM logs a plugin that cannot be imported and starts without it, so this file imports nothing that may be missing. What `register`
raises, on the other hand, ends the start.
"""

from __future__ import annotations

from ft_pipeline import settings

NAME = "ft_pipeline"
"""Of the entry point and in VLLM_PLUGINS."""


def register() -> None:
    """Mends the CPU kernels, and resolves adapters where this process belongs to a replica (FT_VLLM_BASE). Raises UserError."""
    from vllm.platforms import current_platform

    from ft_pipeline.serve.vllm_plugin.cpu_patches import mend

    if current_platform.is_cpu():
        mend()
    if settings.load().vllm_base:
        from vllm.lora.resolver import LoRAResolverRegistry

        from ft_pipeline.serve.vllm_plugin.resolver import CatalogResolver

        LoRAResolverRegistry.register_resolver(NAME, CatalogResolver())
