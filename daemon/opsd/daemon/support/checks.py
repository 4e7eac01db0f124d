"""What a run's requests must be; every refusal names the field, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opsd.daemon.errors import InvalidInputError
from opsd.daemon.support.sampling import SampleJob
from opsd.daemon.types.engine import AdapterHandle, EngineInfo
from opsd.v1 import support_pb2 as pb

MAX_ATTEMPTS = 4096
"""In one VerifyAttempts."""
MAX_PROMPTS = 4096
"""In one SampleAttempts."""
MAX_TEMPERATURE = 2.0  # vLLM samples no hotter


def check_verify(request: pb.VerifyAttemptsRequest, known: Sequence[str]) -> None:
    """``known`` are the verifiers there are. Raises InvalidInputError."""
    if len(request.attempts) > MAX_ATTEMPTS:
        raise InvalidInputError(
            f"attempts: {len(request.attempts)} in one call, at most {MAX_ATTEMPTS}: send several"
        )
    for index, attempt in enumerate(request.attempts):
        if attempt.verifier not in known:
            raise InvalidInputError(
                f"attempts[{index}].verifier: {attempt.verifier[:64]!r} is not known; there are "
                f"{', '.join(known)}"
            )


def check_sample(
    request: pb.SampleAttemptsRequest, adapter: AdapterHandle | None, engine: EngineInfo
) -> SampleJob:
    """Raises InvalidInputError."""
    if not 1 <= len(request.prompts) <= MAX_PROMPTS:
        raise InvalidInputError(
            f"prompts: {len(request.prompts)} in one call, expected 1 to {MAX_PROMPTS}"
        )
    for index, prompt in enumerate(request.prompts):
        _check_prompt(index, prompt, engine)
    if not 1 <= request.max_new_tokens <= engine.max_model_len:
        raise InvalidInputError(
            f"max_new_tokens: {request.max_new_tokens}, expected 1 to {engine.max_model_len}, the "
            "engine's context"
        )
    if not 0.0 < request.temperature <= MAX_TEMPERATURE:
        raise InvalidInputError(
            f"temperature: {request.temperature:g}, but the engine samples above 0 and up to "
            f"{MAX_TEMPERATURE:g}: set rollout.temperature in that range, or rollout.sampler to "
            "local"
        )
    if not (math.isfinite(request.top_p) and 0.0 < request.top_p <= 1.0):
        raise InvalidInputError(f"top_p: {request.top_p:g}, expected above 0 and at most 1 (off)")
    for token in request.stop_token_ids:
        if token >= engine.vocab_size:
            raise InvalidInputError(
                f"stop_token_ids: {token}, but the vocabulary has {engine.vocab_size} tokens"
            )
    return SampleJob(
        run_id=request.run_id,
        adapter=adapter,
        prompts=[(tuple(prompt.token_ids), prompt.seed) for prompt in request.prompts],
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=min(request.top_k, engine.vocab_size),
        stop_token_ids=tuple(request.stop_token_ids),
    )


def _check_prompt(index: int, prompt: pb.AttemptPrompt, engine: EngineInfo) -> None:
    num_tokens = len(prompt.token_ids)
    if not 1 <= num_tokens < engine.max_model_len:
        raise InvalidInputError(
            f"prompts[{index}]: {num_tokens} tokens, expected 1 to {engine.max_model_len - 1}: the "
            f"engine's context has {engine.max_model_len} (model.max_model_len), and one at least "
            "is the attempt's"
        )
    largest = max(prompt.token_ids)
    if largest >= engine.vocab_size:
        raise InvalidInputError(
            f"prompts[{index}]: token {largest}, but the vocabulary has {engine.vocab_size} tokens"
        )
