"""What only the running process knows about itself."""

from __future__ import annotations

import time

from opsd.daemon import __version__
from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.serve.state import Availability
from opsd.v1 import admin_pb2


class ProcessStatus:
    """Fills the live half of AdminService's status; the other half is in the store."""

    def __init__(
        self,
        config: OpsdConfig,
        *,
        fingerprint: str,
        store_url: str,
        availability: Availability,
        residency: Residency,
        router: Router,
    ) -> None:
        """``store_url`` without a password."""
        self._config = config
        self._fingerprint = fingerprint
        self._store_url = store_url
        self._availability = availability
        self._residency = residency
        self._router = router
        self._started = time.monotonic()

    def fill(self, status: admin_pb2.Status) -> None:
        status.version = __version__
        status.serving = admin_pb2.ServingState.Value(
            f"SERVING_STATE_{self._availability.state.name}"
        )
        status.message = self._availability.message
        status.uptime_s = time.monotonic() - self._started
        status.model = self._config.model.path
        status.model_fingerprint = self._fingerprint
        status.store_url = self._store_url
        status.pool_devices = self._config.pool.num_devices
        status.requests_in_flight = self._router.total_in_flight()
        for resident in self._residency.residents():
            status.loaded.add(
                name=resident.handle.name, role=resident.role, in_flight=resident.in_flight
            )
