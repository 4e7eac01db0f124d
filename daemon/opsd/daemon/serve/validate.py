"""Checks a GenerateRequest; every refusal names the field, the value and what is allowed."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

from opsd.daemon.errors import InvalidInputError
from opsd.daemon.types.engine import AdapterHandle, ChatMessage, EngineRequest, Sampling
from opsd.v1 import inference_pb2 as pb

MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_TEMPERATURE = 2.0  # vLLM samples no hotter
MAX_MESSAGES = 1024
MAX_ID_CHARS = 128
MAX_SEED = (1 << 63) - 1
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the configuration allow, in tokens."""

    max_model_len: int
    vocab_size: int
    default_max_tokens: int


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request whose every field is in range."""

    request_id: str
    sampling: Sampling
    prompt: str | None
    messages: tuple[ChatMessage, ...]
    enable_thinking: bool

    def for_engine(
        self, adapter: AdapterHandle | None, *, stream: bool, tokens_per_chunk: int = 1
    ) -> EngineRequest:
        return EngineRequest(
            request_id=self.request_id,
            sampling=self.sampling,
            prompt=self.prompt,
            messages=self.messages,
            enable_thinking=self.enable_thinking,
            adapter=adapter,
            stream=stream,
            tokens_per_chunk=tokens_per_chunk,
        )

    def problem_text(self) -> str:
        """What the user asked: the prompt, the only user message, or else the transcript."""
        if self.prompt is not None:
            return self.prompt
        asked = [message.content for message in self.messages if message.role != "system"]
        if len(asked) == 1:
            return asked[0]
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


def check_request(request: pb.GenerateRequest, limits: Limits) -> CheckedRequest:
    """Raises InvalidInputError; makes a request id when the client named none."""
    for field, value in (("request_id", request.request_id), ("adapter", request.adapter)):
        if len(value) > MAX_ID_CHARS or not value.isprintable():
            raise InvalidInputError(
                f"{field}: must be at most {MAX_ID_CHARS} printable characters, got {len(value)}: "
                f"{value[:40]!r}"
            )
    prompt, messages = _check_input(request)
    return CheckedRequest(
        request_id=request.request_id or uuid.uuid4().hex,
        sampling=_check_sampling(request.sampling, limits),
        prompt=prompt,
        messages=messages,
        enable_thinking=request.enable_thinking,
    )


def _check_input(request: pb.GenerateRequest) -> tuple[str | None, tuple[ChatMessage, ...]]:
    kind = request.WhichOneof("input")
    if kind is None:
        raise InvalidInputError("input: is missing; set prompt or conversation")
    if kind == "prompt":
        if not request.prompt:
            raise InvalidInputError("prompt: is empty; it must have at least one character")
        if request.enable_thinking:
            raise InvalidInputError(
                "enable_thinking: is set, but a raw prompt has no chat template; send a "
                "conversation"
            )
        return request.prompt, ()
    messages = request.conversation.messages
    if not messages:
        raise InvalidInputError("conversation.messages: is empty; send at least one message")
    if len(messages) > MAX_MESSAGES:
        raise InvalidInputError(
            f"conversation.messages: has {len(messages)}, at most {MAX_MESSAGES} are allowed"
        )
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidInputError(
                f"conversation.messages[{index}].role: is {message.role[:40]!r}, must be one of "
                f"{', '.join(ROLES)}"
            )
    if not any(message.role == "user" and message.content for message in messages):
        raise InvalidInputError("conversation.messages: no message of the user has any content")
    return None, tuple(ChatMessage(message.role, message.content) for message in messages)


def _check_sampling(sampling: pb.SamplingParams, limits: Limits) -> Sampling:
    max_tokens = min(limits.default_max_tokens, limits.max_model_len)
    if sampling.HasField("max_tokens"):
        max_tokens = sampling.max_tokens
        if not 1 <= max_tokens <= limits.max_model_len:
            raise _out_of_range(
                "max_tokens", max_tokens, f"1 to {limits.max_model_len} (the context)"
            )
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    if math.isnan(temperature) or not 0.0 <= temperature <= MAX_TEMPERATURE:
        raise _out_of_range("temperature", temperature, f"0 (greedy) to {MAX_TEMPERATURE:g}")
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    if math.isnan(top_p) or not 0.0 < top_p <= 1.0:
        raise _out_of_range("top_p", top_p, "more than 0, up to 1")
    top_k = sampling.top_k
    if top_k > limits.vocab_size:
        raise _out_of_range("top_k", top_k, f"0 (off) to {limits.vocab_size} (the vocabulary)")
    seed = sampling.seed if sampling.HasField("seed") else None
    if seed is not None and seed > MAX_SEED:
        raise _out_of_range("seed", seed, f"0 to {MAX_SEED}")
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=_check_stop(sampling),
        ignore_eos=sampling.ignore_eos,
    )


def _check_stop(sampling: pb.SamplingParams) -> tuple[str, ...]:
    if len(sampling.stop) > MAX_STOP_STRINGS:
        raise InvalidInputError(
            f"sampling.stop: has {len(sampling.stop)} strings, at most {MAX_STOP_STRINGS} are "
            "allowed"
        )
    for index, text in enumerate(sampling.stop):
        size_bytes = len(text.encode())
        if not 1 <= size_bytes <= MAX_STOP_BYTES:
            raise InvalidInputError(
                f"sampling.stop[{index}]: has {size_bytes} bytes, must have 1 to {MAX_STOP_BYTES}"
            )
    return tuple(sampling.stop)


def _out_of_range(field: str, value: float, allowed: str) -> InvalidInputError:
    return InvalidInputError(f"sampling.{field}: is {value}, must be {allowed}")
