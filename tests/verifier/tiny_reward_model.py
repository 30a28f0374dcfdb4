"""A random classifier with one label over single characters, in HF format."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

TEMPLATE = "{% for message in messages %}<turn>{{ message.role }}\n{{ message.content }}<end>{% endfor %}"
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789<>/.?!"


def build(
    folder: Path,
    architecture: str = "llama",
    labels: int = 1,
    template: str = TEMPLATE,
    longest: int = 512,
    hidden: int = 32,
) -> Path:
    """A random classifier over characters."""
    pieces = ["<pad>", "<unk>", "<turn>", "<end>", *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:4]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<turn>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template or None
    options: dict[str, Any] = {
        "vocab_size": len(pieces) + 8,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": longest,
        "num_labels": labels,
        "pad_token_id": 0,
        "initializer_range": 0.5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **options)).save_pretrained(
            folder
        )
    fast.save_pretrained(folder)
    return folder
