"""Samples in this process, with transformers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from opsd.trainer.errors import SamplerError
from opsd.trainer.rollout import Rollout, sample_rollouts
from opsd.trainer.samplers.base import Prompt, WriteAdapter
from opsd.v1 import training_pb2


class LocalSampler:
    """The student itself: there is nothing to sync and nothing that could be stale.

    Args:
        network: gives the network to sample from, e.g. `StudentTeacher.rollout_network`.
        spec: of the run.
        eos_ids: tokens that end an answer.
        pad_id: fills the left of shorter prompts.
        on_token: called after every token of the batch.
        with_logprobs: fills in `Rollout.logprobs`.
    """

    def __init__(
        self,
        network: Callable[[], AbstractContextManager[Any]],
        spec: training_pb2.RunSpec,
        *,
        eos_ids: frozenset[int],
        pad_id: int,
        on_token: Callable[[], None] = lambda: None,
        with_logprobs: bool = True,
    ) -> None:
        self._network = network
        self._spec = spec
        self._eos_ids = eos_ids
        self._pad_id = pad_id
        self._on_token = on_token
        self._with_logprobs = with_logprobs
        self._version: int | None = None

    def sync(self, version: int, write: WriteAdapter) -> None:
        """Only remembers the version: the weights are the trainer's own."""
        self._version = version

    def sample(
        self, prompts: Sequence[Prompt], stream_ids: Sequence[int], *, step: int, version: int
    ) -> list[Rollout]:
        if version != self._version:
            raise SamplerError(
                f"the weights here are of version {self._version}, not {version}: the local "
                "sampler has no other; set rollout.max_staleness_steps to 0"
            )
        if not prompts:
            return []
        with self._network() as network:
            rollouts = sample_rollouts(
                network,
                prompts,
                stream_ids,
                self._spec.rollout,
                seed=self._spec.seed,
                step=step,
                eos_ids=self._eos_ids,
                pad_id=self._pad_id,
                on_token=self._on_token,
                with_logprobs=self._with_logprobs,
            )
        return [
            Rollout(rollout.token_ids, rollout.truncated, rollout.logprobs, version)
            for rollout in rollouts
        ]

    def close(self) -> None:
        """Nothing to free."""
