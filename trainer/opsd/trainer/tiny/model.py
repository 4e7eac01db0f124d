"""The tiny model: a Qwen3 of 332,640 parameters, initialised so that it learns in minutes."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opsd.trainer.tiny.tokenizer import MAX_LENGTH_TOKENS

VOCAB_SIZE = 384

# Standard deviations. With transformers' default of 0.02 throughout, nothing was learned in 900
# steps; projections that write to the residual stream start smaller so that depth stays tame.
INIT_STD = 0.06
RESIDUAL_INIT_STD = 0.02
EMBEDDING_INIT_STD = 0.1
RESIDUAL_PROJECTIONS = ("o_proj", "down_proj")


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return a freshly initialised fp32 model; the same seed gives the same weights."""
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        use_cache=True,
    )
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_INIT_STD, generator=generator)
        elif isinstance(module, nn.Linear) and name != "lm_head":
            is_residual = name.endswith(RESIDUAL_PROJECTIONS)
            std = RESIDUAL_INIT_STD if is_residual else INIT_STD
            nn.init.normal_(module.weight, std=std, generator=generator)
    return model
