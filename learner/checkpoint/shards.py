"""How `torch.distributed.checkpoint` puts one rank's shards into a safetensors file.

torch's own writer puts the whole file together in memory first, while it holds the interpreter's lock: a second copy,
and a halt of training for as long as that takes. This one writes from the tensors as they are, without the lock. What
it writes is for torch's `HuggingFaceStorageReader`, which takes the place of a shard in its tensor from the header.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

SHARDING = "DCP_SHARDING_INFO"  # the reader's word for the places of shards


class ShardWriter(HuggingFaceStorageWriter):
    """Writes `directory`/shard-<rank + 1>.safetensors and waits until it is on the disk. Tensors are in CPU memory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory), save_distributed=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the shards that the plan gives this rank; empty ones (more ranks than rows) are left out."""
        tensors: dict[str, torch.Tensor] = {}
        places: dict[str, dict[str, list[int]]] = {}
        results: list[WriteResult] = []
        for item in plan.items:
            tensor, where = planner.resolve_data(item), item.tensor_data
            assert isinstance(tensor, torch.Tensor), "only tensors are kept"
            assert where is not None, "a tensor has a place"
            results.append(WriteResult(item.index, tensor.nbytes, None))
            if tensor.numel():
                tensors[item.index.fqn] = tensor.detach().contiguous()
                places[item.index.fqn] = {"saved_offsets": list(where.chunk.offsets)}
        if tensors:
            path = Path(self.path) / f"shard-{plan.storage_data['shard_index']:05d}.safetensors"
            save_file(tensors, path, metadata={"format": "pt", SHARDING: json.dumps(places)})
            with path.open("rb") as file:
                os.fsync(file.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done
