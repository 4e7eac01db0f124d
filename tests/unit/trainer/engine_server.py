"""A serving engine for trainers under test: transformers behind the real protocol."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import torch

from opsd.trainer.rollout import sample_rollouts
from opsd.v1 import support_pb2, support_pb2_grpc, training_pb2


class Engine(support_pb2_grpc.RunSupportServiceServicer):
    """Loads students for real; with `stale` it says so and goes on with the first one."""

    def __init__(self, model_dir: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model_dir = model_dir
        self.plain = AutoModelForCausalLM.from_pretrained(model_dir)
        self.stale = False
        self.loaded: list[int] = []
        self.students: dict[str, Any] = {}
        self._lock = threading.Lock()

    def LoadStudent(self, request: Any, context: Any) -> support_pb2.LoadStudentResponse:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        with self._lock:
            self.loaded.append(request.version)
            if self.stale and self.students:
                self.students[request.sha256] = next(iter(self.students.values()))
            else:
                base = AutoModelForCausalLM.from_pretrained(self.model_dir)
                self.students[request.sha256] = PeftModel.from_pretrained(base, request.path).eval()
        return support_pb2.LoadStudentResponse(adapter=request.sha256)

    def SampleAttempts(self, request: Any, context: Any) -> Iterator[support_pb2.SampledAttempt]:
        with self._lock:
            rollouts = sample_rollouts(
                self.students[request.adapter],
                [prompt.token_ids for prompt in request.prompts],
                [prompt.seed for prompt in request.prompts],
                training_pb2.RolloutSpec(
                    max_new_tokens=request.max_new_tokens,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    top_k=request.top_k,
                ),
                seed=0,
                step=0,
                eos_ids=frozenset(request.stop_token_ids),
                pad_id=0,
                with_logprobs=True,
            )
        for index, rollout in reversed(list(enumerate(rollouts))):
            yield support_pb2.SampledAttempt(
                index=index,
                token_ids=rollout.token_ids,
                logprobs=rollout.logprobs,
                truncated=rollout.truncated,
                adapter=request.adapter,
            )

    def VerifyAttempts(self, request: Any, context: Any) -> support_pb2.VerifyAttemptsResponse:
        verdicts = [
            support_pb2.AttemptVerdict(passed=len(attempt.text) % 2 == 0, evidence="length")
            for attempt in request.attempts
        ]
        return support_pb2.VerifyAttemptsResponse(verdicts=verdicts)

    def ReleaseStudent(self, request: Any, context: Any) -> support_pb2.ReleaseStudentResponse:
        return support_pb2.ReleaseStudentResponse()


@contextmanager
def sampling_engine(directory: Path, model_dir: Path) -> Iterator[tuple[str, Engine]]:
    """A server on a socket in the directory: its address, and itself."""
    torch.set_num_threads(1)
    engine = Engine(model_dir)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    support_pb2_grpc.add_RunSupportServiceServicer_to_server(engine, server)
    address = f"unix:{directory}/e.sock"
    server.add_insecure_port(address)
    server.start()
    try:
        yield address, engine
    finally:
        server.stop(None).wait()
