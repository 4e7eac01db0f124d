"""Tokens as text: characters that several tokens make, spaces, special tokens, odd ids."""

from pathlib import Path
from typing import Any

import pytest

from opsd.trainer.token_text import TokenTexts


@pytest.fixture
def byte_level(micro_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(micro_model)


@pytest.fixture
def byte_fallback() -> Any:
    """As SentencePiece has it: ▁ for a space, the first one dropped, tokens of one byte."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁so", "▁a", "a"]
    vocab = {name: number for number, name in enumerate(names)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


def shown(texts: TokenTexts, ids: list[int]) -> list[str]:
    return [text for text, _ in texts.sequence(tuple(ids))]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def test_a_character_stands_with_the_token_that_completes_it(byte_level: Any) -> None:
    texts = TokenTexts(byte_level)
    assert shown(texts, ids_of(byte_level, "né 😀!")) == [
        "n", "⟨c3⟩", "é", " ", "⟨f0⟩", "⟨9f⟩", "⟨98⟩", "😀", "!",
    ]  # fmt: skip


def test_an_alternative_is_read_in_its_place(byte_level: Any) -> None:
    texts = TokenTexts(byte_level)
    *_, pending = (left for _, left in texts.sequence(tuple(ids_of(byte_level, "😀"))))
    assert pending == b"\xf0\x9f\x98"
    last = ids_of(byte_level, "😃")[-1]
    assert texts.next(last, pending) == ("😃", b"")
    assert texts.next(last) == ("⟨83⟩", b"")


def test_a_character_that_is_never_finished(byte_level: Any) -> None:
    texts = TokenTexts(byte_level)
    begun = ids_of(byte_level, "😀")[:2]
    end = byte_level.eos_token_id
    assert shown(texts, [*begun, ids_of(byte_level, "x")[0], end]) == [
        "⟨f0⟩", "⟨9f⟩", "x", "<|im_end|>",
    ]  # fmt: skip
    assert shown(texts, [*begun, *ids_of(byte_level, "é")]) == ["⟨f0⟩", "⟨9f⟩", "⟨c3⟩", "é"]


def test_an_id_beyond_the_tokenizer_has_no_text(byte_level: Any) -> None:
    assert TokenTexts(byte_level).next(len(byte_level) + 5) == ("", b"")


def test_byte_tokens_and_dropped_spaces(byte_fallback: Any) -> None:
    texts = TokenTexts(byte_fallback)
    so, emoji = byte_fallback.convert_tokens_to_ids("▁so"), ids_of(byte_fallback, "😀")
    assert shown(texts, [so, *emoji, so]) == [" so", "⟨f0⟩", "⟨9f⟩", "⟨98⟩", "😀", " so"]
    assert shown(texts, [*emoji[:2], so]) == ["⟨f0⟩", "⟨9f⟩", " so"]


@pytest.mark.parametrize("text", ["wait, maybe", "ünïcödé – ok", "a\n\tb  c", "日本語"])
def test_whole_characters_make_the_decoded_text(byte_level: Any, text: str) -> None:
    parts = shown(TokenTexts(byte_level), ids_of(byte_level, text))
    assert "".join(part for part in parts if not part.startswith("⟨")) == text
