"""The text of API keys: made once, shown once, kept as an HMAC under a secret (the pepper) that is not in the database."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
from functools import lru_cache
from pathlib import Path

from ft_pipeline.errors import UserError
from ft_pipeline.settings import Settings
from ft_pipeline.store.files import clear_errors, sync_folder

SHAPE = re.compile(r"sk-ft-(?P<prefix>[0-9a-f]{12})-[A-Za-z0-9_-]{43}", re.ASCII)
PEPPER_BYTES = 32


def new_key() -> tuple[str, str]:
    """A public prefix and a whole key: 256 random bits behind the prefix."""
    prefix = secrets.token_hex(6)
    return prefix, f"sk-ft-{prefix}-{secrets.token_urlsafe(32)}"


def prefix_of(key: str) -> str | None:
    """The public part of a key, None for what is none."""
    found = SHAPE.fullmatch(key)
    return found["prefix"] if found else None


def digest_of(key: str, pepper: bytes) -> str:
    """What is stored of a key. One HMAC suffices where a password would need a slow hash: 256 random bits are not guessed."""
    return hmac.digest(pepper, key.encode(), "sha256").hex()


def open_pepper(settings: Settings) -> bytes:
    """FT_API_PEPPER, or what is in FT_HOME/keys/api-pepper, made on first use. Raises UserError, StorageError."""
    if settings.api_pepper is not None:
        return _long_enough(settings.api_pepper.encode(), "FT_API_PEPPER")
    return _of_file(settings.home / "keys" / "api-pepper")


@lru_cache(maxsize=8)
def _of_file(path: Path) -> bytes:
    with clear_errors(f"reading the pepper of the API keys, {path}"):
        if not path.exists():
            _make(path)
        return _long_enough(path.read_bytes(), str(path))


def _make(path: Path) -> None:
    """Puts a secret where none is; when two processes do, one wins and both use its secret."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_hex(PEPPER_BYTES).encode())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _long_enough(pepper: bytes, place: str) -> bytes:
    if len(pepper) < PEPPER_BYTES:
        raise UserError(
            f"{place} holds {len(pepper)} bytes",
            why="Who can guess it and read the database can test keys.",
            cure=f"at least {PEPPER_BYTES} random bytes: `openssl rand -hex 32`; every key must then be made anew",
        )
    return pepper
