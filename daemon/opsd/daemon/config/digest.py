"""The resolved configuration as the audit log keeps it."""

from __future__ import annotations

import re
from typing import Any

from opsd.daemon.config.problems import hide_secrets
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.types.audit import canonical_json, sha256_hex

_SECRET_KEY = re.compile(r"(^|_)(password|passphrase|secret|token|api_key|credentials?)$")
HIDDEN = "***"


def public_config(config: OpsdConfig) -> dict[str, Any]:
    """Every key with its value; what is secret is hidden, so that the rest may be shown."""
    shown: dict[str, Any] = _hide(config.model_dump(mode="json"))
    return shown


def config_sha256(config: OpsdConfig) -> str:
    """SHA-256, hexadecimal, of the canonical JSON of ``public_config``."""
    return sha256_hex(canonical_json(public_config(config)))


def _hide(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _hide(below, name) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item, key) for item in value]
    if isinstance(value, str):
        # Numbers such as max_tokens are no secrets; texts under such a name are.
        return HIDDEN if value and _SECRET_KEY.search(key) else hide_secrets(value)
    return value
