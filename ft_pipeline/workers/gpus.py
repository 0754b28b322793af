"""The GPUs that a placement can name, and the product labels that NVIDIA's device plugin puts on their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PRODUCTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "a100-40gb": ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
        "a100-80gb": ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"),
        "h100-80gb": ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe"),
        "h200-141gb": ("NVIDIA-H200",),
        "l40s-48gb": ("NVIDIA-L40S",),
    }
)
"""Name in a placement -> values of `nvidia.com/gpu.product`. SXM first: what large clouds rent."""
