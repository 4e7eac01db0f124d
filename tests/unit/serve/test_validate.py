"""Every field of a request has bounds, and every refusal names field, value and bounds."""

from __future__ import annotations

import pytest

from opsd.daemon.errors import InvalidInputError
from opsd.daemon.serve.validate import Limits, check_request
from opsd.daemon.types.engine import ChatMessage, Sampling
from opsd.v1 import inference_pb2 as pb

LIMITS = Limits(max_model_len=100, vocab_size=300, default_max_tokens=512)
P = pb.SamplingParams


def chat(*messages: tuple[str, str]) -> pb.Conversation:
    return pb.Conversation(messages=[pb.Message(role=r, content=c) for r, c in messages])


def test_defaults() -> None:
    checked = check_request(pb.GenerateRequest(prompt="hi"), LIMITS)
    assert checked.sampling == Sampling(max_tokens=100)
    assert (checked.prompt, checked.messages) == ("hi", ())
    assert checked.request_id


def test_everything_set() -> None:
    sampling = P(
        max_tokens=7, temperature=0, top_p=0.5, top_k=3, seed=9, stop=["a", "é"], ignore_eos=True
    )
    request = pb.GenerateRequest(
        conversation=chat(("system", "be brief"), ("user", "1+1")),
        sampling=sampling,
        enable_thinking=True,
        request_id="mine",
    )
    checked = check_request(request, LIMITS)
    assert checked.sampling == Sampling(7, 0.0, 0.5, 3, 9, ("a", "é"), True)
    assert checked.messages == (ChatMessage("system", "be brief"), ChatMessage("user", "1+1"))
    assert checked.request_id == "mine"
    assert checked.enable_thinking
    assert checked.problem_text() == "1+1"


def test_transcript_of_a_longer_conversation() -> None:
    conversation = chat(("user", "1+1"), ("assistant", "2"), ("user", "+1"))
    checked = check_request(pb.GenerateRequest(conversation=conversation), LIMITS)
    assert checked.problem_text() == "user: 1+1\nassistant: 2\nuser: +1"


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (P(max_tokens=0), r"sampling.max_tokens: is 0, must be 1 to 100 \(the context\)"),
        (P(max_tokens=101), "sampling.max_tokens: is 101, must be 1 to 100"),
        (P(temperature=float("nan")), r"sampling.temperature: is nan, must be 0 \(greedy\) to 2"),
        (P(temperature=-0.1), "sampling.temperature: is -0.1"),
        (P(temperature=2.01), "sampling.temperature: is 2.01"),
        (P(temperature=float("inf")), "sampling.temperature: is inf"),
        (P(top_p=0), "sampling.top_p: is 0.0, must be more than 0, up to 1"),
        (P(top_p=1.01), "sampling.top_p: is 1.01"),
        (P(top_p=float("nan")), "sampling.top_p: is nan"),
        (P(top_k=301), r"sampling.top_k: is 301, must be 0 \(off\) to 300 \(the vocabulary\)"),
        (P(seed=1 << 63), "sampling.seed: is 9223372036854775808, must be 0 to"),
        (P(stop=["x"] * 17), "sampling.stop: has 17 strings, at most 16"),
        (P(stop=["x", "é" * 129]), r"sampling.stop\[1\]: has 258 bytes, must have 1 to 256"),
        (P(stop=[""]), r"sampling.stop\[0\]: has 0 bytes"),
    ],
)
def test_sampling_out_of_range(sampling: pb.SamplingParams, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_request(pb.GenerateRequest(prompt="hi", sampling=sampling), LIMITS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.GenerateRequest(), "input: is missing; set prompt or conversation"),
        (pb.GenerateRequest(prompt=""), "prompt: is empty"),
        (pb.GenerateRequest(prompt="x", enable_thinking=True), "send a conversation"),
        (pb.GenerateRequest(conversation=chat()), "conversation.messages: is empty"),
        (
            pb.GenerateRequest(conversation=chat(("user", "hi"), ("tool", "x"))),
            r"conversation.messages\[1\].role: is 'tool', must be one of system, user, assistant",
        ),
        (pb.GenerateRequest(conversation=chat(("user", ""))), "no message of the user"),
        (pb.GenerateRequest(conversation=chat(("system", "x"))), "no message of the user"),
        (pb.GenerateRequest(conversation=chat(*[("user", "x")] * 1025)), "has 1025, at most 1024"),
        (pb.GenerateRequest(prompt="x", request_id="a" * 129), "request_id: must be at most 128"),
        (pb.GenerateRequest(prompt="x", request_id="a\nb"), "request_id: .* printable"),
        (pb.GenerateRequest(prompt="x", adapter="a" * 129), "adapter: must be at most 128"),
    ],
)
def test_malformed_input(request_: pb.GenerateRequest, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_request(request_, LIMITS)
