"""No text becomes a control token when it is tokenised; nothing else about it changes."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from opsd.daemon.collect.hygiene.control_tokens import ControlTokens, read_control_tokens
from opsd.daemon.errors import ConfigError

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<turn>",
    "</think>",
    "<\uff5cUser\uff5c>",
    "[INST]",
)
TOKENS = ControlTokens(SPECIAL)
TRICKS = (
    "a <|im_end|> b",
    "<|im_<|im_start|>start|>",
    "<|im_start|><|im_end|>",
    "<<s>s>",
    "</</s>s>",
    "<|IM_START|>",
    "\uff1c|im_start|\uff1e",
    "<|im\u200b_start|>",
    "<|\u00adim_end|>",
    "<|im_st\u0301art|>",
    "<\uff53>",
    "<\u2060/s>",
    "<|User|>",
    "<\uff5cUser\uff5c>",
    "\u2100<s>",
)


def byte_level(normalizer: Any = None, is_normalized: bool = False) -> Tokenizer:
    """Of the kind that Qwen and Llama have; ``is_normalized``: tokens are looked for after the
    normaliser."""
    from tokenizers import AddedToken

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=is_normalized) for token in SPECIAL]
    )
    return made


def metaspace() -> Tokenizer:
    """Of the kind that Gemma and Mistral have."""
    characters = sorted({chr(code) for code in range(33, 127)} | {"▁", "\n", "<unk>"})
    made = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[], unk_token="<unk>")
    )
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.add_special_tokens(list(SPECIAL))
    return made


TOKENIZERS = {
    "byte-level": byte_level(),
    "metaspace": metaspace(),
    "NFKC": byte_level(normalizers.NFKC(), is_normalized=True),
    "BERT": byte_level(
        normalizers.Sequence(
            [
                normalizers.BertNormalizer(strip_accents=True, lowercase=True),
                normalizers.NFKC(),
                normalizers.Lowercase(),
            ]
        ),
        is_normalized=True,
    ),
}


def special_ids(tokenizer: Tokenizer, text: str) -> list[str]:
    special = {tokenizer.token_to_id(token): token for token in SPECIAL}
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [special[one] for one in ids if one in special]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TRICKS)
def test_no_tokenizer_sees_a_control_token(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert special_ids(tokenizer, TOKENS.neutralise(text)) == []


def test_the_tricks_are_tricks() -> None:
    """Each tokenizer falls for several of them as they are given."""
    for name, tokenizer in TOKENIZERS.items():
        fooled = [text for text in TRICKS if special_ids(tokenizer, text)]
        assert len(fooled) >= 6, name
    assert special_ids(TOKENIZERS["NFKC"], "\uff1c|im_start|\uff1e")
    assert special_ids(TOKENIZERS["BERT"], "<|im\u200b_start|>")


def test_it_reads_the_same_and_nothing_invisible_is_put_in() -> None:
    assert TOKENS.neutralise("say <|im_end|> twice") == "say < |im_end|> twice"
    assert TOKENS.neutralise("<|im_<|im_start|>start|>") == "<|im_< |im_start|>start|>"
    for text in TRICKS:
        made = TOKENS.neutralise(text)
        assert made.replace(" ", "") == text.replace(" ", "")
        assert not any(unicodedata.category(c) == "Cf" for c in set(made) - set(text))


def test_other_text_stays() -> None:
    for text in (
        "if a<b and c>d: return a",
        "x </ y",
        "a < s > b",
        "[inst",
        "Zoë: 3 ≤ 4",
        "",
        "<p>",
    ):
        assert TOKENS.neutralise(text) == text
        assert TOKENS.find(text) == ()
    assert ControlTokens(()).neutralise("<s>") == "<s>"


def test_what_is_found_is_named_as_the_tokenizer_spells_it() -> None:
    assert TOKENS.find("a <|IM_END|> b <s> <s>") == ("<|im_end|>", "<s>")


PIECES = st.sampled_from(
    [*SPECIAL, "<", "|", ">", "im_", "start", "\u200b", "\uff1c", "s", "/", " ", "é"]
)


@given(st.lists(PIECES).map("".join) | st.text())
def test_whatever_is_put_together(text: str) -> None:
    made = TOKENS.neutralise(text)
    assert TOKENS.find(made) == ()
    assert TOKENS.neutralise(made) == made
    assert made.replace(" ", "") == text.replace(" ", "")
    for tokenizer in TOKENIZERS.values():
        assert special_ids(tokenizer, made) == []


def test_tokens_come_from_the_models_files(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>", "ordinary", "    "])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {
        "eos_token": "<|end|>",
        "bos_token": {"content": "<bos>"},
        "pad_token": None,
        "additional_special_tokens": ["<tool>"],
        "added_tokens_decoder": {"7": {"content": "<|box|>", "special": True}},
        "chat_template": "…",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<obj>": 1, "word": 2}))
    found = read_control_tokens(tmp_path)
    assert found == {*SPECIAL, "<think>", "<|end|>", "<bos>", "<tool>", "<|box|>", "<obj>"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_control_tokens(tmp_path) == frozenset()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not JSON"):
        read_control_tokens(tmp_path)


def test_the_tokens_of_transformers_own_files(micro_tokenizer: Path) -> None:
    assert read_control_tokens(micro_tokenizer) == {*SPECIAL}


@pytest.fixture
def micro_tokenizer(tmp_path: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.save_pretrained(tmp_path)
    return tmp_path
