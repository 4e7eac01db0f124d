"""Envelopes: what was signed is what is read, and nobody else's signature counts."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from opsd.daemon.types.signatures import (
    HEAD_TYPE,
    MANIFEST_TYPE,
    PublicKey,
    SignatureProblem,
    parse_public_key,
    ring,
    seal,
    unseal,
)


class Key:
    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(self.private.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


KEY, OTHER = Key(), Key()
TRUSTED = ring([KEY.public_key])
STATEMENT = {"adapter": {"name": "opsd-x"}, "n": 1.5}


def test_a_statement_comes_back() -> None:
    text = seal(MANIFEST_TYPE, STATEMENT, KEY)
    assert unseal(MANIFEST_TYPE, text, TRUSTED) == STATEMENT
    assert unseal(MANIFEST_TYPE, text, ring([OTHER.public_key, KEY.public_key])) == STATEMENT


def test_the_envelope_is_dsse() -> None:
    """Checked as the specification says, without the code under test."""
    envelope = json.loads(seal(MANIFEST_TYPE, STATEMENT, KEY))
    payload = base64.b64decode(envelope["payload"])
    (signature,) = envelope["signatures"]
    kind = envelope["payloadType"].encode()
    signed = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode()])
    KEY.private.public_key().verify(base64.b64decode(signature["sig"]), signed + b" " + payload)


def test_every_byte_of_the_payload_and_the_signature_counts() -> None:
    envelope = json.loads(seal(MANIFEST_TYPE, STATEMENT, KEY))
    payload = base64.b64decode(envelope["payload"])
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    for place in range(len(payload)):
        wrong = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        broken = {**envelope, "payload": base64.b64encode(wrong).decode()}
        with pytest.raises(SignatureProblem, match="does not hold"):
            unseal(MANIFEST_TYPE, json.dumps(broken), TRUSTED)
    for place in range(len(signature)):
        wrong = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        signatures = [{"keyid": KEY.public_key.id, "sig": base64.b64encode(wrong).decode()}]
        with pytest.raises(SignatureProblem, match="does not hold"):
            unseal(MANIFEST_TYPE, json.dumps({**envelope, "signatures": signatures}), TRUSTED)


def test_a_foreign_key_does_not_count() -> None:
    with pytest.raises(SignatureProblem, match="not by a trusted key"):
        unseal(MANIFEST_TYPE, seal(MANIFEST_TYPE, STATEMENT, OTHER), TRUSTED)
    # Under the trusted key's name either.
    envelope = json.loads(seal(MANIFEST_TYPE, STATEMENT, OTHER))
    envelope["signatures"][0]["keyid"] = KEY.public_key.id
    with pytest.raises(SignatureProblem, match="does not hold"):
        unseal(MANIFEST_TYPE, json.dumps(envelope), TRUSTED)
    envelope["signatures"] = []
    with pytest.raises(SignatureProblem, match="signed by nobody"):
        unseal(MANIFEST_TYPE, json.dumps(envelope), TRUSTED)


def test_a_statement_of_another_kind_is_refused() -> None:
    with pytest.raises(SignatureProblem, match="of type"):
        unseal(MANIFEST_TYPE, seal(HEAD_TYPE, STATEMENT, KEY), TRUSTED)
    envelope = json.loads(seal(HEAD_TYPE, STATEMENT, KEY)) | {"payloadType": MANIFEST_TYPE}
    with pytest.raises(SignatureProblem, match="does not hold"):
        unseal(MANIFEST_TYPE, json.dumps(envelope), TRUSTED)


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", "null", '{"payloadType": 1}', "[" * 100_000])
def test_what_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(SignatureProblem, match="not a signed envelope"):
        unseal(MANIFEST_TYPE, text, TRUSTED)


def test_keys_are_read_in_both_forms() -> None:
    key = KEY.public_key
    assert parse_public_key(key.text) == parse_public_key(key.pem) == key
    assert key.text.startswith("ed25519:")
    assert ring([key, key]).keys == (key,)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:!!", "ed25519:AAAA", "ssh-ed25519 AAAA"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(SignatureProblem):
        parse_public_key(text)


def test_a_key_of_another_kind_is_refused() -> None:
    other = X25519PrivateKey.generate().public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(SignatureProblem, match="expected an Ed25519"):
        parse_public_key(pem)
