"""Packed sequences against padded rows: tokens a second of the forward and backward pass, on one thread.

    python tests/bench/packing.py [--sequences 256] [--budget 16384] [--repeats 7] [--out packing.json]

Both train the quickstart's model on the same sequences, alternating, and are timed by the CPU seconds that they use,
so that a busy machine treats them alike. Padded rows are what the learner would do without packing: transformers' own
attention on rectangles of at most `--budget` places, cut from the sequences by falling length.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner import tiny
from learner.batch import TrainingSequence, assemble, fill
from learner.policy import attention
from learner.policy.cost import cost_of
from learner.policy.linear import speed_up
from learner.policy.logprobs import chunked_logprobs

CHUNK = 1024  # completion tokens whose logits exist at the same time, as in the learner
VOCABULARY = 20
Lengths = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def equal_lengths(random: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
    """Nothing to gain: rectangles hold no padding."""
    return np.full(count, 9), np.full(count, 23)


def quickstart_lengths(random: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
    """Additions of two digits: traces of a token more or less, and a few that answer without thinking."""
    completions = random.integers(24, 28, count)
    return np.full(count, 6), np.where(random.random(count) < 0.05, 6, completions)


def heavy_tailed_lengths(random: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
    """Short prompts, and completions of which a few are very long."""
    return np.full(count, 9), np.clip(random.lognormal(4.0, 1.0, count), 8, 503).astype(np.int64)


CASES = {"equal": equal_lengths, "quickstart": quickstart_lengths, "heavy-tailed": heavy_tailed_lengths}


def sequences_of(prompts: Lengths, completions: Lengths, random: np.random.Generator) -> list[TrainingSequence]:
    """Random tokens of these lengths."""
    return [
        TrainingSequence(
            prompt_ids=random.integers(3, VOCABULARY, prompt).astype(np.int32),
            token_ids=random.integers(3, VOCABULARY, completion).astype(np.int32),
            behaviour_logprobs=np.zeros(completion, dtype=np.float32),
            staleness=np.zeros(completion, dtype=np.int32),
            advantage=1.0,
            token_weight=1.0,
            index=index,
            group=index,
        )
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def backward(network: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor) -> float:
    """From the states [N, E] that predict the targets [N] to the gradient; returns the mean log-probability."""
    head = network.get_output_embeddings()
    logprobs, _ = chunked_logprobs(states, head.weight, head.bias, targets, temperature=1.0, chunk=CHUNK)
    loss = -logprobs.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return -float(loss.detach())


def packed(network: PreTrainedModel, sequences: list[TrainingSequence], budget: int) -> list[float]:
    """Forward and backward of every packed micro-batch."""
    means = []
    for (rows,) in fill(sequences, budget=budget, cost=cost_of(network), world=1):
        batch = assemble(rows, torch.device("cpu"))
        hidden = network.base_model(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(0),
            packing=batch.packing,
            use_cache=False,
        ).last_hidden_state
        means.append(backward(network, hidden[0, batch.positions], batch.targets))
    return means


def padded(network: PreTrainedModel, sequences: list[TrainingSequence], budget: int) -> list[float]:
    """Forward and backward of every padded micro-batch."""
    means = []
    for rows in rectangles(sequences, budget):
        longest = rows[0].length
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        places = []
        for place, row in enumerate(rows):
            ids[place, : row.length] = np.concatenate([row.prompt_ids, row.token_ids])
            places.append(place * longest + np.arange(len(row.prompt_ids), row.length) - 1)
        hidden = network.base_model(input_ids=torch.tensor(ids), use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1)[torch.tensor(np.concatenate(places))]
        targets = np.concatenate([row.token_ids for row in rows]).astype(np.int64)
        means.append(backward(network, chosen, torch.tensor(targets)))
    return means


def rectangles(sequences: list[TrainingSequence], budget: int) -> list[list[TrainingSequence]]:
    """Sequences by falling length, cut where one more row would exceed the budget."""
    cuts: list[list[TrainingSequence]] = []
    for sequence in sorted(sequences, key=lambda item: -item.length):
        if cuts and (len(cuts[-1]) + 1) * cuts[-1][0].length <= budget:
            cuts[-1].append(sequence)
        else:
            cuts.append([sequence])
    return cuts


def measure(sequences: list[TrainingSequence], budget: int, repeats: int, directory: Path) -> dict[str, list[float]]:
    """CPU seconds of both ways, one after the other, `repeats` times after a warm-up."""
    ways: dict[str, tuple[Callable[[PreTrainedModel, list[TrainingSequence], int], list[float]], PreTrainedModel]] = {}
    for way, implementation in ((padded, "sdpa"), (packed, attention.NAME)):
        network = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation=implementation
        )
        speed_up(network)
        ways[way.__name__] = (way, network)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, (way, network) in ways.items():
            network.zero_grad()
            began = time.process_time()
            way(network, sequences, budget)
            if repeat:
                seconds[name].append(time.process_time() - began)
    return seconds


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("packing.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print(f"{'':14}{'tokens':>8}{'padding':>9}{'padded tokens/s':>17}{'packed tokens/s':>17}{'packed / padded':>17}")
    with tempfile.TemporaryDirectory() as temporary:
        tiny.build(Path(temporary))
        for name, lengths in CASES.items():
            random = np.random.default_rng(0)
            sequences = sequences_of(*lengths(random, options.sequences), random)
            tokens = sum(sequence.length for sequence in sequences)
            places = sum(len(rows) * rows[0].length for rows in rectangles(sequences, options.budget))
            seconds = measure(sequences, options.budget, options.repeats, Path(temporary))
            rates = {way: tokens / statistics.median(each) for way, each in seconds.items()}
            padding = places / tokens - 1
            results[name] = {"tokens": tokens, "padding": padding, "tokens_per_second": rates, "cpu_seconds": seconds}
            print(
                f"{name:14}{tokens:8}{padding:9.1%}{rates['padded']:17.0f}{rates['packed']:17.0f}"
                f"{rates['packed'] / rates['padded']:17.3f}"
            )
    content = {"machine": platform.platform(), "sequences": options.sequences, "budget": options.budget}
    options.out.write_text(json.dumps(content | {"torch": torch.__version__, "cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
