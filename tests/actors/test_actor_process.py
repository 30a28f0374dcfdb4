"""`python -m actors` as a process of its own, with the real engine; the test plays the broker and the weight server."""

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from actor_doubles import ARRIVAL_SECONDS, BrokerDouble, lease
from actor_truth import TOLERANCE, Versions

from protocol.messages import Goodbye, Heartbeat, Hello, LeaseFailed, LeaseRequest, RolloutDone

STOP_SECONDS = 3.0
ROOT = Path(__file__).parents[2]

StartActor = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_actor() -> Iterator[StartActor]:
    """Starts `python -m actors` with these overrides; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "actors", "engine.kv_cache_bytes=33554432", *overrides]
        actor = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(actor)
        return actor

    yield start
    for actor in started:
        actor.kill()
        actor.communicate()


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path, "llama", tied=True)


@pytest.fixture
def broker(versions: Versions) -> Iterator[BrokerDouble]:
    broker = BrokerDouble(str(versions.model_directory), heartbeat=1.0)
    yield broker
    broker.close()


def publish(broker: BrokerDouble, versions: Versions) -> None:
    published = versions.publish(broker.weights.address)
    broker.publish(published.manifest, published.segment.data)


def stop(actor: subprocess.Popen[str]) -> float:
    """Ask it to stop; seconds that it took to end, with exit code 0."""
    begun = time.monotonic()
    actor.send_signal(signal.SIGTERM)
    _, text = actor.communicate(timeout=ARRIVAL_SECONDS)
    assert actor.returncode == 0, text
    return time.monotonic() - begun


def test_it_joins_fetches_samples_swaps_and_leaves(
    start_actor: StartActor, broker: BrokerDouble, versions: Versions
) -> None:
    actor = start_actor(f"broker={broker.router.address}", "actor.name=alpha")
    hello = broker.expect(Hello)
    assert (hello.role, hello.name, hello.pid) == ("actor", "alpha", actor.pid)
    publish(broker, versions)
    broker.expect(Heartbeat, lambda heartbeat: heartbeat.waiting_for == "the engine to start")
    assert broker.expect(LeaseRequest).capacity == 192

    for number, prompt in enumerate(("", "1" * 512, "Wie groß?")):
        broker.send(lease(number, prompt))
    failed = [broker.expect(LeaseFailed) for _ in range(3)]
    assert [message.reason for message in failed] == ["prompt_empty", "prompt_too_long", "prompt_not_tokenisable"]

    broker.router.socket.send_multipart([broker.peer, b"\xff\xff", b"no message"])
    broker.send(lease(10, "33+59=", samples=8))
    broker.send(lease(11, "12+34=", samples=8, min_version=1))
    old = [broker.expect(RolloutDone) for _ in range(8)]
    assert {message.lease_id for message in old} == {10}, "lease 11 waits for version 1"
    publish(broker, versions)
    done = [*old, *(broker.expect(RolloutDone) for _ in range(8))]
    for message in done:
        rollout = message.rollout
        version = message.lease_id - 10
        manifest = versions.published[version].manifest
        assert [(span.version, span.fingerprint) for span in rollout.version_spans] == [(version, manifest.fingerprint)]
        truth = versions.logprobs(version, rollout.prompt_ids.tolist(), rollout.token_ids.tolist())
        np.testing.assert_allclose(rollout.behaviour_logprobs, truth, atol=TOLERANCE)
        assert "<end>" not in rollout.text

    broker.expect(Heartbeat, lambda heartbeat: heartbeat.waiting_for == "leases" and heartbeat.policy_version == 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{hello.metrics_port}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert "actor_policy_version 1.0" in metrics
    assert "actor_weight_swap_seconds_count 2.0" in metrics
    assert stop(actor) < STOP_SECONDS
    assert broker.expect(Goodbye).reason == "got SIGTERM"


def test_a_stop_while_the_engine_starts_is_obeyed(start_actor: StartActor, broker: BrokerDouble) -> None:
    actor = start_actor(f"broker={broker.router.address}")
    for _ in range(3):
        broker.expect(Heartbeat)
    assert stop(actor) < STOP_SECONDS
    assert not broker.expect(Goodbye).finished


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("broker=tcp://127.0.0.1:9", "actor.welcome_seconds=0.5"), "no broker answered at tcp://127.0.0.1:9"),
        (("broker=nonsense",), "nonsense: give the address as tcp://host:port"),
        (("actor.kv_on_update=forget",), "actor.kv_on_update=forget: must be one of recompute, keep"),
        (("engine.thread=2",), "engine.thread"),
    ],
    ids=["nobody there", "no address", "wrong value", "misspelt option"],
)
def test_what_cannot_work_ends_it_at_once_with_a_sentence(
    start_actor: StartActor, overrides: tuple[str, ...], words: str
) -> None:
    actor = start_actor(*overrides)
    _, text = actor.communicate(timeout=ARRIVAL_SECONDS)
    assert actor.returncode == 1
    assert words in text
    assert "Traceback" not in text
