"""The student's attempts of each step, whoever samples them, and whether they can be trusted.

Shape suffixes: T sampled tokens of some attempts, P parameters of the adapter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from opsd.trainer import environment
from opsd.trainer.adapter_io import adapter_config, save_adapter
from opsd.trainer.attempts import Attempt, attempt_texts
from opsd.trainer.data import Pair
from opsd.trainer.distributed import Ranks
from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.methods.logprobs import token_logprobs
from opsd.trainer.mismatch import LogprobGap, importance_weights_T
from opsd.trainer.model import BaseModel
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.samplers.base import Sampler
from opsd.trainer.samplers.engine import EngineSampler
from opsd.trainer.samplers.local import LocalSampler
from opsd.trainer.samplers.pool import PoolSampler
from opsd.trainer.samplers.prefetch import Prefetch, SampleRequest
from opsd.v1 import training_pb2


@dataclass(frozen=True, slots=True)
class Sampled:
    """This rank's attempts of a step."""

    attempts: list[Attempt]
    logprob_gap: float
    """Mean |log p(sampler) - log p(trainer)| by the same weights over all ranks, nats a token; 0
    where the trainer itself samples."""
    staleness_steps: int


class StudentSampling:
    """Samples, one step ahead where the spec allows it, and checks what comes back.

    Where another process samples, its log-probabilities are compared with those of the trainer by
    the very weights that the attempt claims: of one micro-batch a step, or of all attempts where
    they are stale and have to be corrected anyway.

    Args:
        spec: checked, defaults filled in.
        ranks: the process group.
        base: the loaded model.
        network: whose student is sampled.
        maker: of the student's prompts.
        on_progress: called at every point of progress.
    """

    def __init__(
        self,
        spec: training_pb2.RunSpec,
        ranks: Ranks,
        base: BaseModel,
        network: StudentTeacher,
        maker: PromptMaker,
        on_progress: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._ranks = ranks
        self._base = base
        self._network = network
        self._maker = maker
        self._on_progress = on_progress
        self._is_local = spec.rollout.sampler == training_pb2.SAMPLER_LOCAL
        self._sampler = self._make_sampler()
        self._prefetch = Prefetch(self._sampler, on_progress)
        self._synced: dict[int, Tensor] = {}
        """Flat weights of the versions that the sampler may still be asked for."""

    @property
    def looks_ahead(self) -> bool:
        """Whether the next step's attempts are sampled while a step trains."""
        return self._spec.rollout.max_staleness_steps > 0

    def sample(self, step: int, pairs: Sequence[Pair], version: int) -> Sampled:
        """The attempts of the step, waited for; begun now unless `look_ahead` did.

        Args:
            step: names the random numbers.
            pairs: of the step, the same on all ranks.
            version: of the weights as they are now: steps done.

        Raises:
            SamplerMismatchError: the sampler runs other weights.
            SamplerError: the sampler cannot be reached, or refuses.
        """
        request, mine = self._request(step, pairs, version)
        under_way = self._prefetch.under_way
        if under_way is not None:
            assert under_way.step == step, f"step {under_way.step} is under way, not {step}"
            request = under_way
            rollouts = self._prefetch.take()
        elif self._is_local:
            self._sync(version)
            rollouts = self._sampler.sample(
                request.prompts, request.stream_ids, step=step, version=version
            )
        else:
            self._sync(version)
            self._prefetch.start(request)
            rollouts = self._prefetch.take()
        texts = attempt_texts(self._base.tokenizer, rollouts)
        attempts = [
            Attempt(stream, pair, prompt, rollout, text)
            for stream, pair, prompt, rollout, text in zip(
                request.stream_ids, mine, request.prompts, rollouts, texts, strict=True
            )
        ]
        if self._is_local:
            return Sampled(attempts, 0.0, 0)
        return self._checked(step, attempts, request.version, version)

    def look_ahead(self, step: int, pairs: Sequence[Pair], version: int) -> None:
        """Begins to sample a later step with the weights as they are now."""
        self._sync(version)
        self._prefetch.start(self._request(step, pairs, version)[0])

    def close(self) -> None:
        """Frees the sampler."""
        self._prefetch.close()

    def _request(
        self, step: int, pairs: Sequence[Pair], version: int
    ) -> tuple[SampleRequest, list[Pair]]:
        """This rank's share: every world_size-th stream."""
        each = self._spec.rollout.rollouts_per_problem
        streams = range(self._ranks.rank, len(pairs) * each, self._ranks.world_size)
        mine = [pairs[stream // each] for stream in streams]
        prompts = tuple(self._maker.student_ids(pair) or () for pair in mine)
        assert all(prompts), "draws pass over what does not fit"
        return SampleRequest(prompts, tuple(streams), step, version), mine

    def _sync(self, version: int) -> None:
        if version in self._synced:
            return
        config = adapter_config(self._spec.lora, self._base.fingerprint)

        def write(target: Path) -> str:
            return save_adapter(target, config, self._network.adapter_state())

        self._sampler.sync(version, write)
        weights_P = self._network.student.weights_P.detach()
        kept = {} if self._is_local else {v: w for v, w in self._synced.items() if v >= version - 1}
        self._synced = kept | {version: weights_P if self._is_local else weights_P.clone()}

    def _checked(
        self, step: int, attempts: list[Attempt], sampled_by: int, version: int
    ) -> Sampled:
        """Measures the gap, refuses too wide a one, and corrects what is stale."""
        staleness = version - sampled_by
        looked_at = attempts if staleness else attempts[: self._spec.optim.micro_batch_size]
        corrected: list[Attempt] = []
        gap = LogprobGap()
        size = self._spec.optim.micro_batch_size
        for start in range(0, len(looked_at), size):
            batch = looked_at[start : start + size]
            with self._as_it_was(sampled_by):
                plain_T, old_T = self._logprobs(batch)
            said_T = torch.tensor([value for a in batch for value in a.rollout.logprobs])
            gap += LogprobGap.of(said_T, plain_T.cpu())
            if staleness:
                corrected += self._corrected(batch, old_T)
            self._on_progress()
        gap = sum((part for [part] in self._ranks.gather([gap])), LogprobGap())
        gap.check(self._spec.rollout.max_logprob_gap, step)
        return Sampled(corrected if staleness else attempts, gap.mean, staleness)

    def _corrected(self, batch: Sequence[Attempt], old_T: Tensor) -> list[Attempt]:
        _, now_T = self._logprobs(batch)
        weight_T = importance_weights_T(now_T, old_T, self._spec.rollout.importance_cap)
        lengths = [len(attempt.rollout.token_ids) for attempt in batch]
        return [
            replace(attempt, old_logprobs=tuple(old), importance=tuple(weights))
            for attempt, old, weights in zip(
                batch,
                (part.tolist() for part in torch.split(old_T, lengths)),
                (part.tolist() for part in torch.split(weight_T, lengths)),
                strict=True,
            )
        ]

    @torch.no_grad()
    def _logprobs(self, batch: Sequence[Attempt]) -> tuple[Tensor, Tensor]:
        """[T] of the sampled tokens by the student, at temperature 1 and at the loss's."""
        head, device = self._network.head, self._network.device
        hidden_TD = response_hidden_TD(
            self._network.sampled_hidden_BLD,
            [attempt.prompt for attempt in batch],
            [attempt.rollout.token_ids for attempt in batch],
            device,
        )
        ids_T = torch.tensor([token for a in batch for token in a.rollout.token_ids], device=device)
        temperature = self._spec.rollout.temperature
        plain_T = token_logprobs(hidden_TD, head, ids_T, 1.0)
        if temperature == 1.0:
            return plain_T, plain_T
        return plain_T, token_logprobs(hidden_TD, head, ids_T, temperature)

    def _as_it_was(self, version: int) -> "_Weights":
        return _Weights(self._network.student.weights_P, self._synced[version])

    def _make_sampler(self) -> Sampler:
        spec, base, ranks = self._spec, self._base, self._ranks
        if spec.rollout.sampler == training_pb2.SAMPLER_ENGINE:
            return EngineSampler(
                spec,
                eos_ids=base.eos_ids,
                rank=ranks.rank,
                share=ranks.share,
                on_progress=self._on_progress,
            )
        if spec.rollout.sampler == training_pb2.SAMPLER_POOL:
            return PoolSampler(
                spec,
                eos_ids=base.eos_ids,
                context_tokens=base.context_tokens,
                rank=ranks.rank,
                local_rank=environment.local_rank(),
                share=ranks.share,
                on_progress=self._on_progress,
            )
        return LocalSampler(
            self._network.rollout_network,
            spec,
            eos_ids=base.eos_ids,
            pad_id=base.pad_id,
            on_token=self._on_progress,
            with_logprobs=False,
        )


class _Weights:
    """The student with other weights, for as long as the block lasts."""

    def __init__(self, weights_P: Tensor, other_P: Tensor) -> None:
        self._weights_P = weights_P
        self._other_P = other_P

    @torch.no_grad()
    def __enter__(self) -> None:
        self._own_P = self._weights_P.clone()
        self._weights_P.copy_(self._other_P)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        self._weights_P.copy_(self._own_P)
