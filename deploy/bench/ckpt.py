"""Checkpoints: saved with fsync and loaded again, in a cluster of one storage process and by the same writer on the local disk.

Half of the rows are safetensors files, which need numpy only; the other half torch.distributed.checkpoint, where torch is installed. Every
save replaces the one before, as training does; every load goes to memory that is there already, and is compared with what was saved.
From the cluster it goes to any memory, or to memory that its client has made and shares with servers on this host. Cold loads need root,
which may empty the page cache.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from ...client.blocking import Client, connect
from ...client.checkpoints.folders import folder_of
from ...client.checkpoints.tensor_files import load_folder, save_folder
from ...proto.errors import Status, error
from .loads import DROP_CACHES, drop_caches
from .measure import MIB, Median, in_turns, rate, row, temporary_cluster

if TYPE_CHECKING:
    import torch

TENSOR_BYTES = 64 * MIB
SHARD_BYTES = 1 << 30
AIM_SAVE, AIM_LOAD = 0.7, 0.8
CAPACITY_SAVES = 5  # of the target: a checkpoint, the one that replaces it, and room to spare
FREED_SECONDS_MAX = 120.0  # what a save replaces is freed in the background: the next measurement waits for it
FREED_PART = 15 / 16  # of what is not in use; the rest are headers


def run(quick: bool = False, mib: int = 0) -> dict[str, Any]:
    """Measure with `mib` MiB (default: 4 GiB, 256 MiB with `quick`); takes some minutes, or 20 s. Raises UNSUPPORTED without numpy."""
    if importlib.util.find_spec("numpy") is None:
        raise error(Status.UNSUPPORTED, "checkpoints are made of numpy arrays here: install numpy")
    rounds = 3 if quick else 5
    mib = mib or (256 if quick else 4096)
    kinds: dict[str, Callable[[int], Kind]] = {"safetensors": SafetensorsKind}
    left_out = ""
    if importlib.util.find_spec("torch") is None:
        left_out = "torch is not installed: without torch.distributed.checkpoint"
    else:
        kinds["torch.distributed.checkpoint"] = DistributedKind
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        cluster, local = stack.enter_context(temporary_cluster(port=0, capacity=CAPACITY_SAVES * mib * MIB, trash=0))
        for name, make in kinds.items():
            kind = make(mib)
            places = [f"{cluster.url.rstrip('/')}/{kind.name}", str(local / kind.name)]
            with connect(cluster.url) as client:
                rows += _rows(name, kind, places, mib, rounds, partial(_wait_for_room, client, mib, CAPACITY_SAVES - 1))
                for place in places:
                    folder_of(place).remove_all(forever=True)
                _wait_for_room(client, mib, CAPACITY_SAVES)
    return {"rows": rows, "mib": mib, "left_out": left_out}


def _wait_for_room(client: Client, mib: int, saves: int) -> None:
    """Wait until what so many saves take is free. Raises NO_SPACE if that takes too long."""
    end = time.monotonic() + FREED_SECONDS_MAX
    wanted = int(saves * mib * MIB * FREED_PART)
    while (free := client.statfs().free) < wanted:
        if time.monotonic() > end:
            raise error(
                Status.NO_SPACE, f"{free} bytes are free after {FREED_SECONDS_MAX:g} s, and {wanted} are needed"
            )
        time.sleep(0.1)


def _rows(
    name: str, kind: Kind, places: list[str], mib: int, rounds: int, room: Callable[[], None]
) -> list[dict[str, Any]]:
    def measured(work: Callable[[str], object], before: Callable[[], object] = lambda: None) -> list[Median]:
        def timed(place: str) -> float:
            before()
            return rate(mib, lambda: work(place))

        return in_turns([partial(timed, place) for place in places], rounds)

    for place in places:  # once unmeasured: what the first save does to a disk, none after it does
        kind.save(place)
    made = []
    value, base = measured(kind.save, room)
    made.append(row(f"{name}: save, fsync", value, "MiB/s", base, aim=AIM_SAVE))
    loaded(kind, places)
    value, base = measured(kind.load)
    made.append(row(f"{name}: load, warm", value, "MiB/s", base, aim=AIM_LOAD))
    with folder_of(places[0]).client.shared_memory(kind.size) as memory:  # type: ignore[attr-defined]
        kind.use(places[0], memory.view)
        loaded(kind, places)
        value, base = measured(kind.load)
        made.append(row(f"{name}: load to shared memory, warm", value, "MiB/s", base, aim=AIM_LOAD))
        kind.use(places[0], None)
    if os.access(DROP_CACHES, os.W_OK):
        value, base = measured(kind.load, drop_caches)
        made.append(row(f"{name}: load, cold", value, "MiB/s", base, aim=AIM_LOAD))
    loaded(kind, places)
    return made


def loaded(kind: Kind, places: list[str]) -> None:
    """Load unmeasured, and look at what came: memory that nobody has touched is not there yet. Raises CHECKSUM."""
    for place in places:
        kind.load(place)
        kind.check()


class Kind:
    """A way to save and load `mib` MiB of tensors; `check` that the last load brought what was saved."""

    name = ""

    def __init__(self, mib: int) -> None:
        import numpy as np

        self.size = mib * MIB + MIB  # of memory that all of it is loaded to
        self._given: dict[str, memoryview] = {}

        draw = np.random.default_rng(1)
        block = draw.integers(0, 255, TENSOR_BYTES, "u1")
        self.saved: dict[str, Any] = {}
        for i in range(mib * MIB // TENSOR_BYTES):
            self.saved[f"layer.{i}.weight"] = (block + np.uint8(i)).view("f4").reshape(-1, 4096)

    def use(self, place: str, memory: memoryview | None) -> None:
        """What to load to from a place; None: memory of its own."""
        if memory is None:
            del self._given[place]
        else:
            self._given[place] = memory

    def save(self, place: str) -> None:
        raise NotImplementedError

    def load(self, place: str) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Raises CHECKSUM."""
        raise NotImplementedError

    def _compare(self, found: dict[str, Any]) -> None:
        for name, value in self.saved.items():
            if value.tobytes() != found[name].tobytes():
                raise error(Status.CHECKSUM, f"{self.name}: {name} was loaded with other bytes")


