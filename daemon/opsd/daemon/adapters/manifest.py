"""Promotion manifests: signed statements of what was promoted, on what grounds and by whom.

A manifest is written before the promotion's commit and counts only together with the audit entry
that it names. So a crash between the two leaves a file that nobody accepts, never an adapter that
serves without one. docs/reference/manifest.md shows the fields.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from opsd.daemon.errors import AdapterError, NotFoundError, StateError, StoreError
from opsd.daemon.store.decisions import FACTS, SIGNED_BY, Promotion
from opsd.daemon.types.adapters import Adapter, AdapterState, AuditEntry
from opsd.daemon.types.audit import entry_sha256
from opsd.daemon.types.manifest import (
    Contents,
    ManifestProblem,
    check_contents,
    read_contents,
)
from opsd.daemon.types.signatures import (
    MANIFEST_TYPE,
    KeyRing,
    SignatureProblem,
    Signer,
    seal,
    unseal,
)

log = logging.getLogger(__name__)

VERSION: Final = 1
_NEVER_SERVED: Final = (AdapterState.CANDIDATE, AdapterState.REJECTED)


class PromotionLog(Protocol):
    """The part of the audit log that manifests are held against."""

    def promoting_entry(self, adapter: str) -> AuditEntry | None:
        """The newest entry that let the adapter serve."""
        ...


class Manifests:
    """Writes and checks the manifests beside the adapters: ``NAME.manifest-ENTRY.json``."""

    def __init__(
        self, adapters_dir: Path, signer: Signer, trusted: KeyRing, promotions: PromotionLog
    ) -> None:
        self._directory = adapters_dir
        self._signer = signer
        self._trusted = trusted
        self._promotions = promotions
        self._read: dict[str, Contents] = {}  # of adapters that were checked a moment ago

    @property
    def key_id(self) -> str:
        return self._signer.public_key.id

    @property
    def trusted(self) -> KeyRing:
        return self._trusted

    def path(self, adapter: str, entry_id: int) -> Path:
        return self._directory / f"{adapter}.manifest-{entry_id}.json"

    def attest(self, promotion: Promotion) -> None:
        """Writes the promotion's manifest; raises AdapterError or StoreError."""
        adapter, entry = promotion.adapter, promotion.entry
        # Read outside of the transaction, by the check before it, wherever that was possible.
        contents = self._read.pop(adapter.name, None) or self._contents(adapter)
        if contents.sha256 != adapter.sha256:
            raise AdapterError(
                f"{adapter.name}: the content digest of {adapter.path} is {contents.sha256}, "
                f"expected {adapter.sha256}: it is not promoted"
            )
        text = seal(MANIFEST_TYPE, statement_of(promotion, contents, self.key_id), self._signer)
        _write_durably(self.path(adapter.name, entry.id), text + "\n")

    def check(self, adapter: Adapter) -> None:
        """Raises AdapterError unless an adapter that was let serve is, byte for byte, the one that
        a trusted key vouched for.

        An adapter that was never let serve has no manifest yet. One that was promoted before there
        were manifests is accepted, with a warning: its audit entry names no key.
        """
        entry = self._promotions.promoting_entry(adapter.name)
        if entry is None:
            if adapter.state not in _NEVER_SERVED:
                raise AdapterError(
                    f"{adapter.name} is {adapter.state}, but the audit log has no entry that let "
                    "it serve: `opsd audit verify` says what is wrong with the log"
                )
            self._remember(adapter)
            return
        if entry_sha256(entry) != entry.entry_sha256:
            raise AdapterError(
                f"{adapter.name}: audit entry {entry.id}, which let it serve, was edited: "
                "`opsd audit verify` shows the damage"
            )
        if SIGNED_BY not in _detail(entry):
            log.warning(
                "adapter=%s was promoted before there were manifests (audit entry %d): nothing but "
                "its digest vouches for it; approve it again to have it signed",
                *(adapter.name, entry.id),
            )
            return
        self._compare(adapter, entry, self._statement(adapter.name, entry))

    def envelope(self, name: str) -> str:
        """The adapter's manifest as it stands on disk; StateError when it has none."""
        entry = self._promotions.promoting_entry(name)
        if entry is None or SIGNED_BY not in _detail(entry):
            why = "was never promoted" if entry is None else "was promoted before there were any"
            raise StateError(f"{name} {why}: it has no manifest; approve it to have one signed")
        return self._text(name, entry)

    def _statement(self, name: str, entry: AuditEntry) -> dict[str, Any]:
        path = self.path(name, entry.id)
        try:
            return unseal(MANIFEST_TYPE, self._text(name, entry), self._trusted)
        except SignatureProblem as error:
            raise AdapterError(
                f"{path}: {error}; put the right file back, or trust the key that signed it "
                "(signing.trusted_keys)"
            ) from error
        except NotFoundError as error:
            raise AdapterError(str(error)) from error

    def _text(self, name: str, entry: AuditEntry) -> str:
        path = self.path(name, entry.id)
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{path}: is missing, but audit entry {entry.id} says that {name} has a manifest: "
                "put the file back from a backup"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise AdapterError(f"{path}: cannot be read: {error}") from error

    def _compare(self, adapter: Adapter, entry: AuditEntry, said: dict[str, Any]) -> None:
        path = self.path(adapter.name, entry.id)
        try:
            pairs = [
                ("adapter.name", said["adapter"]["name"], adapter.name),
                ("adapter.sha256", said["adapter"]["sha256"], adapter.sha256),
                ("base_fingerprint", said["base_fingerprint"], adapter.model_fingerprint),
                ("audit.id", said["audit"]["id"], entry.id),
                ("audit.sha256", said["audit"]["sha256"], entry.entry_sha256),
            ]
        except (LookupError, TypeError) as error:
            raise AdapterError(f"{path}: not a promotion manifest: {error!r}") from error
        for field, found, expected in pairs:
            if found != expected:
                raise AdapterError(
                    f"{path}: its {field} is {found!r}, expected {expected!r}: it vouches for "
                    "something else"
                )
        try:
            self._read[adapter.name] = check_contents(said, Path(adapter.path))
        except ManifestProblem as error:
            raise AdapterError(f"{adapter.name} is refused: {error}") from error

    def _remember(self, adapter: Adapter) -> None:
        self._read[adapter.name] = self._contents(adapter)

    def _contents(self, adapter: Adapter) -> Contents:
        try:
            return read_contents(Path(adapter.path))
        except ManifestProblem as error:
            raise AdapterError(str(error)) from error


