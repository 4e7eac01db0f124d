"""The tiny tokenizer: byte-level BPE with every digit on its own, and a ChatML template."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from opsd.trainer.tiny.problems import TEACHER_PROMPT, Operands, Phrasing, draw, phrase

NUM_TOKENS = 377
PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
MAX_LENGTH_TOKENS = 512

# The model is pretrained without thinking, so the plain form is thinking off; thinking on opens a
# block that the model must close itself.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking %}{{- '<think>\n' }}{%- endif %}"
    "{%- endif %}"
)

_CORPUS_SIZE = 2000


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer. It is the same for every seed and encodes any UTF-8 text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=[PAD, BEGIN, END, THINK, END_THINK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[BEGIN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    """Return texts in the proportions the model will see them in, without special tokens."""
    rng = random.Random("opsd tiny tokenizer")
    texts: list[str] = []
    for _ in range(_CORPUS_SIZE):
        problem = draw(rng, rng.randint(1, 4), Operands.ANY)
        said = phrase(problem, Phrasing.WORD, rng)
        solution = problem.reference_solution()
        asked = TEACHER_PROMPT.format(problem=said, solution=solution)
        texts.append(f"user\n{asked}\nassistant\n{problem.worked_solution()}\n")
    return texts


def render_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """Return the text of one user message with the assistant's turn opened, thinking off."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert isinstance(text, str), "a template rendered without tokenizing gives text"
    return text