class SafetensorsKind(Kind):
    name = "safetensors"

    def __init__(self, mib: int) -> None:
        super().__init__(mib)
        import numpy as np

        self._memory = np.zeros(self.size, np.uint8)
        self._loaded: dict[str, Any] = {}

    def save(self, place: str) -> None:
        save_folder(self.saved, place, shard_bytes=SHARD_BYTES)

    def load(self, place: str) -> None:
        self._loaded = load_folder(place, into=self._given.get(place, self._memory))

    def check(self) -> None:
        self._compare(self._loaded)


class DistributedKind(Kind):
    name = "distributed"

    def __init__(self, mib: int) -> None:
        super().__init__(mib)
        import torch

        self._state = {name: torch.from_numpy(value) for name, value in self.saved.items()}
        self._memory = memoryview(bytearray(self.size))
        self._loaded: dict[str, torch.Tensor] = {}

    def save(self, place: str) -> None:
        import torch.distributed.checkpoint as dcp

        from ...client.checkpoints.dcp import StorageWriter

        with warnings.catch_warnings():  # that there is only one process
            warnings.simplefilter("ignore")
            dcp.save(self._state, storage_writer=StorageWriter(place))

    def load(self, place: str) -> None:
        import torch.distributed.checkpoint as dcp

        from ...client.checkpoints.dcp import StorageReader

        self._loaded = self._tensors(self._given.get(place, self._memory))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(self._loaded, storage_reader=StorageReader(place))

    def _tensors(self, memory: memoryview) -> dict[str, torch.Tensor]:
        """Tensors like those that were saved, one after the other in this memory."""
        import torch

        made, end = {}, 0
        for name, value in self._state.items():
            part = memory[end : end + value.nbytes]
            made[name] = torch.frombuffer(part, dtype=value.dtype).reshape(value.shape)
            end += value.nbytes
        return made

    def check(self) -> None:
        self._compare({name: value.numpy() for name, value in self._loaded.items()})
