"""Functions for processes that training tests spawn, which import them by name."""

from __future__ import annotations

import warnings
from typing import Any

ROWS, COLUMNS = 12, 10


def whole_weight(version: int) -> Any:
    import torch

    return torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS) + 1000.0 * version


def save_and_load_sharded(rank: int, world: int, meeting: str, url: str) -> None:
    """A rank that saves its rows twice, the second time by `async_save`, and loads its columns and a replicated tensor each time."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from emberfs.client.checkpoints.dcp import StorageReader, StorageWriter

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        mesh = init_device_mesh("cpu", (world,))

        def state(value: Any, by: Any) -> dict[str, Any]:
            return {
                "weight": distribute_tensor(value, mesh, [by]),
                "bias": distribute_tensor(value[0].clone(), mesh, [Replicate()]),
                "steps": {"done": int(value[0, 0])},
            }

        writer = StorageWriter(url)
        for version in (1, 2):
            saved = state(whole_weight(version), Shard(0))
            if version == 1:
                dcp.save(saved, storage_writer=writer)
            else:
                dcp.async_save(saved, storage_writer=writer).result()
            dist.barrier()
            loaded = state(torch.zeros(ROWS, COLUMNS), Shard(1))
            dcp.load(loaded, storage_reader=StorageReader(url))
            assert torch.equal(loaded["weight"].full_tensor(), whole_weight(version))
            assert torch.equal(loaded["bias"].full_tensor(), whole_weight(version)[0])
            assert loaded["steps"] == {"done": 1000 * version}
            dist.barrier()
    finally:
        dist.destroy_process_group()


def save_from_another_process(rank: int, world: int, meeting: str, url: str) -> None:
    """A rank that saves twice by `async_save` with torch's own checkpointing process, and once what fails there."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    from emberfs.client.checkpoints.dcp import StorageReader, StorageWriter

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:

        def save(version: int, where: str) -> Any:
            return dcp.async_save(
                {"weight": whole_weight(version), "steps": {"done": version}},
                storage_writer=StorageWriter(where),
                async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            )

        for version in (1, 2):
            save(version, url).result()
            loaded: dict[str, Any] = {"weight": torch.zeros(ROWS, COLUMNS), "steps": {"done": 0}}
            dcp.load(loaded, storage_reader=StorageReader(url))
            assert torch.equal(loaded["weight"], whole_weight(version)) and loaded["steps"] == {"done": version}
        assert save(3, "/proc/nowhere").exception() is not None, "a save that cannot be is told to be done"
    finally:
        dist.destroy_process_group()
