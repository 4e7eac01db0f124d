"""All of the daemon's parts, made and joined; nothing is started here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opsd.daemon.adapters.files import model_fingerprint
from opsd.daemon.adapters.intake import AdapterIntake, ServedModel
from opsd.daemon.adapters.promotion import Promoter
from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router
from opsd.daemon.adapters.trial import Trials
from opsd.daemon.admin.service import AdminService
from opsd.daemon.app.bridges import IncumbentEvaluator
from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.app.status import ProcessStatus
from opsd.daemon.collect.heldout import HeldOutIndex
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.config.check import require_environment
from opsd.daemon.config.load import LoadedConfig
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.gate.evaluate import GateEvaluator
from opsd.daemon.gate.suites import SuiteSet, check_untrained, load_suites
from opsd.daemon.runs.controller import RunController
from opsd.daemon.runs.ray_launcher import launcher_for
from opsd.daemon.runs.scheduler import RunScheduler
from opsd.daemon.runs.spec import ModelFacts
from opsd.daemon.serve.attempts import AttemptRecorder
from opsd.daemon.serve.grpc_server import (
    GrpcServer,
    MalformedRequestInterceptor,
    Registration,
)
from opsd.daemon.serve.load import UserLoad
from opsd.daemon.serve.metrics import publish_adapters
from opsd.daemon.serve.metrics_http import MetricsServer
from opsd.daemon.serve.service import InferenceService
from opsd.daemon.serve.state import Availability
from opsd.daemon.serve.supervisor import Supervisor
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.support.admission import Admission
from opsd.daemon.support.server import SupportServer, socket_path
from opsd.daemon.support.service import RunSupportService
from opsd.daemon.support.students import Students
from opsd.daemon.support.yielding import YieldController, YieldPolicy
from opsd.daemon.verify.pool import VERIFIERS, VerifierPool
from opsd.v1 import admin_pb2, collection_pb2, inference_pb2
from opsd.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from opsd.v1.collection_pb2_grpc import add_CollectionServiceServicer_to_server
from opsd.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server


@dataclass(slots=True)
class Parts:
    """What ``Daemon`` starts and stops, in this order."""

    config: OpsdConfig
    store: SqlStore
    suites: SuiteSet
    availability: Availability
    engine: VllmEngine
    residency: Residency
    supervisor: Supervisor
    verifiers: VerifierPool
    recorder: AttemptRecorder
    promoter: Promoter
    controller: RunController
    scheduler: RunScheduler
    inference: InferenceService
    support: SupportServer
    grpc: GrpcServer
    metrics: MetricsServer


def build(loaded: LoadedConfig) -> Parts:
    """Checks everything that can be checked before the engine starts, binds the ports, opens the
    store. Call it in the event loop.

    Raises ConfigError or StoreError: nothing is left open then.
    """
    require_environment(loaded)
    config = loaded.config
    config.state_dir.mkdir(parents=True, exist_ok=True)
    fingerprint = model_fingerprint(Path(config.model.path))
    suites = load_suites(config.gate.suites, verifiers=VERIFIERS)
    store = open_store(config.store.url or sqlite_url(config.state_dir))
    try:
        check_untrained(suites, store)
        return _join(config, fingerprint, suites, store)
    except BaseException:
        store.close()
        raise


def _join(config: OpsdConfig, fingerprint: str, suites: SuiteSet, store: SqlStore) -> Parts:
    availability = Availability()
    router = Router()
    engine = VllmEngine(config.model, config.engine)
    residency = Residency(engine, router, on_change=publish_adapters)
    verifiers = VerifierPool(
        processes=config.collect.verifier_processes, timeout_s=config.collect.verifier_timeout_s
    )
    intake = AdapterIntake(
        store,
        state_dir=config.state_dir,
        model_dir=Path(config.model.path),
        fingerprint=fingerprint,
        max_rank=config.engine.max_lora_rank,
        residency=residency,
    )
    served = ServedModel(Path(config.model.path), fingerprint, config.engine.max_lora_rank)
    load = UserLoad()
    support = _support(
        config,
        served,
        store=store,
        verifiers=verifiers,
        engine=engine,
        availability=availability,
        residency=residency,
        load=load,
    )
    trials = Trials(
        store,
        state_dir=config.state_dir,
        model=served,
        residency=residency,
        verify_known=intake.verify_known,
    )
    gate = GateEvaluator(engine, verifiers, store, suites, config.gate, routes=router)
    controller = RunController(
        store=store,
        launcher=launcher_for(config.pool),
        intake=intake,
        trials=trials,
        evaluator=IncumbentEvaluator(gate, store, availability),
        held_out=suites,
        model=ModelFacts(
            path=config.model.path,
            dtype=config.model.dtype,
            fingerprint=fingerprint,
            max_lora_rank=config.engine.max_lora_rank,
        ),
        config=config,
        support_address=support.address,
    )
    promoter = Promoter(
        store,
        residency,
        router,
        config.promotion,
        verify=intake.verify_known,
    )
    recorder = AttemptRecorder(store)
    inference = InferenceService(
        engine,
        router,
        availability,
        config.server,
        recorder if config.server.record_attempts else None,
        load,
    )
    collection = CollectionService(
        store,
        verifiers,
        HeldOutIndex({suite.name: suite.items for suite in suites.suites}),
        config.collect,
        attempts=recorder,
    )
    status = ProcessStatus(
        config,
        fingerprint=fingerprint,
        store_url=store.safe_url,
        availability=availability,
        residency=residency,
        router=router,
    )
    admin = AdminService(store, controller, promoter, status)
    grpc_server = GrpcServer(
        config.server,
        _registrations(inference, collection, admin),
        availability,
        interceptors=[ErrorInterceptor()],
    )
    return Parts(
        config=config,
        store=store,
        suites=suites,
        availability=availability,
        engine=engine,
        residency=residency,
        supervisor=Supervisor(engine, residency.reload_all, availability),
        verifiers=verifiers,
        recorder=recorder,
        promoter=promoter,
        controller=controller,
        scheduler=RunScheduler(store=store, config=config.runs, trigger=controller.trigger),
        inference=inference,
        support=support,
        grpc=grpc_server,
        metrics=MetricsServer(
            config.server.host,
            config.server.metrics_port,
            lambda: (availability.is_ready, availability.message),
        ),
    )


def _support(
    config: OpsdConfig,
    model: ServedModel,
    *,
    store: SqlStore,
    verifiers: VerifierPool,
    engine: VllmEngine,
    availability: Availability,
    residency: Residency,
    load: UserLoad,
) -> SupportServer:
    """What runs may ask for; users' latencies decide how much of it they get."""
    admission = Admission(YieldController(YieldPolicy(config.engine.max_num_seqs)))
    load.observe(admission)
    service = RunSupportService(
        runs=store,
        verifiers=verifiers,
        engine=engine,
        readiness=availability,
        students=Students(residency, model, config.state_dir / "students"),
        admission=admission,
    )
    residency.set_interrupt(service.interrupt)
    return SupportServer(
        socket_path(config.state_dir), service, [ErrorInterceptor(), MalformedRequestInterceptor()]
    )


def _registrations(
    inference: InferenceService, collection: CollectionService, admin: AdminService
) -> list[Registration]:
    return [
        Registration(
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
            lambda server: add_InferenceServiceServicer_to_server(inference, server),
        ),
        Registration(
            collection_pb2.DESCRIPTOR.services_by_name["CollectionService"].full_name,
            lambda server: add_CollectionServiceServicer_to_server(collection, server),
        ),
        Registration(
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
            lambda server: add_AdminServiceServicer_to_server(admin, server),
        ),
    ]
