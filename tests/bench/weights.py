"""Weight versions, measured: how much changes in a step and what a delta comes to, and how fast each way is.

    python -m tests.bench.weights training --cold-start runs/quickstart/cold_start/model
    python -m tests.bench.weights ways --sizes 0.1 0.5 2 6 8 --receivers 1 4 8 --versions 6 --memory 18.5

Every figure stands beside its limit, measured in the same run on the same machine.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import torch

from tests.bench import weights_training, weights_ways


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    training = parts.add_parser("training", help="changed words and codes")
    training.add_argument("--cold-start", type=Path, required=True, help="the quickstart's cold-started model")
    training.add_argument("--steps", type=int, default=12, help="steps at each learning rate")
    training.add_argument("--warm", type=int, default=60, help="steps of the Qwen3 decoder before")
    ways = parts.add_parser("ways", help="ways, sizes, encodings, receivers")
    ways.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.5, 2, 8], help="GB of bfloat16 weights")
    ways.add_argument("--receivers", type=int, nargs="+", default=[1, 4, 8])
    ways.add_argument("--versions", type=int, default=5, help="versions of each case; the best counts")
    ways.add_argument("--changed", type=float, default=0.03, help="share of words that change in a version")
    ways.add_argument("--memory", type=float, default=18.0, help="GB that all processes together may use")
    for each in (training, ways):
        each.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if options.part == "training":
            rows = weights_training.measure(options.cold_start, Path(work), options.steps, options.warm)
        else:
            rows = weights_ways.measure(options, Path(work))
    content = {"machine": platform.platform(), "torch": torch.__version__}
    content |= {name: value for name, value in vars(options).items() if name not in ("out", "cold_start")}
    out = options.out or Path(f"weights_{options.part}.json")
    out.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
