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
from opsd.daemon.admin.audit import AuditDoor
from opsd.daemon.admin.service import AdminService
from opsd.daemon.app.bridges import IncumbentEvaluator, StoredOutcomes
from opsd.daemon.app.collecting import (
    CurrentHeldOut,
    Near,
    PairOverlap,
    canaries_of,
    looker,
    near_duplicates,
    recorder_of,
    renumbered_of,
    screen_of,
)
from opsd.daemon.app.evidence import AuditKeeper, Evidence, gather_evidence
from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.app.sources import build_sources
from opsd.daemon.app.status import ProcessStatus
from opsd.daemon.collect.curation_service import CurationService
from opsd.daemon.collect.retention import RetentionSweeper
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.collect.source_service import SourceService
from opsd.daemon.collect.sources.driver import SourceDriver
from opsd.daemon.config.check import require_environment
from opsd.daemon.config.load import LoadedConfig
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.gate.check import SuiteChecker
from opsd.daemon.gate.evaluate import GateEvaluator
from opsd.daemon.gate.judge import judge_by, rules_of
from opsd.daemon.gate.literacy import KeyPrompt
from opsd.daemon.gate.questions import ModelIdentity
from opsd.daemon.gate.registry import SuiteRegistry
from opsd.daemon.gate.service import GateService
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
from opsd.daemon.serve.mirror import Mirror
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
from opsd.daemon.verify.pool import VerifierPool
from opsd.daemon.verify.reference_checker import ReferenceChecker
from opsd.daemon.verify.registry import Registry, build_registry
from opsd.v1 import admin_pb2, collection_pb2, gate_pb2, inference_pb2
from opsd.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from opsd.v1.collection_pb2_grpc import (
    add_CollectionServiceServicer_to_server,
    add_CurationServiceServicer_to_server,
    add_SourceServiceServicer_to_server,
)
from opsd.v1.gate_pb2_grpc import add_GateServiceServicer_to_server
from opsd.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server


@dataclass(slots=True)
class Parts:
    """What ``Daemon`` starts and stops, in this order."""

    config: OpsdConfig
    store: SqlStore
    audit: AuditKeeper
    suites: SuiteRegistry
    availability: Availability
    engine: VllmEngine
    residency: Residency
    supervisor: Supervisor
    verifiers: VerifierPool
    recorder: AttemptRecorder | None
    retention: RetentionSweeper
    promoter: Promoter
    controller: RunController
    scheduler: RunScheduler
    sources: SourceDriver
    inference: InferenceService
    mirror: Mirror
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
    # Held-out items and private texts lie in it.
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    fingerprint = model_fingerprint(Path(config.model.path))
    registry = build_registry(config.verify)
    store = open_store(config.store.url or sqlite_url(config.state_dir))
    try:
        # Before anything is decided: every audit entry says by what program and configuration.
        evidence = gather_evidence(config, fingerprint, store)
        suites = SuiteRegistry(
            store,
            state_dir=config.state_dir,
            verifiers=registry.names,
            references=lambda: ReferenceChecker(registry, config.collect.verifier_timeout_s),
            overlap=PairOverlap(store, renumbered_of(config)),
        )
        suites.load(config.gate.suites)
        return _join(config, fingerprint, suites, store, registry, evidence)
    except BaseException:
        store.close()
        raise


