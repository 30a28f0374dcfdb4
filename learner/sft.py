"""`python -m learner.sft`: the cold start, supervised training on reasoning traces.

Its update is that of the RL loop with another objective: the mean log-probability of the completion tokens. Without
`sft.data` the traces are addition problems, a share of them with systematic faults, so that RL has something to mend.
"""

import json
import logging
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from learner import addition, batch, checkpoint, distributed, evaluation, model, optimizer, tiny
from learner.batch import TrainingSequence
from learner.distributed import Ranks
from learner.loss.config import LossConfig
from learner.model import Policy, full_state
from learner.optimizer import Optimizer
from learner.sft_config import SftConfig, SftRoot, check
from learner.step import update

log = logging.getLogger("sft")

LIKELIHOOD = LossConfig(name="likelihood", corrections=[], filters=[])


ConfigStore.instance().store(name="sft_schema", node=SftRoot)


@dataclass(frozen=True, slots=True)
class Example:
    """What the model reads and what it should answer."""

    prompt: str
    completion: str


@hydra.main(version_base="1.3", config_path="../deploy/conf", config_name="sft")
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
    ranks = distributed.start(sft.device, wait_seconds=600)
    source = Path(sft.model) if sft.model else Path(sft.out) / "initial"
    if not sft.model and ranks.first:
        tiny.build(source, architecture=sft.architecture, hidden_size=sft.hidden_size, layers=sft.layers, seed=sft.seed)
    torch.distributed.barrier()
    tokenizer = AutoTokenizer.from_pretrained(source)
    policy = model.load(source, ranks, config.policy)
    examples = file_examples(Path(sft.data), sft.seed) if sft.data else addition_examples(sft)
    steps = optimizer.build(policy, config.optimizer, decay_steps=sft.steps)
    train(policy, steps, examples, tokenizer, sft, ranks)
    state = full_state(policy)
    if ranks.first:
        checkpoint.save(Path(sft.out) / "model", state, policy.network.config, source)
        log.info("checkpoint in %s/model", sft.out)
    else:
        deque(state, maxlen=0)  # takes part in the gathering
    distributed.stop()
    if ranks.first and sft.evaluate and not sft.data:
        evaluate(sft, ranks.device)


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
    tokenizer: PreTrainedTokenizerBase,
    sft: SftConfig,
    ranks: Ranks,
) -> None:
    """`sft.steps` updates; every rank draws the same examples and takes its share. Rank 0 writes sft_metrics.jsonl."""
    began = time.monotonic()
    lines = Path(sft.out) / "sft_metrics.jsonl"
    if ranks.first:
        lines.write_text("")
    for step in range(1, sft.steps + 1):
        drawn = [next(examples) for _ in range(sft.batch_size)]
        sequences = training_sequences(drawn, tokenizer)
        micro_batches = batch.share(
            sequences, budget=sft.tokens_per_micro_batch, rank=ranks.rank, world=ranks.world, device=ranks.device
        )
        done = update(policy, steps, micro_batches, LIKELIHOOD, temperature=1.0)
        if done.skipped:
            raise ValueError(f"step {step}: the gradient norm is {done.grad_norm}; a lower optimizer.lr may help")
        if step % sft.log_every and step < sft.steps:
            continue
        if ranks.first:
            line = {"step": step, "steps": sft.steps, "loss": done.loss, "seconds": time.monotonic() - began}
            with lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
            log.info("step %d of %d: loss %.4f", step, sft.steps, done.loss)


def training_sequences(examples: list[Example], tokenizer: PreTrainedTokenizerBase) -> list[TrainingSequence]:
    """Tokenise; the end token is part of every completion. Token-mean weights over the whole batch."""
    prompts = [tokenizer(example.prompt)["input_ids"] for example in examples]
    completions = [
        [*tokenizer(example.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for example in examples
    ]
    weight = 1.0 / sum(map(len, completions))
    return [
        TrainingSequence(
            prompt_ids=np.array(prompt, dtype=np.int32),
            token_ids=np.array(completion, dtype=np.int32),
            behaviour_logprobs=np.zeros(len(completion), dtype=np.float32),
            staleness=np.zeros(len(completion), dtype=np.int32),
            advantage=1.0,
            token_weight=weight,
            index=index,
            group=index,
        )
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def addition_examples(sft: SftConfig) -> Iterator[Example]:
    """Addition traces without end, a share of them faulty; held-out problems never occur."""
    chance = random.Random(sft.seed)
    faults = list(addition.Fault)
    while True:
        a, b = addition.operands(chance, sft.digits)
        if addition.held_out(a, b):
            continue
        faulty = chance.random() < sft.faulty
        fault = chance.choice(faults)
        text = addition.faulty_completion(a, b, fault, chance) if faulty else addition.completion(a, b)
        yield Example(addition.prompt(a, b), text)


def file_examples(path: Path, seed: int) -> Iterator[Example]:
    """The lines of a JSONL file, shuffled anew each epoch. Raises `ValueError` with file, line and field."""
    examples = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{number}: is not JSON: {error}") from None
        for name in ("prompt", "completion"):
            if not isinstance(content, dict) or not isinstance(content.get(name), str) or not content[name]:
                raise ValueError(f"{path}:{number}: field {name!r} must be a text that is not empty")
        examples.append(Example(content["prompt"], content["completion"]))
    if not examples:
        raise ValueError(f"{path}: holds no examples")
    chance = random.Random(seed)
    while True:
        yield from chance.sample(examples, len(examples))


if __name__ == "__main__":
    main()
