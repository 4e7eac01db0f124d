"""What serving and the gate ask of an inference engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

BASE = "base"
"""The name that stands for the model without an adapter."""


@dataclass(frozen=True, slots=True)
class AdapterHandle:
    """An adapter as the engine knows it.

    ``lora_id`` is positive, grows with every new adapter and is never reused: vLLM keys weights by
    it and its prefix cache by ``(name, path)``.
    """

    name: str
    lora_id: int
    path: str
    sha256: str = field(default="", compare=False)  # of its content, where that is known


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens or the context's end


@dataclass(frozen=True, slots=True)
class Sampling:
    """Checked sampling parameters; ``temperature`` 0 is greedy, ``top_k`` 0 is off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()  # the one that ends a completion is its last token
    logprobs: bool = False  # of the sampled tokens, see EngineChunk


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One completion to make, of exactly one of ``prompt``, ``prompt_ids`` and ``messages``."""

    request_id: str
    sampling: Sampling
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None  # token ids, taken as they are
    messages: tuple[ChatMessage, ...] = ()
    enable_thinking: bool = False
    adapter: AdapterHandle | None = None  # None: base
    priority: int = 0  # lower is served first; users are 0
    stream: bool = True  # False: one chunk, at the end, which costs the engine less
    tokens_per_chunk: int = 1  # of a stream; the first and the last chunk may hold fewer


@dataclass(frozen=True, slots=True)
class EngineChunk:
    """A piece of a completion; the last one carries ``finish_reason``."""

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_completion_tokens: int  # so far
    finish_reason: FinishReason | None = None
    first_token_s: float = 0.0  # from the engine's receipt of the request; in the last chunk
    # Where asked for, one a token: nats, of the model's distribution at temperature 1, before
    # top-p and top-k.
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely the model finds an answer that is given, token by token."""

    request_id: str
    messages: tuple[ChatMessage, ...]
    answer_ids: tuple[int, ...]  # at least one
    num_top: int  # most likely tokens to be told at each position, at most 20
    max_tokens: int  # of prompt and answer; the answer's end beyond them is left out
    enable_thinking: bool = False
    adapter: AdapterHandle | None = None  # None: base
    priority: int = 0


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One position of the answer: log-probabilities in nats, of the model's distribution at
    temperature 1, of the ``num_top`` most likely tokens and the one that stands there."""

    token_id: int
    logprobs: Mapping[int, float]


class AnswerScorer(Protocol):
    """An engine that scores what is given."""

    async def score(self, request: ScoreRequest) -> tuple[TokenScore, ...]:
        """One entry for each of ``answer_ids`` that there is room for; none when there is for none.

        Raises InvalidInputError or EngineError.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineHealth:
    healthy: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts fixed when the engine started."""

    model_path: str
    max_model_len: int  # tokens
    vocab_size: int
    max_loras: int
    max_lora_rank: int
    extra: dict[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """An inference engine that holds one model and several LoRA adapters.

    Closing the iterator that ``generate`` returns (or cancelling the task that iterates it) stops
    the engine's work on that request.
    """

    @property
    def info(self) -> EngineInfo: ...

    async def start(self) -> None:
        """Loads the model and makes a few warm-up completions; raises EngineError."""

    async def stop(self) -> None: ...

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineChunk]:
        """Streams a completion; raises InvalidInputError (prompt too long) or EngineError."""
        ...

    async def load_adapter(self, adapter: AdapterHandle) -> None:
        """Makes the adapter ready to be used without a stall; loading it twice is a no-op."""

    async def unload_adapter(self, adapter: AdapterHandle) -> None:
        """Frees it; the caller has made sure that nothing uses it."""

    async def health(self) -> EngineHealth: ...
