"""Samples from the daemon's serving engine, below every user's priority."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

from opsd.trainer.errors import SamplerError
from opsd.trainer.rollout import Rollout, stream_key
from opsd.trainer.samplers.base import Prompt, WriteAdapter
from opsd.trainer.samplers.students import StudentFiles, StudentVersion, alone
from opsd.v1 import support_pb2, training_pb2
from opsd.v1.support_pb2_grpc import RunSupportServiceStub

PROMPTS_PER_CALL = 1024
_MESSAGE_BYTES = 64 << 20
_POLL_S = 0.5
_BUSY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
)
"""The daemon restarts, its engine is down, or serving needed the student's place: try again."""


def engine_seed(seed: int, step: int, stream: int) -> int:
    """Of one answer, from the key of its random numbers: 63 bits, which every engine takes."""
    return int.from_bytes(stream_key(seed, step, stream)[:8], "little") >> 1


class EngineSampler:
    """A client of `RunSupportService`.

    A daemon that restarts, or that needs the student's place for serving, costs time only: the
    student is loaded again and what is missing is asked for again.

    Args:
        spec: of the run; `support.address` says where the daemon is.
        eos_ids: tokens that end an answer.
        rank: of this process; rank 0 writes and loads the student.
        share: see `StudentFiles`.
        on_progress: called about twice a second while `sync` waits.
        patience_s: how long the daemon may be away, or without room, before the run fails.
    """

    def __init__(
        self,
        spec: training_pb2.RunSpec,
        *,
        eos_ids: frozenset[int],
        rank: int = 0,
        share: Callable[[str], str] = alone,
        on_progress: Callable[[], None] = lambda: None,
        patience_s: float = 600.0,
    ) -> None:
        if not spec.support.address:
            raise SamplerError(
                "rollout.sampler is engine, but support.address is empty: only a run that a daemon "
                "started can sample from its engine; set rollout.sampler to local or pool"
            )
        self._spec = spec
        self._eos_ids = sorted(eos_ids)
        self._on_progress = on_progress
        self._patience_s = patience_s
        self._files = StudentFiles(Path(spec.output_dir) / "students", rank, share)
        self._names: dict[StudentVersion, str] = {}
        self._closed = False
        self._active: Any = None
        self._channel = grpc.insecure_channel(
            spec.support.address,
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MESSAGE_BYTES),
                # A daemon that comes back is to be found soon.
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._stub = RunSupportServiceStub(self._channel)

    def sync(self, version: int, write: WriteAdapter) -> None:
        """Rank 0 writes the adapter and has the engine load it; the others wait for that."""
        student = self._files.write(
            version, write, lambda written: self._load(written, self._on_progress)
        )
        if student not in self._names:
            # A name is a function of run and content, so asking costs the others one short call.
            self._load(student, self._on_progress)
        self._names = {kept: name for kept, name in self._names.items() if self._is_kept(kept)}

    def sample(
        self, prompts: Sequence[Prompt], stream_ids: Sequence[int], *, step: int, version: int
    ) -> list[Rollout]:
        student = self._files.find(version)
        found: dict[int, Rollout] = {}
        asked = [
            support_pb2.AttemptPrompt(
                token_ids=prompt, seed=engine_seed(self._spec.seed, step, stream)
            )
            for prompt, stream in zip(prompts, stream_ids, strict=True)
        ]
        while len(found) < len(asked):
            missing = [index for index in range(len(asked)) if index not in found]
            self._patiently(
                lambda missing=missing: self._sample_some(  # type: ignore[misc]
                    student, asked, missing[:PROMPTS_PER_CALL], found
                ),
                lambda: None,
                lambda: len(found),
            )
        return [found[index] for index in range(len(asked))]

    def close(self) -> None:
        """Ends a `sample` under way; the daemon unloads the student when the run is over."""
        self._closed = True
        active = self._active
        if active is not None:
            active.cancel()
        self._channel.close()

    def _sample_some(
        self,
        student: StudentVersion,
        asked: Sequence[support_pb2.AttemptPrompt],
        indices: Sequence[int],
        found: dict[int, Rollout],
    ) -> None:
        """Adds answers to `found` as they come."""
        indices = [index for index in indices if index not in found]
        if student not in self._names:
            self._load_once(student, lambda: None)
        rollout = self._spec.rollout
        request = support_pb2.SampleAttemptsRequest(
            run_id=self._spec.run_id,
            adapter=self._names[student],
            prompts=[asked[index] for index in indices],
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            stop_token_ids=self._eos_ids,
        )
        self._active = call = self._stub.SampleAttempts(request)
        try:
            self._collect(call, student, indices, found)
        except grpc.RpcError as error:
            if error.code() in (*_BUSY, grpc.StatusCode.NOT_FOUND):
                # Whatever it was, the daemon may have let go of the student.
                self._names.pop(student, None)
            raise
        finally:
            self._active = None

    def _collect(
        self,
        call: Iterable[support_pb2.SampledAttempt],
        student: StudentVersion,
        indices: Sequence[int],
        found: dict[int, Rollout],
    ) -> None:
        for attempt in call:
            if attempt.adapter != self._names[student]:
                raise SamplerError(
                    f"the engine sampled with {attempt.adapter}, not {self._names[student]}"
                )
            found[indices[attempt.index]] = Rollout(
                tuple(attempt.token_ids),
                attempt.truncated,
                tuple(attempt.logprobs),
                student.version,
            )

    def _load(self, student: StudentVersion, on_progress: Callable[[], None]) -> None:
        self._patiently(lambda: self._load_once(student, on_progress), on_progress)

    def _load_once(self, student: StudentVersion, on_progress: Callable[[], None]) -> None:
        request = support_pb2.LoadStudentRequest(
            run_id=self._spec.run_id,
            version=student.version,
            path=student.path,
            sha256=student.sha256,
        )
        self._active = call = self._stub.LoadStudent.future(request)
        try:
            while True:
                try:
                    self._names[student] = call.result(timeout=_POLL_S).adapter
                    return
                except grpc.FutureTimeoutError:
                    on_progress()
        finally:
            self._active = None

    def _patiently(
        self,
        ask: Callable[[], None],
        on_progress: Callable[[], None],
        progress: Callable[[], int] = lambda: 0,
    ) -> None:
        """Asks until it is answered; raises `SamplerError` when that is hopeless or takes too
        long without any progress.
        """
        give_up = time.monotonic() + self._patience_s
        before = progress()
        while True:
            try:
                ask()
                return
            except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as error:
                if self._closed:
                    raise SamplerError("the sampler was closed") from error
                if not isinstance(error, grpc.RpcError):
                    raise
                if progress() > before:
                    before, give_up = progress(), time.monotonic() + self._patience_s
                self._require_hope(error, time.monotonic() > give_up)
            on_progress()
            time.sleep(_POLL_S)

    def _require_hope(self, error: Any, too_late: bool) -> None:
        lost = error.code() is grpc.StatusCode.NOT_FOUND and "LoadStudent" in error.details()
        if error.code() not in _BUSY and not lost:
            raise SamplerError(f"the daemon refuses: {error.details()}") from error
        if too_late:
            raise SamplerError(
                f"the daemon at {self._spec.support.address} gave no sample for "
                f"{self._patience_s:g} s: {error.details()}"
            ) from error

    def _is_kept(self, student: StudentVersion) -> bool:
        try:
            return self._files.find(student.version) == student
        except SamplerError:
            return False
