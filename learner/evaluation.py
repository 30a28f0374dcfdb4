"""How good a checkpoint is at addition: it samples answers to held-out problems, at temperature 1 and in plain torch.

This is the policy that RL starts from, so nothing is greedy. The verifier's rewards judge the run itself; here the same
two questions are asked of a text of which we know the one right form.
"""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner import addition

BATCH = 128  # problems sampled together
TEMPLATE = re.compile(r"<think>[^<]*</think>\s*<answer>([^<]*)</answer>")
ANSWER = re.compile(r"<answer>([^<]*)</answer>")


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of the sampled completions."""

    problems: int
    accuracy: float  # the number between the answer tags is the sum
    format: float  # nothing but one thought and one answer

    @property
    def reward(self) -> float:
        """The quickstart's mean reward: accuracy and format, equally weighted."""
        return 0.5 * self.accuracy + 0.5 * self.format


def judge(a: int, b: int, completion: str) -> tuple[bool, bool]:
    """Whether the answer to a + b is right, and whether the completion keeps to the template."""
    answer = ANSWER.search(completion)
    right = answer is not None and answer[1].strip() == str(a + b)
    return right, TEMPLATE.fullmatch(completion.strip()) is not None


def addition_score(directory: Path, *, problems: int, digits: int, seed: int, device: torch.device) -> Score:
    """Sample one completion to each of `problems` held-out problems from the HF checkpoint in `directory`."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    network = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).eval()
    asked = held_out_problems(problems, digits, seed)
    longest = 2 * len(tokenizer(addition.completion(*asked[0]))["input_ids"])  # faults make traces shorter, not longer
    judged: list[tuple[bool, bool]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        for part in alike([(a, b, tokenizer(addition.prompt(a, b))["input_ids"]) for a, b in asked]):
            prompts = torch.tensor([ids for _, _, ids in part], device=device)  # [B, P]
            sampled = network.generate(  # [B, P + T]
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=longest,
            )
            texts = tokenizer.batch_decode(sampled[:, prompts.shape[1] :], skip_special_tokens=True)
            judged += [judge(a, b, text) for (a, b, _), text in zip(part, texts, strict=True)]
    rights, forms = zip(*judged, strict=True)
    return Score(problems, sum(rights) / problems, sum(forms) / problems)


def alike(prompts: list[tuple[int, int, list[int]]]) -> Iterator[list[tuple[int, int, list[int]]]]:
    """Problems with their token ids, cut into batches of equally long prompts, so that nothing is padded."""
    by_length = sorted(prompts, key=lambda item: len(item[2]))
    for _, same in itertools.groupby(by_length, key=lambda item: len(item[2])):
        rest = list(same)
        yield from (rest[start : start + BATCH] for start in range(0, len(rest), BATCH))


def held_out_problems(count: int, digits: int, seed: int) -> list[tuple[int, int]]:
    """Problems that training never sees, with repetitions where there are few."""
    chance = random.Random(seed)
    found: list[tuple[int, int]] = []
    while len(found) < count:
        a, b = addition.operands(chance, digits)
        if addition.held_out(a, b):
            found.append((a, b))
    return found
