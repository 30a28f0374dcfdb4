"""`python attack.py ADDRESS SEED FRAMES [RAW]`: a process that sends hostile frames to a broker, by every way there is.

Most of them by libzmq: noise, messages with damaged bytes, messages with a field of another kind, messages in no order.
The share `RAW` over connections that libzmq would not make: noise instead of a greeting, handshakes that break off or
go wrong, frames that are announced and never come, messages that never end. Some peers never read, some leave in the
middle. Prints how many frames left.
"""

import random
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import zmq
import zmtp

from protocol.codec import encode
from protocol.messages import (
    Ack,
    BatchRequest,
    Checkpointed,
    Consumed,
    Goodbye,
    GroupRange,
    Heartbeat,
    Hello,
    LeaseFailed,
    LeaseRequest,
    Message,
    Resume,
    Rollout,
    RolloutDone,
    ShardRequest,
    Verdict,
    VerifyDone,
    VerifyRequest,
    VersionSpan,
    WeightManifest,
    WhoAreYou,
)

PEERS = 8
SEND_MS = 2000  # that a frame may wait for the broker to read; then the connection is given up
NUMBERS = (0, 1, 2, 7, 2**31 - 1)
OTHER_VALUES = (None, True, -1, 2**63, 1e400, "", "x" * 5000, b"\xff", [], {}, [[[[]]]], {"": {}}, float("nan"))


def anything(dice: random.Random) -> Message:
    """A message that is well formed, with ids that may or may not be."""

    def number() -> int:
        return dice.choice(NUMBERS)

    verdict = Verdict(reward=dice.choice([None, 0.0, 1e300]), parts={}, reason="r", seconds=0.0)
    span = VersionSpan(version=number(), tokens=2, fingerprint=dice.choice(["f0", "f1", ""]))
    rollout = Rollout(
        group_id=number(),
        sample_index=number(),
        prompt_ids=np.array([1], dtype=np.int32),
        token_ids=np.array([2, 3], dtype=np.int32),
        behaviour_logprobs=np.array([-1, -2], dtype=np.float32),
        version_spans=(span,),
        finish_reason="stop",
        text="t",
    )
    makers: list[Callable[[], Message]] = [
        lambda: hello(dice),
        lambda: Heartbeat(policy_version=number(), gauges={"x": 1.0}, waiting_for="\n\x1b[2J"),
        lambda: LeaseRequest(capacity=number()),
        lambda: RolloutDone(seq=number(), lease_id=number(), rollout=rollout),
        lambda: LeaseFailed(seq=number(), lease_id=number(), reason="r", detail="d"),
        lambda: VerifyRequest(capacity=number()),
        lambda: VerifyDone(seq=number(), job_id=number(), group_id=number(), sample_index=number(), verdict=verdict),
        lambda: Resume(policy_version=number(), consumed=(GroupRange(first=0, last=number()),)),
        lambda: BatchRequest(policy_version=number()),
        lambda: Consumed(policy_version=number(), group_ids=(number(),)),
        lambda: Checkpointed(policy_version=number()),
        lambda: WeightManifest(version=number(), fingerprint="f", endpoint="tcp://x:1", tensors=(), shards=()),
        lambda: Goodbye(reason="r", finished=False),
        lambda: Ack(seq=number()),
        lambda: WhoAreYou(),
        lambda: ShardRequest(version=number(), shard=number()),
    ]
    return dice.choice(makers)()


def hello(dice: random.Random) -> Hello:
    role: Any = dice.choice(["learner", "actor", "verifier"])
    return Hello(
        role=role,
        name=dice.choice(["x", "y", "actor", str(dice.random())]),
        host="h",
        pid=1,
        metrics_port=0,
        versions={},
        session=dice.choice(["", "s", str(dice.random())]),
        holds=(dice.choice(NUMBERS),),
    )


def hostile(dice: random.Random) -> list[bytes]:
    """The frames of one message: noise, or a valid one that is damaged, bent, or has no place."""
    kind = dice.random()
    if kind < 0.2:
        return [dice.randbytes(dice.choice([0, 1, 10, 100, 1000])) for _ in range(dice.randint(1, 5))]
    frames = [bytes(frame) for frame in encode(anything(dice))]
    if kind < 0.4:
        return damaged(frames, dice)
    if kind < 0.6:
        return [msgpack.packb(bent(msgpack.unpackb(frames[0]), dice)), *frames[1:]]
    if kind < 0.65:
        return dice.sample(frames, dice.randint(1, len(frames))) * dice.randint(1, 3)
    return frames


