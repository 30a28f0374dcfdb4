"""An actor of the benchmark of ways: it fetches versions and copies them into parameters, and measures the limits.

Run by `tests.bench.workers`; a request is a map with what to `do`. Rates are bytes a second.
"""

import base64
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import zmq
from safetensors import safe_open

from actors.memory import keep_freed_blocks
from actors.weights.fetched import FetchedVersion
from actors.weights.receiver import WeightReceiver
from protocol.codec import decode
from protocol.messages import WeightManifest
from tests.bench.workers import serve

PATIENCE = 300.0  # seconds

_receiver: list[WeightReceiver] = []
_parameters: list[np.ndarray[Any, np.dtype[np.uint8]]] = []


def begin(nbytes: int) -> None:
    """Parameters of a new case, in memory already, and a receiver that holds nothing."""
    end()
    _parameters.append(np.ones(nbytes, dtype=np.uint8))
    _receiver.append(WeightReceiver(seconds=PATIENCE))


def end() -> None:
    """Let go of everything."""
    while _receiver:
        _receiver.pop().close()
    _parameters.clear()


def fetch(manifest: str) -> dict[str, Any]:
    """One version, from the offer to the last parameter."""
    message = decode([base64.b64decode(manifest)])
    assert isinstance(message, WeightManifest)
    receiver, parameters = _receiver[0], _parameters[0]
    receiver.receive()  # gives back the one before
    receiver.offer(message)
    began = time.perf_counter()
    fetched = wait(receiver)
    arrived = time.perf_counter()
    for spec, data in fetched.tensors():
        parameters[spec.offset : spec.offset + spec.nbytes] = data
    copied = time.perf_counter()
    return {
        "way": fetched.way,
        "wire_bytes": fetched.wire_bytes,
        "fetch_seconds": arrived - began,
        "copy_seconds": copied - arrived,
    }


def wait(receiver: WeightReceiver) -> FetchedVersion:
    """The next whole version."""
    while (fetched := receiver.receive()) is None:
        receiver.socket.poll(1000)
    return fetched


def raw(address: str, nbytes: int) -> float:
    """Seconds in which so many bytes come over a socket and are dropped."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
    socket.connect(address)
    socket.recv()
    began, arrived = time.perf_counter(), 0
    while arrived < nbytes:
        arrived += len(socket.recv(copy=False).buffer)
    seconds = time.perf_counter() - began
    socket.close(0)
    return seconds


def gloo(address: str, rank: int, world: int, nbytes: int, repeats: int) -> list[float]:
    """Seconds of each broadcast of so many bytes from rank 0."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    data = torch.ones(nbytes, dtype=torch.uint8)
    seconds = []
    for _ in range(repeats):
        dist.barrier()
        began = time.perf_counter()
        dist.broadcast(data, src=0)
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    dist.destroy_process_group()
    return seconds


def safetensors(path: str, repeats: int) -> list[float]:
    """Seconds in which a mapped file in the page cache is copied into parameters."""
    with safe_open(path, "pt") as file:
        parameters = {name: torch.ones_like(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        with safe_open(path, "pt") as file:
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(name))
        seconds.append(time.perf_counter() - began)
    return seconds


def memcpy(nbytes: int, repeats: int) -> list[float]:
    """Seconds in which so many bytes are copied."""
    source, target = np.ones(nbytes, dtype=np.uint8), np.ones(nbytes, dtype=np.uint8)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return seconds


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (begin, end, fetch, raw, gloo, safetensors, memcpy)
}


def main() -> None:
    """Answer until there is nothing more to do."""
    torch.set_num_threads(1)
    keep_freed_blocks()
    serve(lambda request: TASKS[request.pop("do")](**request))


if __name__ == "__main__":
    main()
