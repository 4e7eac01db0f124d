"""From our requests to vLLM's, and from vLLM's answers and errors to ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opsd.daemon.errors import EngineError, InvalidInputError
from opsd.daemon.types.engine import EngineRequest, FinishReason, TokenScore

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def check_length(num_prompt_tokens: int, max_model_len: int) -> None:
    """Raises InvalidInputError unless the context has room for the prompt and one token more."""
    if num_prompt_tokens == 0:
        raise InvalidInputError("the prompt is empty: it has no tokens")
    if num_prompt_tokens >= max_model_len:
        raise InvalidInputError(
            f"the prompt has {num_prompt_tokens} tokens, but the context has {max_model_len} and "
            "one at least must be left for the completion: shorten it to "
            f"{max_model_len - 1} tokens"
        )


def token_ids(tokenizer: Any, request: EngineRequest) -> list[int]:
    if request.prompt is not None:
        return list(tokenizer.encode(request.prompt))
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=request.enable_thinking,
        )
    except Exception as error:
        # Templates refuse conversations with exceptions of jinja's own, e.g. roles that do not
        # alternate; a model without a template raises ValueError.
        raise InvalidInputError(
            f"conversation: the model's chat template refuses it: {one_line(error)}"
        ) from error
    # The template writes the special tokens itself.
    return list(tokenizer.encode(text, add_special_tokens=False))


def sampling_params(request: EngineRequest, room_tokens: int) -> Any:
    """``room_tokens``: what the context leaves for the completion."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling = request.sampling
    return SamplingParams(
        max_tokens=min(sampling.max_tokens, room_tokens),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop) or None,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=list(sampling.stop_token_ids) or None,
        # 0: none but the sampled token's; vLLM's default mode takes them from the raw logits.
        logprobs=0 if sampling.logprobs else None,
        # A reader of log-probabilities counts tokens; it has no use for text.
        detokenize=not sampling.logprobs,
        flat_logprobs=True,
        output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
        # vLLM counts the tokens of larger chunks in its detokenizer.
        stream_interval=1 if sampling.logprobs else request.tokens_per_chunk,
        skip_clone=True,
    )


def scoring_params(num_top: int) -> Any:
    """For log-probabilities of a prompt: the tokens that stand there and the likeliest ones."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=num_top,
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def token_scores(
    flat: Any, num_prompt_tokens: int, answer_ids: Sequence[int]
) -> tuple[TokenScore, ...]:
    """Of the positions after the prompt; EngineError when the engine left some out."""
    found = 0 if flat is None else len(flat)
    if found != num_prompt_tokens + len(answer_ids):
        raise EngineError(
            f"the engine scored {found} of {num_prompt_tokens + len(answer_ids)} tokens"
        )
    scores = []
    for place, token_id in enumerate(answer_ids, start=num_prompt_tokens):
        span = slice(flat.start_indices[place], flat.end_indices[place])
        scores.append(
            TokenScore(token_id, dict(zip(flat.token_ids[span], flat.logprobs[span], strict=True)))
        )
    return tuple(scores)


def sampled_logprobs(completion: Any) -> tuple[float, ...]:
    """One a token of the completion; empty where none were asked for."""
    if completion.logprobs is None:
        return ()
    flat = completion.logprobs
    return tuple(flat.logprobs[start] for start in flat.start_indices)


def clean_text(text: str) -> str:
    """Text that can be UTF-8: a lone surrogate, which no valid text has, becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def finish_reason(reason: str | None) -> FinishReason | None:
    if reason is None:
        return None
    if reason not in _FINISH_REASONS:
        raise EngineError(f"the engine gave the completion up ({reason}); send the request again")
    return _FINISH_REASONS[reason]


def first_token_s(output: Any) -> float:
    return 0.0 if output.metrics is None else float(output.metrics.first_token_latency)


def translated(error: Exception, llm: AsyncLLM) -> Exception:
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineError | InvalidInputError):
        return error
    if isinstance(error, EngineDeadError) or llm.errored:
        return EngineError("the engine's process died during the request; it is being restarted")
    if isinstance(error, VLLMClientError | ValueError):
        return InvalidInputError(f"the engine refuses the request: {one_line(error)}")
    return EngineError(f"the engine failed on the request: {one_line(error)}")


def one_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text[:500]
