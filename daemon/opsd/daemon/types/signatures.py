"""Signed statements: Ed25519 (RFC 8032) over DSSE envelopes.

An envelope is one JSON object with the statement's exact bytes and who signed them
(https://github.com/secure-systems-lab/dsse). Verifying needs a public key and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from opsd.daemon.types.audit import Head, canonical_json, parse_head

PREFIX: Final = "ed25519:"
MANIFEST_TYPE: Final = "application/vnd.opsd.promotion+json"
HEAD_TYPE: Final = "application/vnd.opsd.audit-head+json"
_RAW_BYTES: Final = 32


class SignatureProblem(ValueError):
    """An envelope or a key that is malformed, or a signature that does not hold."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key by its 32 raw bytes."""

    raw: bytes

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the raw key."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def text(self) -> str:
        """``ed25519:`` and the raw key in base64: what ``signing.trusted_keys`` takes."""
        return PREFIX + base64.b64encode(self.raw).decode()

    @property
    def pem(self) -> str:
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raises SignatureProblem."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except (InvalidSignature, ValueError) as error:
            raise SignatureProblem(
                f"the signature of key {self.id} does not hold: what it signed was changed"
            ) from error


def parse_public_key(text: str) -> PublicKey:
    """From ``ed25519:BASE64`` or PEM; raises SignatureProblem."""
    text = text.strip()
    if text.startswith(PREFIX):
        try:
            raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error as error:
            raise SignatureProblem(f"{text[:80]!r}: not base64 after {PREFIX!r}") from error
        if len(raw) != _RAW_BYTES:
            raise SignatureProblem(f"{text[:80]!r}: {len(raw)} bytes, an Ed25519 key has 32")
        return PublicKey(raw)
    try:
        key = load_pem_public_key(text.encode())
    except ValueError as error:
        raise SignatureProblem(
            "not a public key: expected PEM, as `opsd keys show --pem` prints it, or ed25519: and "
            "base64, as `opsd keys show` does"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureProblem(f"a {type(key).__name__}, expected an Ed25519 public key")
    return PublicKey(key.public_bytes_raw())


class Signer(Protocol):
    """Who holds a private key."""

    @property
    def public_key(self) -> PublicKey: ...

    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The public keys whose signatures count."""

    keys: tuple[PublicKey, ...]

    def get(self, key_id: str) -> PublicKey | None:
        return next((key for key in self.keys if key.id == key_id), None)


def ring(keys: Iterable[PublicKey]) -> KeyRing:
    return KeyRing(tuple(dict.fromkeys(keys)))


def seal(payload_type: str, statement: dict[str, Any], signer: Signer) -> str:
    """The envelope of a statement, as one line of JSON."""
    payload = canonical_json(statement).encode()
    signature = signer.sign(_signed_bytes(payload_type, payload))
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [
                {
                    "keyid": signer.public_key.id,
                    "sig": base64.b64encode(signature).decode(),
                }
            ],
        }
    )


def unseal(payload_type: str, text: str | bytes, trusted: KeyRing) -> dict[str, Any]:
    """The statement of an envelope that a trusted key signed; raises SignatureProblem.

    Several signatures may be there: one by a trusted key is needed, and every one by a trusted key
    must hold.
    """
    payload, signatures = _parse(payload_type, text)
    known = [(key, sig) for name, sig in signatures if (key := trusted.get(name)) is not None]
    if not known:
        names = ", ".join(name[:40] for name, _ in signatures) or "nobody"
        ours = ", ".join(key.id for key in trusted.keys) or "none"
        raise SignatureProblem(f"signed by {names}, not by a trusted key ({ours})")
    for key, signature in known:
        key.verify(signature, _signed_bytes(payload_type, payload))
    statement = json.loads(payload)
    if not isinstance(statement, dict):
        raise SignatureProblem("the signed statement is no JSON object")
    return statement


def head_of(envelope: str | bytes, trusted: KeyRing | None) -> Head:
    """The head of the audit log that a trusted key signed (None: whoever did).

    Raises SignatureProblem.
    """
    if trusted is None:
        statement = peek(HEAD_TYPE, envelope)
    else:
        statement = unseal(HEAD_TYPE, envelope, trusted)
    try:
        return parse_head(f"{statement['id']}:{statement['sha256']}")
    except (LookupError, ValueError) as error:
        raise SignatureProblem(f"not a head: {error}") from error


def peek(payload_type: str, text: str | bytes) -> dict[str, Any]:
    """The statement of an envelope, whoever signed it; raises SignatureProblem."""
    payload, _ = _parse(payload_type, text)
    try:
        statement = json.loads(payload)
    except ValueError as error:
        raise SignatureProblem(f"the statement is no JSON: {error}") from error
    if not isinstance(statement, dict):
        raise SignatureProblem("the statement is no JSON object")
    return statement


def _parse(payload_type: str, text: str | bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    try:
        envelope = json.loads(text)
        found = envelope["payloadType"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [
            (str(item["keyid"]), base64.b64decode(item["sig"], validate=True))
            for item in envelope["signatures"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SignatureProblem(f"not a signed envelope (DSSE): {error!r}"[:300]) from error
    if found != payload_type:
        raise SignatureProblem(f"the statement is of type {str(found)[:80]!r}, not {payload_type}")
    return payload, signatures


def _signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, version 1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
