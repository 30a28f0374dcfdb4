"""The real vLLM on a tied Llama, KV recomputed at every update, against transformers. fp32, tolerance 1e-4 nats."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from actor_truth import (
    LONG,
    SAMPLING,
    TOLERANCE,
    Versions,
    assert_spans_are_true,
    finish,
    steps,
    token_versions,
)

from actors.requests import Engine, EngineFailure, ImpossiblePrompt

OWN_SAMPLING = {
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.1,
    "repetition_penalty": 1.5,
    "max_new_tokens": 3,
}

pytestmark = pytest.mark.filterwarnings("ignore")  # of vLLM's and torch's own imports


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """Their model directory asks for a sampling of its own, as many do; no test below may notice."""
    versions = Versions(tmp_path_factory.mktemp("llama"), "llama", tied=True)
    path = versions.model_directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OWN_SAMPLING))
    return versions


@pytest.fixture(scope="module")
def shared_engine(versions: Versions, start_engine: Callable[..., Engine]) -> Iterator[Engine]:
    engine = start_engine(versions.model_directory)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: Engine, versions: Versions) -> Iterator[Engine]:
    """Idle, with a fresh version."""
    versions.load_into(shared_engine)
    yield shared_engine
    shared_engine.sampling = SAMPLING
    finish(shared_engine)


def test_after_every_update_greedy_tokens_and_logprobs_equal_a_fresh_load(engine: Engine, versions: Versions) -> None:
    engine.sampling = replace(SAMPLING, temperature=0.0)
    prompts = {"short": engine.encode("33+59="), "long": engine.encode(LONG)}
    assert len(prompts["long"]) == 400
    for _ in range(3):
        version = versions.load_into(engine)
        for name, prompt_ids in prompts.items():
            engine.add(f"cold-{name}", prompt_ids, seed=0)
        done = finish(engine)
        for name, prompt_ids in prompts.items():  # the prefix cache is warm now
            engine.add(f"warm-{name}", prompt_ids, seed=0)
        done |= finish(engine)
        for request_id, finished in done.items():
            prompt_ids = prompts[request_id.split("-")[1]]
            tokens = finished.token_ids.tolist()
            assert tokens == versions.greedy(version, prompt_ids, SAMPLING.max_tokens)
            assert [(span.version, span.tokens) for span in finished.version_spans] == [(version, len(tokens))]
            assert finished.version_spans[0].fingerprint == versions.published[version].manifest.fingerprint
            truth = versions.logprobs(version, prompt_ids, tokens)
            np.testing.assert_allclose(finished.behaviour_logprobs, truth, atol=TOLERANCE)


def test_updates_in_flight_give_exact_spans_and_each_spans_logprobs(engine: Engine, versions: Versions) -> None:
    first = engine.version
    assert first is not None
    prompts = {"short": engine.encode("33+59="), "long": engine.encode(LONG), "late": engine.encode("1+2=")}
    seeds = range(6)  # some completions end before the updates
    for name in ("short", "long"):
        for seed in seeds:
            engine.add(f"{name}-{seed}", prompts[name], seed)
    done = steps(engine, 5)
    versions.load_into(engine)
    for seed in seeds:
        engine.add(f"late-{seed}", prompts["late"], seed)
    done |= steps(engine, 4)
    versions.load_into(engine)
    versions.load_into(engine)  # samples nothing: the next one follows at once
    done |= finish(engine)
    assert len(done) == 18
    assert max(len(finished.version_spans) for finished in done.values()) == 3
    for request_id, finished in done.items():
        name = request_id.split("-")[0]
        sampled_by = [first + 1] * 4 if name == "late" else [first] * 5 + [first + 1] * 4
        sampled_by += [first + 3] * SAMPLING.max_tokens
        assert token_versions(finished) == sampled_by[: len(finished.token_ids)]
        assert_spans_are_true(finished, versions, prompts[name])


def test_weights_published_in_bfloat16_are_loaded_exactly(engine: Engine, versions: Versions) -> None:
    prompt_ids = engine.encode("33+59=")
    versions.load_into(engine, torch.bfloat16)
    engine.add("half", prompt_ids, seed=1)
    assert_spans_are_true(finish(engine)["half"], versions, prompt_ids)


def test_an_update_to_equal_weights_changes_no_token(engine: Engine, versions: Versions) -> None:
    """Tokens that were sampled stay, and the seeded generator goes on where it was."""
    prompt_ids = engine.encode("12+34=")
    engine.add("plain", prompt_ids, seed=3)
    plain = finish(engine)["plain"]
    published = versions.published[-1]
    data = published.segment.data
    engine.add("swapped", prompt_ids, seed=3)
    for step in range(len(plain.token_ids) - 1):
        engine.step()
        if step % 3 == 0:
            tensors = ((spec, data[spec.offset : spec.offset + spec.nbytes]) for spec in published.manifest.tensors)
            engine.load(published.manifest.version, published.manifest.fingerprint, tensors)
    swapped = finish(engine)["swapped"]
    np.testing.assert_array_equal(swapped.token_ids, plain.token_ids)
    np.testing.assert_allclose(swapped.behaviour_logprobs, plain.behaviour_logprobs, atol=TOLERANCE)


def test_a_seed_gives_the_same_tokens_whatever_else_is_sampled(engine: Engine) -> None:
    prompt_ids = engine.encode("33+59=")
    for seed in range(8):
        engine.add(f"{seed}", prompt_ids, seed)
    together = {name: finished.token_ids.tolist() for name, finished in finish(engine).items()}
    assert len({tuple(tokens) for tokens in together.values()}) > 4, "seeds must differ in what they give"
    for seed in (7, 0, 3):
        engine.add(f"{seed}", prompt_ids, seed)
        assert finish(engine)[f"{seed}"].token_ids.tolist() == together[f"{seed}"]


def test_more_requests_than_places_all_end_and_count(engine: Engine) -> None:
    before = engine.generated_tokens
    for index in range(50):
        engine.add(f"{index}", engine.encode("1+1="), seed=index)
    done = {finished.request_id: finished for finished in engine.step()}
    assert engine.waiting == 50 - 32
    assert engine.running == 32 - len(done)
    done |= finish(engine)
    assert len(done) == 50
    assert engine.generated_tokens - before == sum(len(finished.token_ids) for finished in done.values())


def test_logprobs_are_those_after_temperature(engine: Engine, versions: Versions) -> None:
    engine.sampling = replace(SAMPLING, temperature=0.6)
    prompt_ids = engine.encode("33+59=")
    engine.add("warm", prompt_ids, seed=1)
    finished = finish(engine)["warm"]
    assert engine.version is not None
    truth = versions.logprobs(engine.version, prompt_ids, finished.token_ids.tolist(), temperature=0.6)
    np.testing.assert_allclose(finished.behaviour_logprobs, truth, atol=TOLERANCE)
    assert finished.behaviour_logprobs.dtype == np.float32


def test_the_model_directorys_own_sampling_is_not_taken(engine: Engine, versions: Versions) -> None:
    """Whatever is cut off, or made rarer, makes what is left likelier than the whole distribution says."""
    prompt_ids = engine.encode("33+59=")
    assert engine.version is not None
    for seed in range(16):
        engine.add(f"{seed}", prompt_ids, seed)
    ranks = []
    for finished in finish(engine).values():
        tokens = finished.token_ids.tolist()
        truth = versions.logprobs(engine.version, prompt_ids, tokens)
        np.testing.assert_allclose(finished.behaviour_logprobs, truth, atol=TOLERANCE)
        ranks += versions.ranks(engine.version, prompt_ids, tokens).tolist()
    assert max(ranks) >= OWN_SAMPLING["top_k"], "the sampler must reach what the directory's top_k cuts off"


def test_a_completion_that_stops_ends_with_eos_and_its_text_does_not(engine: Engine, versions: Versions) -> None:
    engine.sampling = replace(SAMPLING, max_tokens=200)
    for seed in range(16):
        engine.add(f"{seed}", engine.encode("1+1="), seed)
    done = finish(engine).values()
    stopped = [finished for finished in done if finished.finish_reason == "stop"]
    assert stopped, "some of 16 random completions must end"
    eos = versions.truth(0).config.eos_token_id
    for finished in stopped:
        assert finished.token_ids[-1] == eos
        assert eos not in finished.token_ids[:-1]
        assert "<end>" not in engine.decode(finished.token_ids.tolist())


def test_a_stop_text_ends_the_completion_and_is_its_last_part(engine: Engine) -> None:
    engine.sampling = replace(SAMPLING, stop=("</think>",), max_tokens=200)
    for seed in range(16):
        engine.add(f"{seed}", engine.encode("1+1="), seed)
    texts = {}
    for name, finished in finish(engine).items():
        assert len(finished.behaviour_logprobs) == len(finished.token_ids)
        texts[name] = engine.decode(finished.token_ids.tolist())
    assert any(text.endswith("</think>") for text in texts.values()), "some must have come to the stop text"
    assert all("</think>" not in text[: -len("</think>")] for text in texts.values())


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("", "prompt_empty"), ("1" * 512, "prompt_too_long"), ("Größe?", "prompt_not_tokenisable")],
    ids=["empty", "too long", "unknown characters"],
)
def test_an_impossible_prompt_is_refused_with_a_short_reason(engine: Engine, prompt: str, reason: str) -> None:
    with pytest.raises(ImpossiblePrompt) as caught:
        engine.add("impossible", engine.encode(prompt), seed=0)
    assert caught.value.reason == reason
    assert engine.running + engine.waiting == 0


def test_the_longest_possible_prompt_gives_one_token(engine: Engine) -> None:
    engine.add("longest", engine.encode("1" * 511), seed=0)
    finished = finish(engine)["longest"]
    assert len(finished.token_ids) == 1


def test_aborted_requests_are_gone(engine: Engine) -> None:
    for index in range(8):
        engine.add(f"{index}", engine.encode("1+1="), seed=index)
    ended = {finished.request_id for finished in engine.step()}
    aborted = [f"{index}" for index in range(0, 8, 2) if f"{index}" not in ended]
    before = engine.generated_tokens
    engine.abort(aborted)
    assert engine.running == 8 - len(ended) - len(aborted)
    assert engine.generated_tokens == before, "what they had sampled stays counted"
    assert not finish(engine).keys() & set(aborted)


def test_a_version_without_the_tied_head_is_refused(engine: Engine, versions: Versions) -> None:
    published = versions.published[-1]
    data = published.segment.data
    tensors = [
        (spec, data[spec.offset : spec.offset + spec.nbytes])
        for spec in published.manifest.tensors
        if spec.name != "lm_head.weight"
    ]
    with pytest.raises(EngineFailure, match=r"lm_head\.weight"):
        engine.load(99, "x", tensors)


def test_a_missing_model_directory_is_named(start_engine: Callable[..., Engine], tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match=r"config\.json"):
        start_engine(tmp_path / "nowhere")
