"""The model itself: conversations in, one score each. Nothing else of the verifier imports torch or transformers.

Legend: B conversations of a batch, L tokens of the longest.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from verifier.config import RewardModelConfig
from verifier.rewards.score import BadAnswer, BadTask
from verifier.scoring.conversation import Conversation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_ROUNDS = 10  # in which special tokens are taken out of a text


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A checkpoint for sequence classification with one label, and the chat template that it was trained with.

    A batch is padded on the right with a token that occurs in none of its sequences: the model finds the last real
    token by it. Scores in batches are those one by one, up to the rounding of `dtype`; the same batch always gets the
    same scores.
    """

    network: Any
    tokenizer: Any
    config: RewardModelConfig
    device: torch.device
    special: re.Pattern[str]

    @classmethod
    def load(cls, config: RewardModelConfig) -> "RewardModel":
        """Read the folder. Raises `ValueError` that says what is wrong with it."""
        device = torch.device(config.device if config.device != "auto" else "cuda" if _cuda() else "cpu")
        if device.type == "cuda" and not _cuda():
            raise ValueError("reward_model.device=cuda: torch finds no CUDA device here")
        name = config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.path, local_files_only=True)
            network, report = AutoModelForSequenceClassification.from_pretrained(
                config.path, local_files_only=True, dtype=DTYPES[name], output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"reward_model.path={config.path}: {error}") from None
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"reward_model.path={config.path}: no trained head, the file lacks {missing[0]}")
        if network.config.num_labels != 1:
            raise ValueError(f"reward_model.path={config.path}: its head has {network.config.num_labels} labels, not 1")
        if config.chat_template:
            tokenizer.chat_template = Path(config.chat_template).read_text()
        if not tokenizer.chat_template:
            raise ValueError(
                f"reward_model.path={config.path}: its tokenizer has no chat template: give a Jinja file by "
                "reward_model.chat_template"
            )
        network.requires_grad_(False)
        return cls(network.to(device).eval(), tokenizer, config, device, _special(tokenizer))

    def encode(self, conversation: Conversation) -> list[int]:
        """Its tokens, by the chat template. Raises `BadTask` or `BadAnswer` for what is too long to be judged."""
        *before, completion = conversation
        marked = [*before, {**completion, "content": self._harmless(completion["content"])}]
        tokens = self._tokens(marked)
        if (longest := self.config.longest_tokens) < len(tokens):
            if len(self._tokens([*before, {**completion, "content": ""}])) > longest:
                raise BadTask(
                    f"what precedes the completion has more than reward_model.longest_tokens={longest} tokens"
                )
            raise BadAnswer(f"{len(tokens)} tokens with the prompt, more than {longest} are not judged")
        if not tokens:
            raise BadTask("the chat template made nothing of the conversation")
        return tokens

    def logits(self, sequences: Sequence[list[int]]) -> list[float]:
        """The head's output for each sequence of tokens; batches of at most `batch_tokens`, the short ones together."""
        found = [0.0] * len(sequences)
        for places in self._batches(sequences):
            for place, value in zip(places, self._forward([sequences[place] for place in places]), strict=True):
                found[place] = value
        return found

    def _tokens(self, conversation: Conversation) -> list[int]:
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _harmless(self, text: str) -> str:
        """`text` with a space in each piece that the tokenizer would take for a special token: it ends no message."""
        for _ in range(MOST_ROUNDS):
            text, count = self.special.subn(lambda found: f"{found[0][0]} {found[0][1:]}", text)
            if not count:
                return text
        raise BadAnswer("special tokens nested in special tokens")

    def _batches(self, sequences: Sequence[list[int]]) -> Iterator[list[int]]:
        """Places in `sequences`, so that a padded batch has at most `batch_tokens`, or is one sequence."""
        batch: list[int] = []
        for place in sorted(range(len(sequences)), key=lambda each: len(sequences[each])):
            if batch and (len(batch) + 1) * len(sequences[place]) > self.config.batch_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    @torch.inference_mode()
    def _forward(self, sequences: list[list[int]]) -> list[float]:
        used = {token for sequence in sequences for token in sequence}
        padding = next(token for token in range(len(used) + 1) if token not in used)
        self.network.config.pad_token_id = padding
        longest = max(map(len, sequences))
        tokens = torch.full((len(sequences), longest), padding)  # [B, L]
        mask = torch.zeros((len(sequences), longest), dtype=torch.long)  # [B, L]
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        output = self.network(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device))
        return [float(value) for value in output.logits.float().reshape(-1).tolist()]  # [B]


def be_steady(threads: int) -> None:
    """For this whole process: the same batch gets the same scores, from so many threads."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(threads)


def _cuda() -> bool:
    return torch.cuda.is_available()


def _special(tokenizer: Any) -> re.Pattern[str]:
    """The texts that the tokenizer takes for special tokens, the longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")
