"""The HTTP port."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from opsd.daemon.serve import metrics
from opsd.daemon.serve.metrics_http import MetricsServer


@pytest.fixture
def answers() -> list[tuple[bool, str]]:
    return [(True, "")]


@pytest.fixture
def server(answers: list[tuple[bool, str]]) -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1", 0, lambda: answers[-1])
    yield server
    server.stop()


def fetch(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_metrics_are_served(server: MetricsServer) -> None:
    metrics.publish_adapters({"opsd-old": "incumbent"})
    metrics.publish_adapters({"opsd-new": "incumbent"})
    status, text = await asyncio.to_thread(fetch, server, "/metrics")
    assert status == 200
    assert 'opsd_adapter_info{adapter="opsd-new",role="incumbent"} 1.0' in text
    assert "opsd-old" not in text


def test_probes(server: MetricsServer, answers: list[tuple[bool, str]]) -> None:
    assert fetch(server, "/healthz") == (200, "alive\n")
    assert fetch(server, "/readyz") == (200, "ready\n")
    answers.append((False, "the engine is being started"))
    assert fetch(server, "/readyz") == (503, "the engine is being started\n")
    assert fetch(server, "/healthz")[0] == 200
    assert fetch(server, "/nothing")[0] == 404
