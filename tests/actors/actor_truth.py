"""Weight versions of a tiny model, and what transformers says of them: the slow, obvious truth of the engine."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.requests import Engine, Finished
from learner.publish.version import PublishedVersion
from learner.tiny import build
from protocol.messages import Sampling
from tests.published import publish

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=24)
TOLERANCE = 1e-4  # nats, fp32 against fp32
LONG = "".join(str(digit % 10) for digit in range(0, 1200, 3))  # 400 tokens: three full blocks of the prefix cache


class Versions:
    """Weight versions of one model: `publish` invents the next, `truth` loads any of them afresh by transformers."""

    def __init__(self, directory: Path, architecture: str, *, tied: bool) -> None:
        self.directory = directory
        self.model_directory = directory / "model"
        build(self.model_directory, architecture=architecture, hidden_size=64, layers=2, tied=tied)
        self._model = self._load(self.model_directory)
        self._random = torch.Generator().manual_seed(7)
        self._truths: dict[int, PreTrainedModel] = {}
        self.published: list[PublishedVersion] = []

    @staticmethod
    def _load(directory: Path) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return model.eval()

    def publish(self, endpoint: str = "tcp://127.0.0.1:1", dtype: torch.dtype = torch.float32) -> PublishedVersion:
        """A new version, published in `dtype`: every parameter moves by a tenth of its spread."""
        version = len(self.published)
        with torch.no_grad():
            for parameter in self._model.parameters():
                noise = torch.randn(parameter.shape, generator=self._random)
                moved = parameter + 0.1 * noise * (parameter.std() + 0.05)
                parameter.copy_(moved.to(dtype))
        self._model.save_pretrained(self.directory / f"version-{version}")
        published = publish(version, self._model.state_dict().items(), dtype, endpoint=endpoint)
        self.published.append(published)
        return published

    def truth(self, version: int) -> PreTrainedModel:
        """That version as transformers loads it from its checkpoint."""
        if version not in self._truths:
            self._truths[version] = self._load(self.directory / f"version-{version}")
        return self._truths[version]

    def load_into(self, engine: Engine, dtype: torch.dtype = torch.float32) -> int:
        """Publish a version and load it into an engine as the loop does; its number."""
        published = self.publish(dtype=dtype)
        data, manifest = published.segment.data, published.manifest
        tensors = ((spec, data[spec.offset : spec.offset + spec.nbytes]) for spec in manifest.tensors)
        engine.load(manifest.version, manifest.fingerprint, tensors)
        return manifest.version

    def logprobs(
        self, version: int, prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float = 1.0
    ) -> np.ndarray:
        """What `version` gives each token after those before it, [T] float32, nats."""
        logits = self._logits(version, prompt_ids, token_ids) / temperature  # [T, V]
        return logits.log_softmax(-1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0].numpy()

    def ranks(self, version: int, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> np.ndarray:
        """How many tokens `version` holds likelier than each, [T] int64."""
        logits = self._logits(version, prompt_ids, token_ids)  # [T, V]
        return (logits > logits.gather(-1, torch.tensor(token_ids)[:, None])).sum(-1).numpy()

    def _logits(self, version: int, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor([[*prompt_ids, *token_ids]])  # [1, P + T]
        with torch.no_grad():
            logits: torch.Tensor = self.truth(version)(tokens).logits[0, len(prompt_ids) - 1 : -1]  # [T, V]
        return logits

    def greedy(self, version: int, prompt_ids: Sequence[int], tokens: int) -> list[int]:
        """The likeliest continuation, at most `tokens` long, its end included."""
        model = self.truth(version)
        ids = list(prompt_ids)
        for _ in range(tokens):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == model.config.eos_token_id:
                break
        return ids[len(prompt_ids) :]


def steps(engine: Engine, count: int) -> dict[str, Finished]:
    """What ends within `count` steps."""
    return {finished.request_id: finished for _ in range(count) for finished in engine.step()}


def finish(engine: Engine) -> dict[str, Finished]:
    """Step until all requests have ended."""
    done: dict[str, Finished] = {}
    while engine.running + engine.waiting:
        done |= steps(engine, 1)
    return done


def token_versions(finished: Finished) -> list[int]:
    """The version of each token, [T]."""
    return [span.version for span in finished.version_spans for _ in range(span.tokens)]


def assert_spans_are_true(finished: Finished, versions: Versions, prompt_ids: Sequence[int]) -> None:
    """Each span names its version's fingerprint, and its logprobs are those that version gives."""
    begin = 0
    for span in finished.version_spans:
        assert span.fingerprint == versions.published[span.version].manifest.fingerprint
        truth = versions.logprobs(span.version, prompt_ids, finished.token_ids.tolist())
        part = slice(begin, begin + span.tokens)
        np.testing.assert_allclose(finished.behaviour_logprobs[part], truth[part], atol=TOLERANCE)
        begin += span.tokens
