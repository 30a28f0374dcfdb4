"""`python -m learner.sft`: supervised training, from a file of examples or, without one, the quickstart's cold start.

Its update is that of the RL loop with another objective: the mean log-probability of the trained tokens. Without
`sft.data` the traces are addition problems, a share of them with systematic faults, so that RL has something to mend.
"""

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from learner import batch, distributed, evaluation, export, optimizer, tiny
from learner.distributed import Ranks
from learner.loss.config import LossConfig
from learner.optimizer import Optimizer
from learner.policy import model
from learner.policy.model import Policy, full_state
from learner.sft.config import SftConfig, SftRoot, check
from learner.sft.data import Example, Tokenise, addition_pairs, epochs, read_file, split, training_sequences
from learner.step import mean_loss, update

log = logging.getLogger("sft")

LIKELIHOOD = LossConfig(name="likelihood", corrections=[], filters=[])

ConfigStore.instance().store(name="sft_schema", node=SftRoot)


@hydra.main(version_base="1.3", config_path="../../deploy/conf", config_name="sft")
def main(tree: DictConfig) -> None:
    """Train and write the checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = OmegaConf.to_object(tree)
    assert isinstance(config, SftRoot)
    try:
        check(config)
        run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"sft: {error}")


def run(config: SftRoot) -> None:
    """Build or load the model, train, save."""
    sft = config.sft
    if sft.threads:
        torch.set_num_threads(sft.threads)
    Path(sft.out).mkdir(parents=True, exist_ok=True)
    ranks = distributed.start(sft.device, wait_seconds=600, tensor_parallel=config.policy.tensor_parallel)
    source = Path(sft.model) if sft.model else Path(sft.out) / "initial"
    if not sft.model and ranks.first:
        tiny.build(source, architecture=sft.architecture, hidden_size=sft.hidden_size, layers=sft.layers, seed=sft.seed)
    torch.distributed.barrier()
    tokenizer = AutoTokenizer.from_pretrained(source)
    policy = model.load(source, ranks, config.policy)
    examples, held_out = data(sft, tokenizer)
    steps = optimizer.build(policy, config.optimizer, decay_steps=sft.steps)
    train(policy, steps, examples, held_out, sft, ranks)
    state = full_state(policy)
    if ranks.first:
        export.write_hf(Path(sft.out) / "model", state, policy.network.config, source)
        log.info("checkpoint in %s/model", sft.out)
    else:
        deque(state, maxlen=0)  # takes part in the gathering
    distributed.stop()
    if ranks.first and sft.evaluate and not sft.data:
        evaluate(sft, ranks.device)


def data(sft: SftConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Iterator[Example], list[Example]]:
    """The examples to train on, without end, and those that are kept out."""
    tokenise = Tokenise(tokenizer, sft.template)
    if not sft.data:
        return (tokenise.pair(*pair) for pair in addition_pairs(sft)), []
    kept, held_out = split(read_file(Path(sft.data), tokenise, sft.max_tokens), sft.holdout, sft.seed)
    return epochs(kept, sft.seed), held_out


def evaluate(sft: SftConfig, device: torch.device) -> None:
    """Sample the saved checkpoint on held-out problems; the figures become the last line of sft_metrics.jsonl."""
    began = time.monotonic()
    score = evaluation.addition_score(
        Path(sft.out) / "model", problems=sft.evaluate, digits=sft.digits, seed=sft.seed, device=device
    )
    line = {**asdict(score), "reward": score.reward, "seconds": time.monotonic() - began}
    with (Path(sft.out) / "sft_metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    log.info(
        "%d held-out problems: accuracy %.3f, format %.3f, reward %.3f",
        *(score.problems, score.accuracy, score.format, score.reward),
    )


def train(
    policy: Policy,
    steps: Optimizer,
    examples: Iterator[Example],
    held_out: Sequence[Example],
    sft: SftConfig,
    ranks: Ranks,
) -> None:
    """`sft.steps` updates; every rank draws the same examples and takes its share. Rank 0 writes sft_metrics.jsonl."""
    began = time.monotonic()
    lines = Path(sft.out) / "sft_metrics.jsonl"
    if ranks.first:
        lines.write_text("")

    def share(part: Sequence[Example]) -> list[batch.MicroBatch]:
        return batch.share(
            training_sequences(part),
            budget=sft.tokens_per_micro_batch,
            cost=policy.cost,
            rank=ranks.rank,
            world=ranks.world,
            device=ranks.device,
        )

    for step in range(1, sft.steps + 1):
        drawn = [next(examples) for _ in range(sft.batch_size)]
        done = update(policy, steps, share(drawn), LIKELIHOOD, temperature=1.0)
        if done.skipped:
            raise ValueError(f"step {step}: the gradient norm is {done.grad_norm}; a lower optimizer.lr may help")
        if step % sft.log_every and step < sft.steps:
            continue
        line = {"step": step, "steps": sft.steps, "loss": done.loss, "seconds": time.monotonic() - began}
        if held_out:
            line["holdout_loss"] = mean_loss(policy, share(held_out), LIKELIHOOD, temperature=1.0)
        if ranks.first:
            with lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
            log.info("step %d of %d: loss %.4f", step, sft.steps, done.loss)


if __name__ == "__main__":
    main()
