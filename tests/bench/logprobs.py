"""Log-probabilities and entropies of a whole vocabulary: peak memory and seconds of one forward and backward pass.

    python tests/bench/logprobs.py [--hidden 256 1024] [--tokens 1024 4096 16384] [--out logprobs.json] [--device cuda]

Each case runs in a process of its own. Its memory is what the process holds at most beyond the inputs, `extra` what of
it is not the inputs' gradients, which every way must hold. The ways: `whole` logits by plain autograd; `checkpointed`,
chunks of tokens under torch's activation checkpointing; `tiled`, the learner's; `torch`, its own `linear_cross_entropy`
in chunks of tokens, which gives no entropy. As in training, the entropies need no gradient.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear, linear_cross_entropy
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).parents[2]
LIMIT = 8 * 2**30  # bytes; a case that would hold more logits and arrays like them is not tried
MIB = 2**20

Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def whole(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain way, [N, V] logits and all."""
    logprobs = linear(hidden, head).float().log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


def checkpointed(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks of tokens, each computed again by autograd in the backward pass."""

    def part(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = linear(hidden, head).float()
        normaliser = logits.logsumexp(-1)
        logprob = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser
        return logprob, normaliser - (logits.softmax(-1) * logits).sum(-1)

    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    parts = [checkpoint(part, states, head, chosen, use_reentrant=False) for states, chosen in pieces]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def tiled(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The learner's."""
    from learner.policy.logprobs import chunked_logprobs

    return chunked_logprobs(hidden, head, None, targets, temperature=1.0, chunk=chunk)


def torchs(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without entropies, which are given as zero."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None)
    losses = linear_cross_entropy(hidden, head, targets, reduction="none", options=options)
    return -losses, torch.zeros_like(losses)


WAYS: dict[str, Way] = {"whole": whole, "checkpointed": checkpointed, "tiled": tiled, "torch": torchs}


def run(way: str, states: int, tokens: int, options: argparse.Namespace) -> dict[str, float]:
    """One case, in this process."""
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, states, generator=random).to(device, dtype).requires_grad_()
    head = torch.randn(options.vocabulary, states, generator=random).mul_(2 * states**-0.5).to(device, dtype)
    head.requires_grad_()
    targets = torch.randint(0, options.vocabulary, (tokens,), generator=random).to(device)
    weights = torch.linspace(-1, 1, tokens, device=device)
    before = peak_bytes(device)
    begin = time.perf_counter()
    logprobs, entropies = WAYS[way](hidden, head, targets, options.chunk)
    value, entropy = float(logprobs.detach().sum()), float(entropies.detach().sum())
    forward = time.perf_counter() - begin
    (logprobs * weights).sum().backward()
    assert hidden.grad is not None
    assert head.grad is not None
    norms = [float(grad.float().norm()) for grad in (hidden.grad, head.grad)]
    seconds = time.perf_counter() - begin
    held = peak_bytes(device) - before
    gradients = (hidden.numel() + head.numel()) * head.element_size()
    return {
        "peak_mib": held / MIB,
        "extra_mib": (held - gradients) / MIB,
        "forward_seconds": forward,
        "seconds": seconds,
        "logprob_sum": value,
        "entropy_sum": entropy,
        "hidden_gradient_norm": norms[0],
        "head_gradient_norm": norms[1],
    }


def expected_bytes(way: str, tokens: int, options: argparse.Namespace) -> int:
    """Of the float32 arrays [rows, V] that a way holds at once, seen where it fits.

    Under checkpointing, what was computed again for the entropies stays till the end, as no gradient comes to use it.
    """
    rows = {"whole": 3 * tokens, "checkpointed": 2 * tokens + 4 * options.chunk}.get(way, 2 * options.chunk)
    return int(rows * options.vocabulary * 4)


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def measured(way: str, states: int, tokens: int, arguments: list[str]) -> dict[str, float]:
    """One case, in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--case", way, str(states), str(tokens)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{way} with {states} states and {tokens} tokens failed:\n{finished.stderr[-2000:]}")
    result: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--out", type=Path, default=Path("logprobs.json"))
    parser.add_argument("--case", nargs=3, metavar=("WAY", "STATES", "TOKENS"), help="this one alone, here")
    options = parser.parse_args()
    if options.case:
        way, states, tokens = options.case
        print(json.dumps(run(way, int(states), int(tokens), options)))
        return
    rows: list[dict[str, Any]] = []
    print(f"V={options.vocabulary}, {options.dtype} on {options.device}, {options.chunk} tokens a chunk")
    print(f"{'states':>6} {'tokens':>6}  {'way':12} {'peak MiB':>9} {'extra MiB':>9} {'forward s':>9} {'both s':>7}")
    for states in options.hidden:
        for tokens in options.tokens:
            for way in options.ways:
                row: dict[str, Any] = {"states": states, "tokens": tokens, "way": way}
                if (size := expected_bytes(way, tokens, options)) > LIMIT:
                    row["skipped"] = f"would hold {size / 2**30:.0f} GiB of logits and arrays like them"
                    print(f"{states:6} {tokens:6}  {way:12} {row['skipped']}", flush=True)
                else:
                    row |= measured(way, states, tokens, sys.argv[1:])
                    print(
                        f"{states:6} {tokens:6}  {way:12} {row['peak_mib']:9.0f} {row['extra_mib']:9.0f} "
                        f"{row['forward_seconds']:9.1f} {row['seconds']:7.1f}",
                        flush=True,
                    )
                rows.append(row)
    kept = ("vocabulary", "chunk", "threads", "device", "dtype")
    content = {"machine": platform.platform(), "torch": torch.__version__}
    content |= {name: getattr(options, name) for name in kept}
    options.out.write_text(json.dumps(content | {"cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
