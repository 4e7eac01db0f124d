"""The daemon's signing key: the table ``signing`` of the configuration."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from opsd.daemon.config.section import PositiveInt, PositiveSeconds, Section

_TRUSTED_KEY = re.compile(r"ed25519:[A-Za-z0-9+/]{43}=")


def _is_public_key(text: str) -> str:
    if _TRUSTED_KEY.fullmatch(text) is None:
        raise ValueError(
            f"{text[:80]!r} is no public key: write ed25519: and 44 characters of base64, as "
            "`opsd keys show` prints it"
        )
    return text


TrustedKey = Annotated[str, AfterValidator(_is_public_key)]


class SigningConfig(Section):
    key_file: str = Field(
        default="",
        description="Private Ed25519 key in PEM, made at the first start; "
        "empty: keys/ed25519.pem in state_dir.",
    )
    trusted_keys: tuple[TrustedKey, ...] = Field(
        default=(),
        description="Further public keys whose signatures count, such as those used before, as "
        "`opsd keys show` prints them.",
    )
    head_every_entries: PositiveInt = Field(
        default=100, description="The audit log's head is signed after so many new entries."
    )
    head_every_s: PositiveSeconds = Field(
        default=60.0, description="And after so many seconds in which there were new entries."
    )
