"""Ranks and devices: one process or many, CPU or CUDA, by the same calls."""

import os
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

_groups: dict[str, dist.ProcessGroup] = {}  # beside torch's own default group, which is as global


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the learner's processes.

    A batch is shared out among `world` places. With tensor parallelism several processes have the same place: they
    read the same part of the batch, and each computes a slice of every layer.
    """

    rank: int  # its place
    world: int
    device: torch.device
    mesh: DeviceMesh  # one dimension, the places: parameters are sharded over it
    tensor_mesh: DeviceMesh | None = None  # one dimension, the processes of this place, if there are several
    slice: int = 0  # which of them this is

    @property
    def first(self) -> bool:
        """Whether this is the one process that speaks for all."""
        return self.rank == 0 and self.slice == 0


def start(device: str, wait_seconds: float, tensor_parallel: int = 1) -> Ranks:
    """Join the process group that torchrun describes, or make one of a single process.

    `device` is `auto`, `cpu` or `cuda`; a collective may take `wait_seconds` (rank 0 waits for batches meanwhile).
    Raises `ValueError` for a device that is not here, or processes that cannot be dealt to places of `tensor_parallel`.
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
    return arrange(torch.device("cuda", local) if kind == "cuda" else torch.device("cpu"), tensor_parallel)


def arrange(device: torch.device, tensor_parallel: int) -> Ranks:
    """Deal the processes of the group to places of `tensor_parallel` each. Collective.

    Raises `ValueError` when that does not divide them.
    """
    processes = dist.get_world_size()
    if processes % tensor_parallel:
        raise ValueError(
            f"policy.tensor_parallel={tensor_parallel} with {processes} ranks: must divide them; start the learner by "
            "torchrun, or with learner.ranks, on a multiple"
        )
    shape = (processes // tensor_parallel, tensor_parallel)
    both = init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))
    mesh, tensor_mesh = both["data"], both["tensor"]
    _groups["data"] = mesh.get_group()
    place = Ranks(mesh.get_local_rank(), mesh.size(), device, mesh)
    return replace(place, tensor_mesh=tensor_mesh, slice=tensor_mesh.get_local_rank()) if tensor_parallel > 1 else place


def data_group() -> dist.ProcessGroup | None:
    """One process of every place, over which to add up what places computed; None: all processes, by torch's rules."""
    return _groups.get("data")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered, any other as it is, without gradient. Collective."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    here = tensor.detach().to(tensor.device_mesh.device_type)  # from host memory, where weights may be offloaded to
    assert isinstance(here, DTensor)
    return here.full_tensor()


def stop() -> None:
    """Leave the process group."""
    _groups.clear()
    dist.destroy_process_group()
