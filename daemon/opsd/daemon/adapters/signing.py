"""The daemon's private key: made once, read from then on, never shown."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from opsd.daemon.config.signing import SigningConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.types.signatures import KeyRing, PublicKey, parse_public_key, ring

log = logging.getLogger(__name__)

_TOO_OPEN = stat.S_IWGRP | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key pair."""

    private: Ed25519PrivateKey

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(self.private.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


def key_path(config: SigningConfig, state_dir: Path) -> Path:
    return Path(config.key_file) if config.key_file else state_dir / "keys" / "ed25519.pem"


def key_ring(key: SigningKey, config: SigningConfig) -> KeyRing:
    """The daemon's own key and those it was told to trust."""
    return ring([key.public_key, *(parse_public_key(text) for text in config.trusted_keys)])


def load_or_create_key(path: Path) -> SigningKey:
    """The key in the file, which is made (mode 0600) when it is not there.

    Raises ConfigError for a file that others may read, or that holds no such key.
    """
    try:
        if not path.exists():
            return _create(path)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_mode & _TOO_OPEN:
            raise ConfigError(
                f"signing.key_file: {path} has mode {stat.S_IMODE(status.st_mode):04o}: whoever "
                f"reads it can sign as this daemon; chmod 600 {path}"
            )
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"signing.key_file: {path}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"signing.key_file: {path} holds no unencrypted private key in PEM: {error}; remove "
            "the file and a new key is made"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"signing.key_file: {path} holds a {type(key).__name__}, not Ed25519")
    return SigningKey(key)


def _create(path: Path) -> SigningKey:
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        # Not rename: of two that start at once, one key wins and both use it.
        try:
            os.link(temporary, path)
        except FileExistsError:
            return load_or_create_key(path)
    finally:
        temporary.unlink(missing_ok=True)
    made = SigningKey(key)
    log.info("signing key made file=%s key=%s", path, made.public_key.id)
    return made
