"""A real broker on loopback, in a thread, and the test's ends of connections to it."""

import secrets
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from stream_world import NumberedTasks

from learner.broker.config import BrokerRoot, StreamConfig, TaskConfig, identity
from learner.broker.cursor import Tasks
from learner.broker.http import StatusServer
from learner.broker.journal import Journal
from learner.broker.membership import Members
from learner.broker.service import Broker
from protocol.messages import (
    Ack,
    Goodbye,
    Heartbeat,
    Hello,
    Lease,
    Message,
    Rollout,
    RolloutDone,
    VersionSpan,
    WeightManifest,
)
from protocol.sockets import Dealer, Router


class Peer:
    """A test's end of a connection to the broker."""

    def __init__(self, address: str, role: Any, name: str, metrics_host: str = "") -> None:
        self.dealer = Dealer(address)
        self.acknowledged = 0
        self.hello = Hello(
            role=role,
            name=name,
            host="127.0.0.1",
            pid=7,
            metrics_port=9,
            metrics_host=metrics_host,
            versions={},
            session=secrets.token_hex(4),
        )
        self.dealer.send(self.hello)

    def expect(self, kind: type[Any], seconds: float = 5.0, skip: type[Any] = Heartbeat) -> Any:
        """The next message of a kind, heartbeats and what to `skip` aside; any other fails the test."""
        while True:
            message = self.dealer.receive(seconds)
            if isinstance(message, Ack):
                self.acknowledged = message.seq
            if isinstance(message, kind):
                return message
            assert isinstance(message, Heartbeat | Ack | skip), f"waited for {kind.__name__}, got {message}"

    def send(self, message: Message) -> None:
        self.dealer.send(message)


class Running:
    """A broker in a thread and the peers that joined it."""

    def __init__(
        self,
        directory: Path,
        tasks: Tasks | None = None,
        task: TaskConfig | None = None,
        address: str = "tcp://127.0.0.1:*",
        **stream: Any,
    ) -> None:
        options = {"group_size": 2, "groups_per_step": 1, "heartbeat_seconds": 0.05, "silence_seconds": 30.0} | stream
        self.router = Router(address)
        self.http = StatusServer("127.0.0.1", 0)
        config = BrokerRoot(model="m", task=task or TaskConfig(), stream=StreamConfig(**options))
        self.journal = Journal(directory / "journal.sqlite", identity(config))
        self.broker = Broker(config, tasks or NumberedTasks(), self.router, self.http, self.journal)
        self.peers: list[Peer] = []
        self.over: Goodbye | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.over = self.broker.run()

    def die(self) -> None:
        """As by kill -9: nobody is told, nothing is written any more."""
        self.broker.members = Members()  # its last words go to nobody
        self.broker.end("killed", finished=False)
        self.thread.join(10)
        self.router.socket.close(0)
        self.http.close()
        self.journal.close()

    def join(self, role: str, name: str | None = None, metrics_host: str = "") -> Peer:
        peer = Peer(self.router.address, role, name or role, metrics_host)
        self.peers.append(peer)
        return peer

    def page(self, path: str) -> bytes:
        with urllib.request.urlopen(self.http.address + path, timeout=5) as answer:
            content: bytes = answer.read()
        return content

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.broker.end("the test is over", finished=True)
        self.thread.join(10)
        assert not self.thread.is_alive()
        for peer in self.peers:
            peer.dealer.close()
        self.http.close()
        self.router.close()
        self.journal.close()


def manifest(version: int) -> WeightManifest:
    return WeightManifest(version=version, fingerprint=f"f{version}", endpoint="tcp://x:1", tensors=(), shards=())


def completion(lease: Lease, sample: int, version: int, fingerprint: str | None = None) -> RolloutDone:
    return RolloutDone(
        lease_id=lease.lease_id,
        rollout=Rollout(
            group_id=lease.group_id,
            sample_index=sample,
            prompt_ids=np.array([1], dtype=np.int32),
            token_ids=np.array([2, 3], dtype=np.int32),
            behaviour_logprobs=np.array([-1, -2], dtype=np.float32),
            version_spans=(VersionSpan(version=version, tokens=2, fingerprint=fingerprint or f"f{version}"),),
            finish_reason="stop",
            text="t",
        ),
    )
