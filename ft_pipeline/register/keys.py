"""Who signs: an Ed25519 key in a file, in an environment variable, or behind a command that asks an HSM or a KMS. Verifying needs public keys alone."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
import shlex
import subprocess
from pathlib import Path
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, SecretsHandler, Signature, Signer, SSlibKey

from ft_pipeline.errors import IntegrityError, StorageError, UserError
from ft_pipeline.settings import Settings, secret
from ft_pipeline.store.files import clear_errors, sync_folder, write_atomic

SIGNER_SECONDS = 60
"""How long a command may take for one signature."""


def signing_key(settings: Settings) -> Signer:
    """The key that FT_SIGNER names; its public half is written beside FT_SIGNING_KEY, where it is trusted.

    Raises UserError for what is no Ed25519 key, StorageError for a command that fails.
    """
    kind, _, where = settings.signer.partition(":")
    if kind == "env":
        key: Signer = _parsed(secret(where, why="FT_SIGNER names it as the signing key.").encode(), where)
    elif kind == "exec":
        key = CommandSigner(where)
    else:
        key = _of_file(settings.signing_key)
    _write_public(settings.signing_key.with_suffix(".pub"), public_pem(key.public_key))
    return key


def trusted_keys(settings: Settings) -> list[SSlibKey]:
    """The public keys beside the signing key (`*.pub`, PEM): to rotate the key, keep the old public key under another name."""
    keys = []
    for public in sorted(settings.signing_key.parent.glob("*.pub")):
        try:
            keys.append(SSlibKey.from_crypto(load_pem_public_key(public.read_bytes())))
        except ValueError as error:
            raise _not_a_key(str(public), str(error)) from None
    return keys


def public_pem(key: Key) -> bytes:
    """A public key as PEM."""
    raw = bytes.fromhex(str(key.keyval["public"]))
    return Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class CommandSigner(Signer):
    """Signs by a command: `COMMAND public` prints the public key (PEM), `COMMAND sign` reads bytes and prints 64 bytes in base64.

    Plain Ed25519 over the bytes, not over a digest of them: what is signed verifies with verify.py and nothing else. Each
    signature is verified before it is used, so that a command with another key is found when it signs and not when it matters.
    """

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        if not self._command:
            raise UserError("FT_SIGNER is `exec:` without a command", cure="FT_SIGNER=exec:/path/to/signer")
        printed = self._run("public", b"")
        try:
            public = load_pem_public_key(printed)
        except ValueError as error:
            raise _not_a_key(f"what `{command} public` prints", str(error)) from None
        if not isinstance(public, Ed25519PublicKey):
            raise _not_a_key(f"what `{command} public` prints", f"it is a {type(public).__name__}")
        self._public = SSlibKey.from_crypto(public)

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,
        secrets_handler: SecretsHandler | None = None,  # noqa: ARG003 - theirs
    ) -> CommandSigner:
        """Of `exec:COMMAND`, which must have this public key."""
        found = cls(priv_key_uri.partition(":")[2])
        if found.public_key != public_key:
            raise ValueError(f"{priv_key_uri} has another public key")
        return found

    @property
    def public_key(self) -> SSlibKey:
        """Of the command."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """The command's signature, verified. Raises StorageError, IntegrityError."""
        printed = self._run("sign", payload)
        try:
            signature = Signature(self._public.keyid, base64.b64decode(printed.strip(), validate=True).hex())
            self._public.verify_signature(signature, payload)
        except (binascii.Error, ValueError, UnverifiedSignatureError) as error:
            raise IntegrityError(
                f"`{shlex.join(self._command)} sign` gave no signature of its own key: {error}",
                why="It must sign the bytes that it reads, with plain Ed25519, and print the 64 bytes in base64.",
                cure="mend the command; nothing was written",
            ) from None
        return signature

    def _run(self, word: str, sent: bytes) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, word], input=sent, capture_output=True, timeout=SIGNER_SECONDS, check=True
            )
        except subprocess.CalledProcessError as error:
            self._fail(word, f"exit code {error.returncode}: {error.stderr.decode(errors='replace').strip()[-400:]}")
        except (OSError, subprocess.TimeoutExpired) as error:
            self._fail(word, str(error))
        return done.stdout

    def _fail(self, word: str, said: str) -> NoReturn:
        raise StorageError(
            f"the signer `{shlex.join(self._command)} {word}` failed: {said}",
            why="FT_SIGNER names it; without a signature nothing is registered, promoted or deployed.",
            cure="run the command by hand; FT_SIGNER=file signs with a key on this machine",
        )


def _of_file(path: Path) -> CryptoSigner:
    """The key at a path, made there on first use with mode 0600."""
    if not path.exists():
        _make_key(path)
    with clear_errors(f"reading the signing key {path}"):
        content = path.read_bytes()
    return _parsed(content, str(path))


def _parsed(pem: bytes, name: str) -> CryptoSigner:
    """A private key in PEM (PKCS#8)."""
    try:
        private = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise _not_a_key(name, str(error)) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise _not_a_key(name, f"it holds a {type(private).__name__}")
    return CryptoSigner(private)


def _make_key(path: Path) -> None:
    """Puts a new key where none is; when two processes do, one wins and both use its key."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with clear_errors(f"making the signing key {path}"):
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(CryptoSigner.generate_ed25519().private_bytes)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _write_public(path: Path, pem: bytes) -> None:
    if not path.exists() or path.read_bytes() != pem:
        with clear_errors(f"writing the public key {path}"):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(path, pem)


def _not_a_key(name: str, reason: str) -> UserError:
    return UserError(
        f"{name} is not an Ed25519 key in PEM: {reason}",
        why="Every registered model is signed with it, and verified before it is served.",
        cure="restore it, or point FT_SIGNING_KEY at another path: a key is made there on first use",
    )
