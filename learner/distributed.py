"""Ranks and devices: one process or many, CPU or CUDA, by the same calls."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the learner's processes."""

    rank: int
    world: int
    device: torch.device
    mesh: DeviceMesh  # one dimension: parameters are sharded over it

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which speaks for all."""
        return self.rank == 0


def start(device: str, wait_seconds: float) -> Ranks:
    """Join the process group that torchrun describes, or make one of a single process.

    `device` is `auto`, `cpu` or `cuda`; a collective may take `wait_seconds` (rank 0 waits for batches meanwhile).
    Raises `ValueError` for a device that is not here.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"learner.device={device}: must be auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("learner.device=cuda: torch sees no CUDA device; use learner.device=cpu")
    backend = "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=wait_seconds + 300)
    if "RANK" in os.environ:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if kind == "cuda":
            torch.cuda.set_device(local)
        dist.init_process_group(backend, timeout=timeout)
    else:
        local = 0
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    world = dist.get_world_size()
    place = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    return Ranks(dist.get_rank(), world, place, init_device_mesh(kind, (world,)))


def stop() -> None:
    """Leave the process group."""
    dist.destroy_process_group()
