"""A tiny decoder with a character tokenizer, in HF format: small enough to learn addition on one core in seconds.

The same builder makes random models of other architectures for the tests.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from learner.addition import CHARACTERS, TAGS

HEAD_SIZE = 32  # the smallest that vLLM takes on the CPU
PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


def build(
    directory: Path,
    *,
    architecture: str = "llama",
    hidden_size: int = 128,
    layers: int = 3,
    tied: bool = True,
    max_length: int = 512,
    characters: str = CHARACTERS,
    seed: int = 0,
) -> None:
    """Write config, random weights and tokenizer to `directory`; `architecture` is an HF model type.

    `hidden_size` is a multiple of 32, the size of a head.
    """
    tokenizer = character_tokenizer(characters, max_length)
    heads = hidden_size // HEAD_SIZE
    options: dict[str, Any] = {
        "vocab_size": 8 * (len(tokenizer) // 8 + 1),  # some room: AutoTokenizer adds a token of its own for some types
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": tied,
        "initializer_range": 0.06,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
    if architecture == "qwen2":
        del options["head_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **options))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def character_tokenizer(characters: str, max_length: int) -> PreTrainedTokenizerFast:
    """One token a character, one a tag; tags stay in decoded text, the end of a completion does not."""
    vocabulary = {piece: index for index, piece in enumerate([PAD, END, UNKNOWN, *TAGS, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, END, UNKNOWN)])
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
