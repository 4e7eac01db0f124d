"""A small HTTP port: /metrics for Prometheus, /healthz and /readyz for orchestrators."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from opsd.daemon.errors import ConfigError

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A line for every scrape would drown the log."""


class MetricsServer:
    """Serves in a thread. ``readiness`` returns (ready, why not); it must be quick and
    thread-safe.
    """

    def __init__(self, host: str, port: int, readiness: Callable[[], tuple[bool, str]]) -> None:
        self._readiness = readiness
        self._metrics_app: Any = make_wsgi_app()
        try:
            self._server = make_server(host, port, self._app, _Server, _QuietHandler)
        except OSError as error:
            raise ConfigError(_bind_message(host, port, error)) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics-http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics_app(environ, start_response)
            return answer
        if path == "/healthz":
            return _text(start_response, "200 OK", "alive")
        if path == "/readyz":
            ready, message = self._readiness()
            status = "200 OK" if ready else "503 Service Unavailable"
            return _text(start_response, status, message or "ready")
        return _text(start_response, "404 Not Found", "try /metrics, /healthz or /readyz")


def _text(start_response: StartResponse, status: str, body: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{body}\n".encode()]


def _bind_message(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"server.metrics_port: {host}:{port} is in use by another process; stop it, or set "
            "another port (0: any free one)"
        )
    return f"server.metrics_port: cannot listen on {host}:{port}: {error.strerror or error}"
