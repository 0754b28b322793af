"""What the platform offers to tenants: the base models, suites and policies that they may name. A file of the operator, FT_OFFER."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ft_pipeline.errors import UserError
from ft_pipeline.recipe import STRICT, document_of

Size = Literal["tiny", "small", "usual"]
Allowed = Literal["hub", "code", "judges"]
"""hub: data sets of the Hub, with the platform's HF_TOKEN. code: `package.module:function` as reward, metric or judge, which runs on
the workers. judges: endpoints, with the environment variables that hold their keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A base model that a request may name."""

    __pydantic_config__ = STRICT
    uri: str
    revision: str | None = None
    """As in a recipe."""
    size: Size = "usual"
    """Chooses the preset: usual from 1 B parameters, small below, tiny for the demo's 0.9 M."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Most:
    """The largest placement of one job."""

    __pydantic_config__ = STRICT
    nodes: int = 1
    processes: int = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """The whole file."""

    __pydantic_config__ = STRICT
    bases: Mapping[str, Base]
    policies: tuple[str, ...]
    """Gate policies; the first is the default. One that promotes by itself takes no second person."""
    suites: Mapping[str, str] = field(default_factory=dict)
    """Name -> URI of a file that a gate, a word list or a contamination check may read."""
    benchmark: str | None = None
    """Suite of a job that names no benchmark."""
    safety: str | None = None
    """Suite of the safety gate."""
    allow: tuple[Allowed, ...] = ("hub",)
    most: Most = field(default_factory=Most)

    def __post_init__(self) -> None:
        for name in (self.benchmark, self.safety):
            if name is not None and name not in self.suites:
                raise ValueError(f"{name!r} is none of the suites: {', '.join(self.suites) or 'there are none'}")
        if not self.policies:
            raise ValueError("policies is empty: a job could have no gate")


def read_offer(path: Path) -> Offer:
    """The offer in a YAML file. Raises UserError with the place in it."""
    import yaml
    from pydantic import TypeAdapter, ValidationError

    try:
        document = document_of(path.read_text(encoding="utf-8"))
        return TypeAdapter(Offer).validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"FT_OFFER: {path}: {place}: {first['msg']}", cure=_COPY) from None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"FT_OFFER names {path}: {error}", cure=_COPY) from None


_COPY = "copy ft_pipeline/jobs/offer.yaml and change it"
