"""The price book: what GPUs hold, do and cost, and what a plan assumes. A YAML file that a person may edit."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ft_pipeline.errors import NotFoundError, UserError, did_you_mean
from ft_pipeline.planning.memory import GIB
from ft_pipeline.recipe import STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One kind of GPU."""

    __pydantic_config__ = STRICT
    memory_mib: int
    tflops: float
    """Dense BF16 peak."""
    bandwidth_gbs: float
    on_demand: float
    """Per GPU and hour."""
    spot: float
    interruptions_per_hour: float
    """Of a spot node."""
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumed:
    """What nobody knows before the run."""

    __pydantic_config__ = STRICT
    mfu: float
    mfu_nf4: float
    selective_slowdown: float
    sharding_efficiency: Mapping[str, float]
    gpus_per_node: int
    node_efficiency: float
    overhead_gib: float
    fragmentation: float
    start_minutes: float
    restart_minutes: float
    generate_batch: int
    generate_efficiency: float
    benchmark_items: int
    benchmark_tokens: int
    tokens_per_row: int
    bytes_per_token: float
    fill: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Charges:
    """What tenants are charged beside GPU hours. A book without them charges nothing for it."""

    __pydantic_config__ = STRICT
    machine_hour: float = 0.0
    """A process without a GPU, and whatever a job does before its GPUs are there."""
    prompt_million: float = 0.0
    """A million tokens read by a served model."""
    completion_million: float = 0.0
    storage_gib_month: float = 0.0
    """Of uploaded files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """A whole price book."""

    __pydantic_config__ = STRICT
    dated: datetime.date
    currency: str
    gpus: Mapping[str, Gpu]
    assumed: Assumed
    charges: Charges = field(default_factory=Charges)

    def gpu(self, name: str) -> Gpu:
        """A GPU of the book. Raises NotFoundError with the nearest name."""
        if name not in self.gpus:
            raise NotFoundError(
                f"no GPU {name!r} in the price book: {did_you_mean(name, self.gpus)}",
                cure="add it to the file in FT_PRICES",
            )
        return self.gpus[name]

    def usable(self, gpu: Gpu) -> float:
        """Bytes of a GPU that training can have."""
        return gpu.memory_mib * 2**20 * (1 - self.assumed.fragmentation) - self.assumed.overhead_gib * GIB


def read_prices(path: Path) -> Prices:
    """The book in a file. Raises NotFoundError, UserError with the field."""
    from pydantic import TypeAdapter, ValidationError

    if not path.is_file():
        raise NotFoundError(
            f"no price book at {path}", cure="unset FT_PRICES for the packaged one, or copy that one there"
        )
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(Prices).validate_json(json.dumps(body, default=str))
    except (yaml.YAMLError, ValidationError, TypeError, ValueError) as error:
        why = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()) if isinstance(error, ValidationError) else str(error)  # fmt: skip
        raise UserError(
            f"{path} is no price book: {why}", cure="compare it with the packaged planning/prices.yaml"
        ) from None
