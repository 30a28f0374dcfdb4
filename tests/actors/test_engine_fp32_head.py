"""`engine.fp32_head`: the real vLLM in bfloat16 with a head in float32, against transformers with such a head."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from actor_truth import finish
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.requests import Engine
from learner.tiny import build
from tests.published import publish

pytestmark = pytest.mark.filterwarnings("ignore")  # of vLLM's and torch's own imports

PROMPT = "33+59="


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    build(tmp_path, architecture="llama", hidden_size=64, layers=2, tied=request.param)
    return tmp_path


@pytest.fixture
def model(directory: Path) -> PreTrainedModel:
    """In bfloat16. Its layers add nothing, so that both sides give the head the same states, and only it can differ."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model.eval()


def update(engine: Engine, model: PreTrainedModel, version: int) -> None:
    """A new head, loaded as the loop does."""
    random = torch.Generator().manual_seed(version)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.1, generator=random)
    published = publish(version, model.state_dict().items(), torch.bfloat16)
    data = published.segment.data
    tensors = ((spec, data[spec.offset : spec.offset + spec.nbytes]) for spec in published.manifest.tensors)
    engine.load(version, published.manifest.fingerprint, tensors)


def errors(engine: Engine, model: PreTrainedModel) -> np.ndarray:
    """How far the behaviour logprobs are from those by logits in float32, in nats."""
    prompt_ids = engine.encode(PROMPT)
    for seed in range(16):
        engine.add(f"{seed}", prompt_ids, seed)
    found = []
    for finished in finish(engine).values():
        tokens = torch.tensor([[*prompt_ids, *finished.token_ids.tolist()]])  # [1, P + T]
        with torch.no_grad():
            states = model.model(tokens).last_hidden_state[0, len(prompt_ids) - 1 : -1]  # [T, H]
            logits = states.float() @ model.lm_head.weight.float().T  # [T, V]
        truth = logits.log_softmax(-1).gather(-1, tokens[0, len(prompt_ids) :, None])[:, 0].numpy()
        found.append(np.abs(finished.behaviour_logprobs - truth))
    return np.concatenate(found)


def test_logprobs_are_those_of_a_float32_head_also_after_an_update(
    directory: Path, model: PreTrainedModel, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine(directory, dtype="bfloat16", fp32_head=True)
    for version in range(3):
        update(engine, model, version)
        assert np.quantile(errors(engine, model), 0.9) < 1e-5  # another CPU may round a state or two otherwise
    engine.close()


def test_without_it_logits_are_rounded_to_bfloat16(
    directory: Path, model: PreTrainedModel, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine(directory, dtype="bfloat16")
    update(engine, model, 0)
    assert np.quantile(errors(engine, model), 0.9) > 1e-4  # so the test above can fail
    engine.close()
