"""Write a tiny Llama with random weights as Hugging Face has it: ``python tiny_vllm_model.py FOLDER`` (needs transformers).

vLLM serves it on a CPU. Each byte is a token, as in tiny_model.py, and nothing is put before a prompt.
"""

from __future__ import annotations

import sys

import torch  # type: ignore[import-not-found, unused-ignore]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # type: ignore[import-not-found, unused-ignore]
from transformers import (  # type: ignore[import-not-found, unused-ignore]
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WIDTH = 128
HEADS = 2  # of 64: vLLM's attention on a CPU takes none smaller than 32
LAYERS = 2
CONTEXT = 2048
SEED = 1


def write_model(folder: str) -> None:
    """Write model and tokenizer into *folder*."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)  # noqa: S106 # no secret
    torch.manual_seed(SEED)
    shape = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)


if __name__ == "__main__":
    write_model(sys.argv[1])
