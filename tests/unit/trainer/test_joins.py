"""Prompt and attempt are joined as token ids, whatever the tokenizer and the template.

Each tokenizer would read the joined text in another way than it was sampled: the ids must stay.
"""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from opsd.trainer.attempts import Attempt
from opsd.trainer.data import Pair
from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.methods.distil import Distillation
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.rollout import Rollout
from opsd.v1 import training_pb2

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}"
    "<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}<turn>{{ m.role }}\n{{ m.content }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} {% endif %}"
)


def _merges(alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocab = {c: i for i, c in enumerate(alphabet)}
    merges = []
    for left, right in (("a", "b"), ("ab", "a"), ("4", "2"), ("N", "o")):
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    return vocab, merges


def byte_level() -> Tokenizer:
    vocab, merges = _merges(sorted(pre_tokenizers.ByteLevel.alphabet()))
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def with_bos() -> Tokenizer:
    """Adds its own first token, as the template does too: there must be one."""
    made = byte_level()
    made.add_special_tokens(["<bos>"])
    bos = made.token_to_id("<bos>")
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    return made


def metaspace() -> Tokenizer:
    """A space goes to the front of the word, and one is put before the text."""
    characters = sorted({chr(code) for code in range(33, 127)} | {"▁", "\n", "<unk>"})
    vocab, merges = _merges(characters)
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    return made


CASES = {
    "byte-level, ChatML": (byte_level, CHATML, {"eos_token": "<|im_end|>"}),
    "pad = eos": (byte_level, CHATML, {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}),
    "own bos, headers": (with_bos, HEADERS, {"bos_token": "<bos>", "eos_token": "<|eot|>"}),
    "metaspace, turns": (metaspace, TURNS, {"bos_token": "<s>", "eos_token": "</turn>"}),
    "metaspace, bare": (metaspace, BARE, {"eos_token": "</s>"}),
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<turn>", "</turn>"]
PAIR = Pair("1", "ab + 42?", "aba\n", reference="42")


@pytest.fixture(params=CASES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    from transformers import PreTrainedTokenizerFast

    make, template, special = CASES[request.param]
    backend: Tokenizer = make()
    backend.add_special_tokens([*SPECIAL, *special.values()])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.chat_template = template
    return made


def spec(**prompt: Any) -> training_pb2.RunSpec:
    fields: dict[str, Any] = {
        "student_template": "{problem}",
        "teacher_template": "{problem} {context}",
        "solution_section": "{solution}",
        "teacher_thinking": True,
    }
    return training_pb2.RunSpec(
        prompt=training_pb2.PromptSpec(**(fields | prompt)),
        rollout=training_pb2.RolloutSpec(max_new_tokens=8, rollouts_per_problem=1),
        objective=training_pb2.ObjectiveSpec(
            method=training_pb2.METHOD_OPSD,
            divergence=training_pb2.DIVERGENCE_FORWARD_KL,
            clip_mode=training_pb2.CLIP_MODE_NONE,
        ),
    )


class Reasoner:
    """Writes tokens that would merge with their neighbours."""

    def __init__(self, maker: PromptMaker, ids: tuple[int, ...]) -> None:
        self.maker, self.ids = maker, ids

    def extend(self, prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [self.maker.join_reasoning(prompt, self.ids) for prompt in prompts]


def answer_of(
    tokenizer: Any, response: tuple[int, ...], reasoner: Callable[..., Any] | None
) -> Any:
    run = spec(reason_first_tokens=4 if reasoner else 0, reason_first_transition="b ab")
    maker = PromptMaker(tokenizer, run, 400)
    method = Distillation(
        None,  # type: ignore[arg-type]
        run,
        maker,
        reasoner(maker) if reasoner else None,
        EpistemicTokens(tokenizer, ()),
    )
    prompt = maker.student_ids(PAIR)
    assert prompt is not None
    [answer] = method.answers([Attempt(0, PAIR, prompt, Rollout(response, False), "")], {})
    return answer


def split_ids(tokenizer: Any) -> tuple[int, ...]:
    """a, b, a, 4, 2 each by itself, then the end: no tokenizer would make this of its text."""
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "a", "4", "2"])
    assert None not in ids
    text = tokenizer.decode(ids)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] != ids
    return (*ids, tokenizer.eos_token_id)


def rendered(tokenizer: Any, text: str, thinking: bool) -> str:
    result: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=thinking,
    )
    return result


def test_the_attempts_ids_follow_both_prompts_as_they_were_sampled(tokenizer: Any) -> None:
    response = split_ids(tokenizer)
    answer = answer_of(tokenizer, response, None)
    assert answer.response == response
    for ids, text, thinking in (
        (answer.student_prompt, "ab + 42?", False),
        (answer.teacher_prompt, "ab + 42? aba\n", True),
    ):
        expected = tokenizer(rendered(tokenizer, text, thinking), add_special_tokens=False)
        assert ids == tuple(expected["input_ids"])
        bos = tokenizer.bos_token_id
        assert bos is None or ids.count(bos) == 1


def test_what_the_teacher_wrote_first_is_kept_as_ids_too(tokenizer: Any) -> None:
    own = split_ids(tokenizer)[:-1]
    plain = answer_of(tokenizer, own, None)
    reasoned = answer_of(tokenizer, own, lambda maker: Reasoner(maker, own))
    transition = tuple(tokenizer("b ab", add_special_tokens=False)["input_ids"])
    asked = len(reasoned.teacher_prompt) - len(own) - len(transition)
    assert reasoned.teacher_prompt[asked:] == (*own, *transition)
    assert asked >= len(plain.teacher_prompt)
    assert reasoned.response == own
