"""Applies what is missing, in the caller's transaction."""

from __future__ import annotations

from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, text

from opsd.daemon.errors import StoreError
from opsd.daemon.store.locks import MIGRATION_KEY


def scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))


def upgrade(connection: Connection) -> None:
    """Brings the schema to the newest revision; all of it or, on an error, none.

    Raises StoreError when the database was made by a newer version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_KEY})
    directory = scripts()

    def steps(current: tuple[str, ...], _context: MigrationContext) -> list[RevisionStep]:
        _refuse_newer(directory, current)
        # Alembic's own type for the starting point is wider than what it hands us.
        return directory._upgrade_revs("head", current)  # type: ignore[arg-type]

    context = MigrationContext.configure(connection, opts={"fn": steps})
    with Operations.context(context):
        context.run_migrations()


def _refuse_newer(directory: ScriptDirectory, current: tuple[str, ...]) -> None:
    for revision in current:
        try:
            known = directory.get_revision(revision)
        except (CommandError, ResolutionError):
            known = None
        if known is None:
            raise StoreError(
                f"the database is at revision {revision!r}, which this version of opsd does not "
                "know: a newer one has used it. Start that version, or restore a backup made "
                "before the upgrade"
            )
