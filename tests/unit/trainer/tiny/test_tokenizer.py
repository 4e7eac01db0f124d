import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from opsd.trainer.tiny.model import VOCAB_SIZE, make_model
from opsd.trainer.tiny.tokenizer import NUM_TOKENS, make_tokenizer, render_prompt

MESSAGES = [{"role": "user", "content": "61-40-19"}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@given(text=st.text())
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= i < NUM_TOKENS for i in ids)


def test_size_fits_the_models_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == NUM_TOKENS <= VOCAB_SIZE


def test_training_is_deterministic(tokenizer: PreTrainedTokenizerFast) -> None:
    assert make_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("x2026=9") == ["x", "2", "0", "2", "6", "=", "9"]


def test_the_plain_prompt_is_thinking_off(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert plain == "<|im_start|>user\n61-40-19<|im_end|>\n<|im_start|>assistant\n"
    assert plain == render_prompt(tokenizer, "61-40-19")


@pytest.mark.parametrize("enable_thinking", [False, True])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_template_options(
    tokenizer: PreTrainedTokenizerFast, enable_thinking: bool, add_generation_prompt: bool
) -> None:
    text = tokenizer.apply_chat_template(
        MESSAGES,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
    )
    assert ("assistant" in text) is add_generation_prompt
    assert text.endswith("<think>\n") is (enable_thinking and add_generation_prompt)


def test_the_model_knows_the_tokenizers_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    config = make_model(tokenizer, seed=0).config
    assert config.vocab_size == VOCAB_SIZE
    assert tokenizer.decode([config.eos_token_id]) == "<|im_end|>"
    assert tokenizer.decode([config.pad_token_id]) == "<|endoftext|>"
    assert tokenizer.decode([config.bos_token_id]) == "<|im_start|>"
