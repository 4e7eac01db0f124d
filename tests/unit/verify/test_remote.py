"""Verifiers that are services elsewhere: ``grpc:NAME``."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from opsd.daemon.config.verify import RemoteConfig
from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.remote import RemoteRunner
from opsd.v1 import verifier_pb2 as pb
from opsd.v1 import verifier_pb2_grpc as pb_grpc

PASS, FAIL, ERROR = VerdictKind.PASS, VerdictKind.FAIL, VerdictKind.ERROR


class Service(pb_grpc.VerifierServiceServicer):
    def __init__(self) -> None:
        self.calls = 0
        self.unavailable = 0
        self.code: grpc.StatusCode | None = None
        self.silent = False

    async def Verify(self, request: pb.VerifyRequest, context: Any) -> pb.VerifyResponse:
        self.calls += 1
        if self.silent:
            await asyncio.sleep(600)
        if self.calls <= self.unavailable:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        if self.code is not None:
            await context.abort(self.code, "no")
        same = request.text == request.reference
        outcome = pb.VERIFY_OUTCOME_PASS if same else pb.VERIFY_OUTCOME_FAIL
        if request.text == "?":
            outcome = pb.VERIFY_OUTCOME_UNSPECIFIED
        return pb.VerifyResponse(outcome=outcome, evidence=f"{request.verifier} " + "x" * 1000)


class Remote:
    def __init__(self, service: Service, runner: RemoteRunner) -> None:
        self.service, self.runner = service, runner


@pytest.fixture
async def remote() -> AsyncIterator[Remote]:
    server = grpc.aio.server()
    service = Service()
    pb_grpc.add_VerifierServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = RemoteConfig(name="lean", address=f"127.0.0.1:{port}", timeout_s=5.0)
    runner = RemoteRunner("grpc:lean", config)
    yield Remote(service, runner)
    await runner.close()
    await server.stop(None)


async def test_a_service_decides(remote: Remote) -> None:
    kind, evidence = await remote.runner.run("a", "a")
    assert (kind, evidence[:6], len(evidence)) == (PASS, "lean x", 400)
    assert (await remote.runner.run("a", "b\ud800"))[0] is FAIL
    assert (await remote.runner.run("a", "?"))[0] is ERROR


async def test_only_unavailable_is_tried_again(remote: Remote) -> None:
    remote.service.unavailable = 2
    assert (await remote.runner.run("a", "a"))[0] is PASS
    assert remote.service.calls == 3
    remote.service.calls, remote.service.unavailable = 0, 99
    kind, evidence = await remote.runner.run("a", "a")
    assert (kind, remote.service.calls) == (ERROR, 3)
    assert "UNAVAILABLE after 3 attempts: not yet" in evidence
    remote.service.calls, remote.service.unavailable = 0, 0
    remote.service.code = grpc.StatusCode.INTERNAL
    kind, evidence = await remote.runner.run("a", "a")
    assert (kind, remote.service.calls) == (ERROR, 1)
    assert "INTERNAL: no" in evidence


async def test_a_service_that_was_down_for_long_is_asked_as_soon_as_it_is_back() -> None:
    # Its port is held by a socket that refuses connections until the service takes it.
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        runner = RemoteRunner("grpc:lean", RemoteConfig(name="lean", address=address))
        for _ in range(12):
            assert (await runner.run("a", "a"))[0] is ERROR
        server = grpc.aio.server()
        pb_grpc.add_VerifierServiceServicer_to_server(Service(), server)
        server.add_insecure_port(address)
        await server.start()
        verdict = await runner.run("a", "a")
        await runner.close()
        await server.stop(None)
    assert verdict[0] is PASS, verdict


async def test_a_silent_service_does_not_outlast_the_limit(remote: Remote) -> None:
    remote.service.silent = True
    config = remote.runner.config.model_copy(update={"timeout_s": 0.5})
    runner = RemoteRunner("grpc:lean", config)
    kind, evidence = await runner.run("a", "a")
    assert kind is ERROR
    assert "no verdict within 0.5 s" in evidence
    await runner.close()


async def test_tls_needs_its_files(tmp_path: Path) -> None:
    config = RemoteConfig(
        name="lean", address="127.0.0.1:1", transport="tls", ca_file=str(tmp_path / "ca.pem")
    )
    assert "ca.pem is not a file" in RemoteRunner("grpc:lean", config).problem
    kind, evidence = await RemoteRunner("grpc:lean", config).run("a", "a")
    assert (kind, "ca.pem" in evidence) == (ERROR, True)


@dataclass(frozen=True)
class Authority:
    """Issues certificates for 127.0.0.1."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    name: x509.Name

    @classmethod
    def make(cls, folder: Path) -> Authority:
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        made = cls(folder, key, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)]))
        certificate = made._certificate(made.name, key, x509.BasicConstraints(True, None))
        (folder / "ca.pem").write_bytes(certificate)
        return made

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files[0].write_bytes(self._certificate(subject, key, address))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(extension, critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


async def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    ours, others = Authority.make(tmp_path / "ours"), Authority.make(tmp_path / "others")
    certificate, key = ours.issue("service")
    server = grpc.aio.server()
    pb_grpc.add_VerifierServiceServicer_to_server(Service(), server)
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        ours.ca_file.read_bytes(),
        require_client_auth=True,
    )
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()

    async def verdict(ca: Authority, client: Authority | None) -> tuple[VerdictKind, str]:
        config = RemoteConfig(
            name="lean", address=address, transport="tls", ca_file=str(ca.ca_file), max_attempts=1
        )
        if client is not None:
            cert_file, key_file = map(str, client.issue("client"))
            config = config.model_copy(update={"cert_file": cert_file, "key_file": key_file})
        runner = RemoteRunner("grpc:lean", config)
        found = await runner.run("a", "a")
        await runner.close()
        return found

    assert (await verdict(ours, ours))[0] is PASS
    for ca, client in ((others, ours), (ours, others), (ours, None)):
        kind, evidence = await verdict(ca, client)
        assert kind is ERROR
        assert f"{address}: UNAVAILABLE" in evidence
    await server.stop(None)
