"""The store on a SQL database."""

from __future__ import annotations

import time
from collections.abc import Callable

from opsd.daemon.store.adapters import AdapterArea
from opsd.daemon.store.answers import AnswerArea
from opsd.daemon.store.audit import AuditArea
from opsd.daemon.store.canaries import CanaryArea
from opsd.daemon.store.connect import open_database
from opsd.daemon.store.draws import DrawArea
from opsd.daemon.store.gate import GateArea
from opsd.daemon.store.ledger import LedgerArea
from opsd.daemon.store.outcomes import OutcomeArea
from opsd.daemon.store.pair_changes import PairChangeArea
from opsd.daemon.store.pair_insert import PairInsertArea
from opsd.daemon.store.pairs import PairArea
from opsd.daemon.store.problems import ProblemArea
from opsd.daemon.store.provenance import ProvenanceArea
from opsd.daemon.store.runs import RunArea
from opsd.daemon.store.solves import SolveArea
from opsd.daemon.store.suites import SuiteArea
from opsd.daemon.store.trained import TrainedArea
from opsd.daemon.store.votes import VoteArea


class SqlStore(
    PairArea,
    ProblemArea,
    OutcomeArea,
    ProvenanceArea,
    RunArea,
    SolveArea,
    AdapterArea,
    CanaryArea,
    VoteArea,
    GateArea,
    LedgerArea,
    AnswerArea,
    SuiteArea,
    PairInsertArea,
    PairChangeArea,
    TrainedArea,
    DrawArea,
    AuditArea,
):
    """Implements ``opsd.daemon.store.api.Store``."""

    @property
    def safe_url(self) -> str:
        """Where it is, without a password."""
        return self._database.safe_url

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._database.dialect

    def close(self) -> None:
        """Lets go of the database and of the lock that keeps other daemons away."""
        self._database.close()


def open_store(
    url: str, *, exclusive: bool = True, clock: Callable[[], float] = time.time
) -> SqlStore:
    """Opens the database at a SQLAlchemy URL and brings its schema up to date.

    ``exclusive`` keeps a second daemon away for as long as this one lives; only tools that a
    running daemon may share the database with go without.

    Raises:
        StoreError: not a supported URL, no such directory, no connection, another daemon is there,
        or     the database was used by a newer version.
    """
    return SqlStore(open_database(url, exclusive=exclusive), clock)
