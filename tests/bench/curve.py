"""What CURVE costs: rollouts to a router, shards of weights from one, and new connections, with keys and without.

    python -m tests.bench.curve --out curve.json

Both ends are processes of their own on this machine, over loopback TCP; the two ways take turns and the best of each
counts, since everything else on the machine only takes away from it.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zmq

from protocol.messages import Heartbeat, Message, Rollout, RolloutDone, Shard, ShardRequest, VersionSpan
from protocol.security import Keys, load, make
from protocol.sockets import Dealer, Router
from protocol.weights import SHARD_BYTES

ROOT = Path(__file__).parents[2]
TOKENS = 512  # of a rollout
WINDOW = 4  # shards asked for and not yet here, as actors do


def rollout() -> RolloutDone:
    """A completion of `TOKENS` tokens as an actor sends it."""
    return RolloutDone(
        lease_id=0,
        rollout=Rollout(
            group_id=0,
            sample_index=0,
            prompt_ids=np.zeros(64, dtype=np.int32),
            token_ids=np.zeros(TOKENS, dtype=np.int32),
            behaviour_logprobs=np.zeros(TOKENS, dtype=np.float32),
            version_spans=(VersionSpan(version=0, tokens=TOKENS, fingerprint="f" * 32),),
            finish_reason="stop",
            text="word " * TOKENS,
        ),
    )


def send_rollouts(address: str, count: int, keys: Keys | None) -> None:
    """The actor's side: `count` rollouts as fast as they leave, then wait until the last has arrived."""
    message = rollout()
    with Dealer(address, keys=keys) as dealer:
        for _ in range(count):
            dealer.send(message)
        dealer.receive(60)


def fetch_shards(address: str, count: int, keys: Keys | None) -> None:
    """The actor's side: `count` shards, a few on their way at a time."""
    with Dealer(address, keys=keys) as dealer:
        for shard in range(count + WINDOW):
            if shard < count:
                dealer.send(ShardRequest(version=0, shard=shard))
            if shard >= WINDOW:
                assert isinstance(dealer.receive(60), Shard)
        dealer.send(Heartbeat())
        dealer.receive(60)


def connect_often(address: str, count: int, keys: Keys | None) -> None:
    """Connections one after the other, each with a question and its answer."""
    for number in range(count):
        with Dealer(address, keys=keys) as dealer:
            dealer.send(ShardRequest(version=0, shard=0) if number < count - 1 else Heartbeat())
            dealer.receive(60)


PEERS: dict[str, Callable[[str, int, Keys | None], None]] = {
    "rollouts": send_rollouts,
    "shards": fetch_shards,
    "connections": connect_often,
}


def serve(what: str, count: int, router: Router) -> float:
    """The other side; the seconds from its first message to the last."""
    shard = Shard(version=0, shard=0, data=np.random.default_rng(0).integers(0, 256, SHARD_BYTES, dtype=np.uint8))
    answers: dict[str, Message | None] = {"rollouts": None, "shards": shard, "connections": Heartbeat()}
    received, begun = 0, 0.0
    while True:
        if (letter := router.receive(0.05)) is None:
            continue
        begun = begun or time.perf_counter()
        received += 1
        last = isinstance(letter[1], Heartbeat) or (received == count and what == "rollouts")
        if (answer := Heartbeat() if last else answers[what]) is not None:
            router.send(letter[0], answer)
        if last:
            return time.perf_counter() - begun


def measure(what: str, count: int, directory: Path | None) -> float:
    """Seconds of one run."""
    keys = load(directory, "broker") if directory else None
    with Router("tcp://127.0.0.1:*", keys=keys) as router:
        command = [sys.executable, "-m", "tests.bench.curve", "--peer", what, router.address, str(count)]
        with subprocess.Popen([*command, str(directory or "")], cwd=ROOT) as peer:
            seconds = serve(what, count, router)
            peer.wait()
    return seconds


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--connections", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("curve.json"))
    parser.add_argument("--peer", nargs=4, metavar=("WHAT", "ADDRESS", "COUNT", "KEYS"), help="the other side alone")
    options = parser.parse_args()
    if options.peer:
        what, address, count, directory = options.peer
        PEERS[what](address, int(count), load(Path(directory), "actor") if directory else None)
        return
    units = {"rollouts": 1.0, "shards": SHARD_BYTES / 1e6, "connections": 1.0}
    names = {"rollouts": f"rollouts of {TOKENS} tokens/s", "shards": "weights, MB/s", "connections": "connections/s"}
    rows = []
    print(f"{'':28} {'open':>10} {'locked':>10}  libzmq {zmq.zmq_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        make(keys := Path(temporary) / "keys")
        for what, name in names.items():
            count = getattr(options, what)
            seconds = [(measure(what, count, None), measure(what, count, keys)) for _ in range(options.repeats)]
            plain, locked = (count * units[what] / min(way) for way in zip(*seconds, strict=True))
            rows.append({"what": name, "open": plain, "locked": locked})
            print(f"{name:28} {plain:10,.0f} {locked:10,.0f}", flush=True)
    content = {"machine": platform.platform(), "libzmq": zmq.zmq_version(), "repeats": options.repeats, "rows": rows}
    options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
