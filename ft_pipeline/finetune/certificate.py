"""The packing certificate: that on one model and attention a packed row has the loss that it has alone. Facts only, the same on every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Fault = Literal["", "packed_rows_differ", "control_is_blind"]
MEANING = {
    "": "packed rows have the loss that they have alone, and a planted leak is seen",
    "packed_rows_differ": "packed rows see each other: their loss is not the one they have alone",
    "control_is_blind": "joining the rows of a window does not change their loss, so the check proves nothing",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What was compared and found; `measured` are the differences in nats, which differ between machines and are no fact."""

    model: str
    """Class of the model."""
    attention: str
    """Its attention implementation: ft_segments, sdpa, eager, flash_attention_2, ..."""
    road: Literal["flat", "padded"]
    """flat: [1, T] without padding; padded: a window a line, boundaries by position_ids."""
    dtype: str
    modes: tuple[str, ...] = ()
    """train and eval: some models take another road in each."""
    windows: int = 0
    rows: int = 0
    tolerance: float = 0.0
    """Largest difference of a row's mean loss in nats."""
    controls: Mapping[str, bool] = field(default_factory=dict)
    """Planted leak -> it changed the loss in every mode: one_row (no boundary), all_ones_mask (attention_mask of ones)."""
    fault: Fault = ""
    measured: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def checked(self) -> bool:
        """False when no window holds two rows with trained tokens: then nothing can leak."""
        return self.windows > 0

    @property
    def passed(self) -> bool:
        """True when the model may train on packed windows."""
        return not self.fault

    def facts(self) -> dict[str, Any]:
        """As JSON values, for completion.json and the check on the metadata page."""
        said = {name: value for name, value in asdict(self).items() if name != "measured"}
        leak_seen = bool(self.controls) and all(self.controls.values())
        return {
            **said,
            "modes": list(self.modes),
            "checked": self.checked,
            "passed": self.passed,
            "leak_seen": leak_seen,
        }


def told(facts: Mapping[str, Any]) -> str:
    """One sentence for a check result, from `facts()`."""
    if not facts.get("checked"):
        return "no window holds two rows with trained tokens: nothing can leak"
    scope = f"{facts['rows']} rows of {facts['windows']} windows, {facts['model']}, {facts['attention']}"
    return f"{MEANING[facts.get('fault', '')]} ({scope}, {' and '.join(facts['modes'])} mode)"