def _join(
    config: OpsdConfig,
    fingerprint: str,
    suites: SuiteRegistry,
    store: SqlStore,
    registry: Registry,
    evidence: Evidence,
) -> Parts:
    audit = AuditKeeper(store, evidence.heads, config)
    canaries = canaries_of(config)
    availability = Availability()
    router = Router()
    engine = VllmEngine(config.model, config.engine)
    residency = Residency(engine, router, on_change=publish_adapters)
    verifiers = VerifierPool(
        processes=config.collect.verifier_processes,
        timeout_s=config.collect.verifier_timeout_s,
        registry=registry,
    )
    intake = AdapterIntake(
        store,
        state_dir=config.state_dir,
        model_dir=Path(config.model.path),
        fingerprint=fingerprint,
        max_rank=config.engine.max_lora_rank,
        residency=residency,
        check_manifest=evidence.manifests.check,
    )
    served = ServedModel(Path(config.model.path), fingerprint, config.engine.max_lora_rank)
    load = UserLoad()
    admission = Admission(YieldController(YieldPolicy(config.engine.max_num_seqs)))
    load.observe(admission)
    support = _support(
        config,
        served,
        store=store,
        verifiers=verifiers,
        engine=engine,
        availability=availability,
        residency=residency,
        admission=admission,
    )
    trials = Trials(
        store,
        state_dir=config.state_dir,
        model=served,
        residency=residency,
        verify_known=intake.verify_known,
    )
    gate = GateEvaluator(
        engine,
        verifiers,
        store,
        suites.active,
        config.gate,
        routes=router,
        decide=judge_by(
            rules_of(config.gate, teacher=config.training.objective.teacher), store.save_gate_inputs
        ),
        model=ModelIdentity(fingerprint, config.model.dtype),
        key_prompt=KeyPrompt(config.training.prompt),
        scorer=engine,
        look_through=looker(canaries, "gate"),
    )
    held_out = CurrentHeldOut(renumbered_of(config))
    near = Near()
    suites.subscribe(held_out.replace)
    controller = RunController(
        store=store,
        launcher=launcher_for(config.pool),
        intake=intake,
        trials=trials,
        evaluator=IncumbentEvaluator(gate, store, availability),
        held_out=held_out,
        model=ModelFacts(
            path=config.model.path,
            dtype=config.model.dtype,
            fingerprint=fingerprint,
            max_lora_rank=config.engine.max_lora_rank,
        ),
        config=config,
        support_address=support.address,
        canaries=canaries,
    )
    promoter = Promoter(
        store,
        residency,
        router,
        config.promotion,
        verify=intake.verify_known,
        on_change=audit.wake,
        outcomes=StoredOutcomes(store),
    )
    recorder = recorder_of(config, store, canaries)
    mirror = Mirror(
        engine,
        router,
        promoter.canary,
        load,
        busy_above=config.engine.max_num_seqs // 2,
        look_through=looker(canaries, "mirror"),
    )
    inference = InferenceService(
        engine,
        router,
        availability,
        config.server,
        recorder,
        load,
        observer=promoter.canary,
        mirror=mirror,
    )
    collection = CollectionService(
        store,
        verifiers,
        held_out,
        config.collect,
        attempts=recorder,
        screen=screen_of(config, canaries),
        near=near,
    )
    source_service, source_driver = build_sources(
        config.collect,
        collection,
        store=store,
        verifier=verifiers,
        held_out=held_out,
        engine=engine,
        router=router,
        room=admission,
        users=load,
        ready=availability,
    )
    curation = CurationService(store, verifiers, config.collect, near=near, held_out=held_out)
    status = ProcessStatus(
        config,
        fingerprint=fingerprint,
        store_url=store.safe_url,
        availability=availability,
        residency=residency,
        router=router,
    )
    gating = GateService(
        suites,
        SuiteChecker(
            suites,
            verifiers,
            store,
            config.gate,
            conditions=gate.conditions,
            near_duplicates=near_duplicates,
        ),
    )
    admin = AdminService(
        store,
        controller,
        promoter,
        status,
        AuditDoor(store, evidence.key, evidence.manifests, evidence.heads),
    )
    grpc_server = GrpcServer(
        config.server,
        _registrations(inference, collection, curation, source_service, admin, gating),
        availability,
        interceptors=[ErrorInterceptor()],
    )
    return Parts(
        config=config,
        store=store,
        audit=audit,
        suites=suites,
        availability=availability,
        engine=engine,
        residency=residency,
        supervisor=Supervisor(engine, residency.reload_all, availability),
        verifiers=verifiers,
        recorder=recorder,
        retention=RetentionSweeper(store, config.collect.retention, near),
        promoter=promoter,
        controller=controller,
        scheduler=RunScheduler(store=store, config=config.runs, trigger=controller.trigger),
        sources=source_driver,
        inference=inference,
        mirror=mirror,
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
    admission: Admission,
) -> SupportServer:
    """What runs may ask for; users' latencies decide how much of it they get."""
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
    inference: InferenceService,
    collection: CollectionService,
    curation: CurationService,
    sources: SourceService,
    admin: AdminService,
    gating: GateService,
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
            collection_pb2.DESCRIPTOR.services_by_name["CurationService"].full_name,
            lambda server: add_CurationServiceServicer_to_server(curation, server),
        ),
        Registration(
            collection_pb2.DESCRIPTOR.services_by_name["SourceService"].full_name,
            lambda server: add_SourceServiceServicer_to_server(sources, server),
        ),
        Registration(
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
            lambda server: add_AdminServiceServicer_to_server(admin, server),
        ),
        Registration(
            gate_pb2.DESCRIPTOR.services_by_name["GateService"].full_name,
            lambda server: add_GateServiceServicer_to_server(gating, server),
        ),
    ]
