"""The exceptions of the house: what happened with the value, why it matters, what to do.

FtError
    UserError           a person can cure it; the CLI shows it without a traceback
        RecipeError     a recipe or placement that cannot be used
        DataError       rows or files that cannot be trained on
        NotFoundError   a name that names nothing
        GateRefused     promotion is not backed by evidence (CLI exit 3)
        StorageError    a store, disk or database that does not answer
    IntegrityError      stored bytes are not what their manifest says (CLI exit 4)
    DriftError          the same inputs gave other bytes, or a pinned thing moved
    TrainingFailed      a child process failed for good (exit 42)
    Interrupted         a child process was stopped and can be resumed (exit 75)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FtError(Exception):
    """Something the product refuses or cannot do. `str()` gives the three sentences; `exit_code` is the CLI's."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", cure: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.cure = what, why, cure

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, f"Cure: {self.cure}" if self.cure else "") if part)


class UserError(FtError):
    """A mistake that a person can cure."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe or placement that cannot be used."""


class DataError(UserError):
    """Rows or files that cannot be trained on."""


class NotFoundError(UserError):
    """A name that names nothing."""


class StorageError(UserError):
    """A store, disk or database that does not answer."""

    exit_code = 5


class GateRefused(UserError):
    """A promotion that no evidence backs."""

    exit_code = 3


class IntegrityError(FtError):
    """Stored bytes are not what their manifest says."""

    exit_code = 4


class DriftError(FtError):
    """The same inputs gave other bytes, or a pinned thing moved."""

    exit_code = 4


class TrainingFailed(FtError):
    """A child process failed for good: never retried."""

    exit_code = 42


class Interrupted(FtError):
    """A child process was stopped after a checkpoint: the same command resumes it."""

    exit_code = 75


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest valid name, or the list of valid names when none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"valid names: {', '.join(names)}"