def statement_of(promotion: Promotion, contents: Contents, key_id: str) -> dict[str, Any]:
    """What a manifest says: nothing that is not in the audit entry or on the disk."""
    adapter, entry = promotion.adapter, promotion.entry
    detail = _detail(entry)
    facts: dict[str, Any] = detail.get(FACTS, {})
    return {
        "version": VERSION,
        "adapter": {
            "name": adapter.name,
            "sha256": adapter.sha256,
            "files": contents.to_json(),
        },
        "base_fingerprint": adapter.model_fingerprint,
        "run": {
            "id": adapter.run_id,
            "trigger": facts.get("trigger", ""),
            "shard_sha256": facts.get("shard_sha256", ""),
            "spec_sha256": facts.get("spec_sha256", ""),
        },
        "gate": {
            "verdict": facts.get("gate_verdict", ""),
            "report_sha256": facts.get("gate_report_sha256", ""),
            "inputs_sha256": facts.get("gate_inputs_sha256", ""),
        },
        "code": {
            "version": facts.get("version", ""),
            "commit": facts.get("commit", ""),
            "sha256": facts.get("code_sha256", ""),
        },
        "config_sha256": facts.get("config_sha256", ""),
        "decision": {
            "action": entry.action,
            "incumbent_before": detail.get("from", ""),
            "incumbent_after": detail.get("to", ""),
            "epoch": detail.get("epoch", 0),
        },
        "approvals": _approvals(promotion),
        "audit": {"id": entry.id, "sha256": entry.entry_sha256},
        "key_id": key_id,
    }


def _approvals(promotion: Promotion) -> list[Any]:
    """Who let it serve. A canary that ends by its rule was let in by those who began it."""
    entry = promotion.entry
    decided = _detail(entry).get("approvals")
    if isinstance(decided, list) and decided:
        return decided
    last = {"actor": entry.actor, "reason": entry.reason, "time_unix_s": entry.time_unix_s}
    if promotion.canary is None:
        return [last]
    return [*_approvals(Promotion(promotion.adapter, promotion.canary)), last]


def _detail(entry: AuditEntry) -> dict[str, Any]:
    try:
        detail = json.loads(entry.detail_json)
    except ValueError:
        return {}
    return detail if isinstance(detail, dict) else {}


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: the manifest cannot be written: {error}") from error
