"""What a version can be exported as, how each format is made, and what an exported model is in the store. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ft_pipeline.errors import UserError, did_you_mean
from ft_pipeline.store.fingerprint import code_digest
from ft_pipeline.store.manifest import Ref, Spec

KIND = "exported_model"
MERGED = "merged"
UNQUANTISED = "unquantised"
"""Role of the parent that a quantised export was made from: a merged export, or a full fine-tune."""
LIBRARY = "llmcompressor==0.14.0.1"
"""What quantises, in an environment of its own: it needs compressed-tensors 0.19 and vLLM 0.32 needs 0.17."""
Algorithm = Literal["none", "rtn", "gptq"]
HERE = Path(__file__).parent
CODE = {True: ("main.py", "merge.py"), False: ("main.py", "quantise.py")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format of weights. `bits` per weight of a linear layer, scales not counted."""

    name: str
    scheme: str
    """llmcompressor's name of it; empty: not quantised."""
    bits: int
    group: int
    """Weights that share a scale along the inputs of a layer; 0: a whole row."""
    algorithm: Algorithm
    """The habit: round to nearest, or GPTQ on windows of the training shards."""


def _format(name: str, scheme: str, bits: int, *, group: int = 0, algorithm: Algorithm = "rtn") -> Format:
    return Format(name=name, scheme=scheme, bits=bits, group=group, algorithm=algorithm)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        made.name: made
        for made in (
            _format(MERGED, "", 16, algorithm="none"),
            _format("w8a8", "W8A8", 8, algorithm="gptq"),
            _format("w4a16", "W4A16", 4, group=128, algorithm="gptq"),
            _format("fp8", "FP8_DYNAMIC", 8),
            _format("mxfp8", "MXFP8", 8, group=32),
            _format("mxfp4", "MXFP4A16", 4, group=32),
        )
    }
)
"""w8a8: int8 weights and, token by token, activations. w4a16: int4 weights. fp8: E4M3 both. mxfp8, mxfp4: blocks of 32 under a
power of two (OCP microscaling); mxfp4 leaves activations at 16 bits."""
WITH_GROUPS = ("W4A16",)
"""Schemes whose group is a choice; that of microscaling is the format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """How a model is to be exported: every field changes the bytes."""

    format: str
    scheme: str = ""
    algorithm: Algorithm = "none"
    group: int = 0
    calibration_windows: int = 0
    """Windows of the training shards, spread evenly; never rows that a gate asks."""
    dtype: str = ""
    """Of what is not quantised; empty: as the base is stored."""
    library: str = ""

    @property
    def is_merged(self) -> bool:
        """True when nothing is quantised."""
        return not self.scheme


def export_of(
    name: str, *, algorithm: str = "", group: int | None = None, calibration_windows: int | None = None
) -> Export:
    """The export of a format's name, with what a person chose instead of the habits. Raises UserError."""
    if name not in FORMATS:
        raise UserError(f"no export format {name!r}: {did_you_mean(name, FORMATS)}")
    known = FORMATS[name]
    if not known.scheme:
        _refuse_choices(name, algorithm=algorithm, group=group, calibration_windows=calibration_windows)
        return Export(format=name)
    chosen = algorithm or known.algorithm
    if chosen not in ("rtn", "gptq"):
        raise UserError(f"no algorithm {chosen!r}: {did_you_mean(chosen, ('rtn', 'gptq'))}")
    if group is not None and (known.scheme not in WITH_GROUPS or group < 1):
        raise UserError(f"{name} has no group of {group}", cure=f"only {', '.join(WITH_GROUPS).lower()} takes --group")
    if calibration_windows is not None and (chosen == "rtn" or calibration_windows < 1):
        raise UserError(
            f"{calibration_windows} calibration windows with algorithm {chosen}",
            why="Rounding to nearest looks at no data.",
            cure="--algorithm gptq, or leave --calibration-windows out",
        )
    windows = 0 if chosen == "rtn" else calibration_windows or 256
    return Export(
        format=name, scheme=known.scheme, algorithm=chosen, group=group or known.group, calibration_windows=windows,
        dtype="bfloat16", library=LIBRARY,
    )  # fmt: skip


def _refuse_choices(name: str, **chosen: Any) -> None:
    if given := [key for key, value in chosen.items() if value]:
        raise UserError(
            f"{given[0].replace('_', ' ')} {chosen[given[0]]} with the format {name}",
            why="Merging rounds nothing but to the precision of the base.",
            cure="leave it out, or choose another --format",
        )


def require_fit(export: Export, config: Mapping[str, Any]) -> None:
    """Raises UserError for a model (its config.json) whose layers are not a multiple of the group: told before anything is started.

    Layers of other widths are looked at in the child (quantise.py).
    """
    for name in ("hidden_size", "intermediate_size"):
        width = config.get(name) or 0
        if export.group and width % export.group:
            divisor = next(size for size in (64, 32, 16, 8, 4, 2, 1) if width % size == 0)
            raise UserError(
                f"{export.format} takes groups of {export.group}, and the model's {name} is {width}",
                why="Every group of weights has a scale of its own.",
                cure=f"--group {divisor}" if export.scheme in WITH_GROUPS else "choose another --format",
            )


def exported_spec(export: Export, parents: Mapping[str, Ref]) -> Spec:
    """What an exported model is made of. `parents`: adapter and base; or unquantised, base and, where it calibrates, shards."""
    config = {name: value for name, value in asdict(export).items() if value}
    code = code_digest(*(HERE / name for name in CODE[export.is_merged]))
    return Spec(kind=KIND, config=config, parents=dict(parents), code=code)
