"""The private key: made once, private, and refused when it is not."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from opsd.daemon.adapters.signing import key_path, key_ring, load_or_create_key
from opsd.daemon.config.signing import SigningConfig
from opsd.daemon.errors import ConfigError


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = key_path(SigningConfig(), tmp_path)
    key = load_or_create_key(path)
    assert path == tmp_path / "keys" / "ed25519.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["ed25519.pem"]
    again = load_or_create_key(path)
    assert again.public_key == key.public_key
    key.public_key.verify(again.sign(b"x"), b"x")


def test_of_two_that_start_at_once_both_use_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: load_or_create_key(tmp_path / "k.pem"), range(8)))
    assert len({key.public_key for key in keys}) == 1


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o777])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k.pem"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_or_create_key(path)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no unencrypted private key"):
        load_or_create_key(path)
    other = X25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="not Ed25519"):
        load_or_create_key(path)
    with pytest.raises(ConfigError, match=r"signing\.key_file"):
        load_or_create_key(tmp_path)


def test_keys_of_before_are_trusted(tmp_path: Path) -> None:
    old = load_or_create_key(tmp_path / "old.pem")
    new = load_or_create_key(tmp_path / "new.pem")
    config = SigningConfig(trusted_keys=(old.public_key.text,))
    assert key_ring(new, config).keys == (new.public_key, old.public_key)
    assert key_path(SigningConfig(key_file="/etc/k.pem"), tmp_path) == Path("/etc/k.pem")
