"""The process that holds the reward model: takes a batch of jobs, judges it, says so, waits for the next.

It ends with its channel, and with the service. It reads hostile text, but only the tokenizer and the chat template do
anything with it; nothing of it is run.
"""

import ctypes
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from verifier.channel import ChannelClosed, worker_receive, worker_send
from verifier.config import RewardModelConfig
from verifier.rewards.score import BadAnswer, BadTask, described
from verifier.scoring.conversation import conversation
from verifier.scoring.model import RewardModel, be_steady

PR_SET_PDEATHSIG = 1
MOST_REASON = 200  # characters


def main() -> None:
    """`python -m verifier.scoring.process <options as JSON> <descriptor> <pid of the service>`."""
    options, descriptor, service = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(service):
        return  # it ended before we could ask to be told
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the terminal's, for all; the service ends this process when it is time
    with socket.socket(fileno=int(descriptor)) as channel:
        try:
            config = RewardModelConfig(**json.loads(options))
            be_steady(config.threads)
            model = RewardModel.load(config)
        except ValueError as error:
            worker_send(channel, ["cannot", str(error)[:1000]])
            return
        worker_send(channel, ["ready", str(model.device)])
        try:
            while True:
                jobs = worker_receive(channel)
                begun = time.perf_counter()
                found = judge(model, jobs)
                worker_send(channel, ["batch", found, time.perf_counter() - begun])
        except (ChannelClosed, OSError):
            return


def judge(model: RewardModel, jobs: list[tuple[str, Mapping[str, Any]]]) -> list[tuple[float | None, str, str, int]]:
    """For each text and metadata: value in 0..1 or None, outcome, reason, tokens."""
    sequences: list[list[int]] = []
    problems: list[tuple[float | None, str, str, int] | None] = []
    for text, metadata in jobs:
        try:
            sequences.append(model.encode(conversation(text, metadata)))
            problems.append(None)
        except BadAnswer as error:
            problems.append((0.0, "scored", str(error)[:MOST_REASON], 0))
        except BadTask as error:
            problems.append((None, "void", str(error)[:MOST_REASON], 0))
        except Exception as error:  # noqa: BLE001 a chat template may raise anything; the other jobs of the batch go on
            problems.append((None, "void", f"the chat template: {described(error)}"[:MOST_REASON], 0))
    scores = iter(zip(model.logits(sequences), sequences, strict=True))
    return [problem or _scored(*next(scores), model.config) for problem in problems]


def _scored(logit: float, sequence: list[int], config: RewardModelConfig) -> tuple[float | None, str, str, int]:
    if not math.isfinite(logit):
        return None, "void", f"the reward model's score is {logit}", len(sequence)
    return squashed(logit, config.centre, config.width), "scored", f"score {logit:.4f}", len(sequence)


def squashed(logit: float, centre: float, width: float) -> float:
    """The sigmoid of (logit − centre) / width, in 0..1."""
    return 0.5 + 0.5 * math.tanh((logit - centre) / (2 * width))


if __name__ == "__main__":
    main()
