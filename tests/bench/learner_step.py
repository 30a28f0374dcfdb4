"""The learner's step against the same step in plain transformers: tokens a second, peak memory, MFU, phases.

    python -m tests.bench.learner_step --model small --lengths equal,lognormal --out learner_step.json
    python -m tests.bench.learner_step --device cuda --model qwen3-0.6b --sequences 16 --length 8192 --lengths equal

Both sides train the same random weights on the same sequences by the same loss (`learner_step_sides`), each in a fresh
process of its own. On the CPU they take turns, so that a noisy machine treats them alike; a GPU they have one after the
other, whole. Nothing is downloaded. MFU counts the arithmetic that the step needs, not what is padded or recomputed,
against the fastest float32 product measured here in the same run (both in seconds of the processor, which others on the
machine disturb least), or the dense bf16 peak that NVIDIA states.
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.bench.learner_step_sides import Setup, drawn_sequences
from tests.bench.workers import Worker

H200_BF16 = 989e12  # dense, floating-point operations a second; NVIDIA H200 data sheet, without sparsity


def decoder(model_type: str, *, width: int, inner: int, layers: int, heads: tuple[int, int, int], words: int) -> Any:
    """The numbers of an HF config; `heads` are those of queries, those of keys and values, and the size of one."""
    return {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": words,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    }


MODELS = {
    "tiny": decoder("llama", width=128, inner=512, layers=3, heads=(4, 4, 32), words=24),  # 0.8M, the quickstart's
    "small": decoder("qwen3", width=256, inner=768, layers=4, heads=(4, 2, 64), words=2048),  # 3.7M
    "qwen3-0.6b": decoder("qwen3", width=1024, inner=3072, layers=28, heads=(16, 8, 128), words=151936),
    "qwen3-1.7b": decoder("qwen3", width=2048, inner=6144, layers=28, heads=(16, 8, 128), words=151936),
}
PHASES = ("pack", "forward", "backward", "optimizer", "loss and statistics")


def useful_operations(config: Mapping[str, int], lengths: Sequence[int], completion_tokens: int) -> int:
    """Floating-point operations that forward and backward pass need: 6 for each weight and token that meet, and causal
    attention, 6·A·D·ℓ² a layer for a sequence of ℓ tokens. The output layer meets completion tokens alone.
    """
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * config["intermediate_size"]
    attention = layers * queries * sum(length**2 for length in lengths)
    return 6 * (layers * layer * sum(lengths) + hidden * config["vocab_size"] * completion_tokens + attention)


def write_model(directory: Path, config: Mapping[str, Any], device: str) -> None:
    """A checkpoint with random weights, in bfloat16 if it is for a GPU."""
    options = {name: value for name, value in config.items() if name != "model_type"}
    described = AutoConfig.for_model(config["model_type"], **options)
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(
            described, dtype=torch.bfloat16 if device == "cuda" else torch.float32
        )
    network.save_pretrained(directory)


def measure(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """What each side says of its steps."""
    said: dict[str, dict[str, Any]] = {}
    sides = ("ours",) if options.no_plain else ("ours", "plain")
    for together in [(side,) for side in sides] if setup.device == "cuda" else [sides]:
        workers: dict[str, Worker] = {}
        try:
            for side in together:
                described = json.dumps(asdict(setup) | {"side": side})
                workers[side] = Worker("tests.bench.learner_step_sides", described, threads=options.threads)
                said[side] = {"first": workers[side].ask("warm"), "steps": [], "phases": []}
            for _ in range(options.repeats):
                for side in together:
                    said[side]["steps"].append(workers[side].ask("step"))
            for side in together:
                said[side]["memory"] = workers[side].ask("memory")
                said[side]["product"] = workers[side].ask("product")
                said[side]["operators"] = workers[side].ask("operators") if options.profile else []
            if "ours" in together:
                said["ours"]["phases"] = [workers["ours"].ask("phases") for _ in range(options.repeats)]
        finally:
            for worker in workers.values():
                worker.close()
    return said


def figures(
    said: Mapping[str, Any], lengths: Sequence[int], completion: int, operations: int, peak: float, on_gpu: bool
) -> dict[str, float]:
    """The figures of one side; times are medians."""
    seconds, busy = (
        statistics.median(step[name] for step in said["steps"]) for name in ("seconds", "processor_seconds")
    )
    return {
        "seconds": seconds,
        "processor seconds": busy,
        "completion tokens/s": completion / seconds,
        "all tokens/s": sum(lengths) / seconds,
        "peak memory, MiB": said["memory"]["peak"] / 2**20,
        "above the loaded model, MiB": (said["memory"]["peak"] - said["memory"]["resting"]) / 2**20,
        "MFU, %": 100 * operations / (seconds if on_gpu else busy) / peak,
        "loss of the first step": said["first"]["loss"],
        "gradient norm of it": said["first"]["grad_norm"],
    }


def compare(name: str, setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one model on one distribution of lengths; print its table; return all of it."""
    sequences = drawn_sequences(setup)
    lengths = [sequence.length for sequence in sequences]
    completion = sum(len(sequence.token_ids) for sequence in sequences)
    said = measure(setup, options)
    product = max(each["product"] for each in said.values())
    on_gpu = setup.device == "cuda"
    peak = H200_BF16 if on_gpu else product
    operations = useful_operations(MODELS[name], lengths, completion)
    found = {side: figures(each, lengths, completion, operations, peak, on_gpu) for side, each in said.items()}
    print(
        f"\n{name}, {setup.lengths} lengths: {len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(lengths)} in all, {completion} of completions; {operations / 1e9:.0f} GFLOP a step, "
        f"peak {peak / 1e9:.0f} GFLOP/s, product measured {product / 1e9:.0f}"
    )
    print(f"{'':30}" + "".join(f"{side:>14}" for side in found) + f"{'ours / plain':>16}")
    for figure in found["ours"]:
        values = [each[figure] for each in found.values()]
        ratio = f"{values[0] / values[1]:16.2f}" if len(values) > 1 else ""
        print(f"{figure:30}" + "".join(f"{value:14.4g}" for value in values) + ratio)
    phases = {phase: statistics.median(each[phase] for each in said["ours"]["phases"]) for phase in PHASES}
    print("ours: " + ", ".join(f"{phase} {100 * s / sum(phases.values()):.0f} %" for phase, s in phases.items()))
    return {
        "model": name,
        "config": MODELS[name],
        "setup": asdict(setup),
        "tokens": sum(lengths),
        "completion_tokens": completion,
        "operations": operations,
        "peak": peak,
        "figures": found,
        "phases": phases,
        "said": said,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny,small", help=f"some of {','.join(MODELS)}")
    parser.add_argument("--lengths", default="equal,lognormal", help="`equal`, `lognormal` or both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=128, help="mean length, prompt and completion, in tokens")
    parser.add_argument("--longest", type=int, default=0, help="bound of lognormal lengths; 0: four times the mean")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each side that are timed")
    parser.add_argument("--budget", type=int, default=16384, help="padded tokens of a micro-batch of ours")
    parser.add_argument("--rows", type=int, default=16, help="sequences of a padded batch; fewer where memory ends")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again, on both sides")
    parser.add_argument("--profile", action="store_true", help="keep the operators that take longest in the JSON")
    parser.add_argument("--no-plain", action="store_true", help="measure ours alone")
    parser.add_argument("--out", type=Path, default=Path("learner_step.json"))
    options = parser.parse_args()
    if unknown := set(options.model.split(",")) - set(MODELS):
        parser.error(f"--model: there is no {', '.join(unknown)}; there are {', '.join(MODELS)}")
    return options


def main() -> None:
    """Measure, print tables, write JSON after each."""
    options = parse()
    content: dict[str, Any] = {"machine": platform.platform(), "processor": platform.processor(), "results": []}
    for name in options.model.split(","):
        with tempfile.TemporaryDirectory() as checkpoint:
            write_model(Path(checkpoint), MODELS[name], options.device)
            for lengths in options.lengths.split(","):
                setup = Setup(
                    checkpoint=checkpoint,
                    device=options.device,
                    lengths=lengths,
                    sequences=options.sequences,
                    length=options.length,
                    longest=options.longest or 4 * options.length,
                    budget=options.budget,
                    rows=options.rows,
                    checkpointing=options.checkpointing,
                    vocabulary=MODELS[name]["vocab_size"],
                )
                content["results"].append(compare(name, setup, options))
                options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