def damaged(frames: list[bytes], dice: random.Random) -> list[bytes]:
    """Some bytes of one frame are others, or its end is missing."""
    which = dice.randrange(len(frames))
    body = bytearray(frames[which]) or bytearray(b"x")
    for _ in range(dice.randint(1, 4)):
        body[dice.randrange(len(body))] = dice.randrange(256)
    frames[which] = bytes(body[: dice.randint(1, len(body))] if dice.random() < 0.3 else body)
    return frames


def bent(value: Any, dice: random.Random) -> Any:
    """`value` with one thing in it that is of another kind, is missing, or is too much."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        name = dice.choice(list(value))
        if dice.random() < 0.1:
            return {key: item for key, item in value.items() if key != name}
        return value | {name if dice.random() < 0.95 else "extra": bent(value[name], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        return [*value[:place], bent(value[place], dice), *value[place + 1 :]]
    return dice.choice(OTHER_VALUES)


class Attack:
    """Peers that come and go, and frames for them."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.dice = random.Random(seed)
        self.peers = [self._peer() for _ in range(PEERS)]
        self.raw: list[socket.socket] = []
        self.sent = 0

    def run(self, frames: int, raw: float) -> None:
        """Send so many frames, a share of them over connections made by hand."""
        while self.sent < frames:
            if self.dice.random() < raw:
                self._by_hand()
            else:
                self._by_library(self.dice.randrange(PEERS))
        for tcp in self.raw:
            tcp.close()
        for peer in self.peers:
            peer.close(SEND_MS)  # what is on its way still leaves

    def _peer(self) -> "zmq.Socket[bytes]":
        peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for name, value in ((zmq.LINGER, 0), (zmq.SNDTIMEO, SEND_MS), (zmq.RCVHWM, self.dice.choice([1, 0]))):
            peer.setsockopt(name, value)
        peer.connect(self.address)
        return peer

    def _by_library(self, place: int) -> None:
        message = hostile(self.dice)
        try:
            self.peers[place].send_multipart(message)
            self.sent += len(message)
        except zmq.Again:
            self.sent += self._replace(place)
            return
        if self.dice.random() < 0.001:
            self._replace(place)
        elif self.dice.random() < 0.5 and place % 2:  # the others never read
            with suppress(zmq.Again):
                while True:
                    self.peers[place].recv_multipart(zmq.NOBLOCK)

    def _replace(self, place: int) -> int:
        self.peers[place].close()
        self.peers[place] = self._peer()
        return 0

    def _by_hand(self) -> None:
        """One connection that libzmq would not make; some stay open."""
        dice, size = self.dice, self.dice.choice([0, 200, 2**20, 2**26, 2**62])
        ways: list[Callable[[socket.socket], list[bytes]]] = [
            lambda tcp: [],
            lambda tcp: [dice.randbytes(dice.randint(1, 3000))],
            lambda tcp: [zmtp.greeting(dice.choice([b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", b"x"]))],
            lambda tcp: [zmtp.greeting(b"CURVE"), zmtp.frame(b"\x05HELLO" + dice.randbytes(194), command=True)],
            lambda tcp: [zmtp.greeting(b"CURVE"), zmtp.frame(b"\x08INITIATE" + dice.randbytes(248), command=True)],
            lambda tcp: [zmtp.greeting(b"CURVE"), zmtp.header(size, command=True), bytes(min(size, 10**5))],
            lambda tcp: [zmtp.HANDSHAKE, zmtp.header(size), bytes(min(size, 10**5))],
            lambda tcp: [zmtp.HANDSHAKE, *(zmtp.frame(dice.randbytes(100), more=True) for _ in range(200))],
            lambda tcp: [zmtp.SIGNATURE + b"\x01\x00\x05\x00", zmtp.frame(dice.randbytes(10))],
        ]
        with suppress(OSError):
            tcp = zmtp.connect(self.address)
            tcp.settimeout(0.05)
            self.raw.append(tcp)
            for part in dice.choice(ways)(tcp):
                tcp.sendall(part)
                self.sent += 1
        while len(self.raw) > 100:
            self.raw.pop(dice.randrange(len(self.raw))).close()


def main() -> None:
    address, seed, frames, *raw = sys.argv[1:]
    attack = Attack(address, int(seed))
    attack.run(int(frames), float(raw[0]) if raw else 0.02)
    zmq.Context.instance().term()
    print(attack.sent)


if __name__ == "__main__":
    main()
