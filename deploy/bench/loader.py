"""Random samples for training: from a cluster of one storage process over shared memory, beside plain reads of the same files on the local
disk, fio, and the same data set class on the local disk.

Every sample carries its number, and each batch is compared with what was asked for. Cold rows need root (to empty the page cache) and fio,
the row with workers torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ...proto.errors import Status, error
from .loads import DROP_CACHES, drop_caches
from .measure import MIB, in_turns, row, temporary_cluster

KIB = 1 << 10
BATCH = 256
SIZES = {4 * KIB: 0.3, 128 * KIB: 0.8}  # bytes of a sample -> aim of its warm row
AIM_COLD, AIM_WORKERS, AIM_MEMORY_MB = 0.7, 0.8, 200
WORKERS = 2
SHARDS = 4  # of each data set
TINY_BYTES, TINY_COUNT = 16, 1_000_000  # of the shard that is a data set of 10^9 samples, named a thousand times
TINY_TIMES = 1000
TINY_BATCHES = 200

_MEMORY = """
import sys
from emberfs.client.loader import Loader, Samples, open_store
from emberfs.client.loader.index import RecordIndex
store = open_store(sys.argv[1])
samples = Samples(store, RecordIndex(store, ["part-00000.records"] * int(sys.argv[2])))
seen = 0
for batches, batch in enumerate(Loader(samples, int(sys.argv[3]), seed=1)):
    first = len(samples) // int(sys.argv[2])
    assert all(int.from_bytes(sample[:8], "little") == number % first for number, sample in zip(batch.numbers.tolist(), batch))
    if batches == int(sys.argv[4]):
        break
print(len(samples), int(open("/proc/self/statm").read().split()[1]) * 4096)
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes two minutes, or 30 s with `quick`. Raises UNSUPPORTED without numpy."""
    if importlib.util.find_spec("numpy") is None:
        raise error(Status.UNSUPPORTED, "the loader needs numpy: install it")
    from ...client.loader import Loader, ShardedWriter, open_samples, open_store

    mib, rounds = (128, 3) if quick else (1024, 5)
    rows: list[dict[str, Any]] = []
    left_out = []
    cold = os.geteuid() == 0 and DROP_CACHES.exists() and shutil.which("fio") is not None
    if not cold:
        left_out.append("cold reads: they need root and fio")
    workers = importlib.util.find_spec("torch") is not None
    if not workers:
        left_out.append("workers: torch is not installed")
    with ExitStack() as stack:
        cluster, folder = stack.enter_context(temporary_cluster(port=0, capacity=8 * mib * MIB))
        url = cluster.url.rstrip("/")
        for size, aim in SIZES.items():
            count = mib * MIB // size
            block = random.Random(size).randbytes(size - 8)  # noqa: S311
            places = [f"{url}/{size}", str(folder / str(size))]
            for place in places:
                store = open_store(place)
                with ShardedWriter(store, shard_bytes=count * size // SHARDS) as writer:
                    writer.write_all(number.to_bytes(8, "little") + block for number in range(count))
                store.close()
            name = f"{size // KIB} KiB"
            local = Path(places[1])
            ours, same = (Loader(open_samples(place), BATCH, seed=1) for place in places)
            ways = [partial(_epoch, ours), partial(_preadv, local, same), partial(_epoch, same)]
            warm, bare, disk = in_turns(ways, rounds)
            made = row(f"samples of {name}, batches of {BATCH}, warm, shm", warm, "samples/s", bare, aim=aim)
            rows.append({**made, "baseline_is": "preadv in a loop", "same_class_on_disk": round(disk)})
            if cold:
                rows.append(_cold(name, size, ours, local, rounds))
            if workers:
                rows.append(_workers(name, places, rounds))
            ours.samples.close()
            for place in places:
                _remove(place)
        rows.append(_memory(url, quick))
    return {"rows": rows, "mib": mib, "left_out": "; ".join(left_out)}


def _epoch(loader: Any, samples_max: int = 1 << 62) -> float:
    """Samples a second of an epoch, or of its beginning."""
    loader.set_epoch(0)
    seen = 0
    begin = time.perf_counter()
    for batch in loader:
        stacked = batch.stacked("<i8")
        if not (stacked[:, 0] == batch.numbers).all():
            raise error(Status.INTERNAL, "a batch holds other samples than were asked for")
        seen += len(batch)
        if seen >= samples_max:
            break
    return seen / (time.perf_counter() - begin)


def _preadv(folder: Path, loader: Any) -> float:
    """The same samples from the same places of local files, each by a `preadv` into its part of a buffer for a batch."""
    index, store = loader.samples.index, loader.samples.store
    loader.set_epoch(0)
    plan, opened = loader.plan, {}
    batches = []
    while (numbers := plan.take()) is not None:
        places = index.look_up(numbers).finish()
        batches.append((places.file.tolist(), places.offset.tolist(), int(places.length[0])))
    for number, path in enumerate(index.paths):
        opened[number] = os.open(store.path(path), os.O_RDONLY)
    size = batches[0][2]
    view = memoryview(bytearray(BATCH * size))
    views = [view[at : at + size] for at in range(0, BATCH * size, size)]
    seen = 0
    begin = time.perf_counter()
    for files, offsets, _ in batches:
        for file, offset, target in zip(files, offsets, views, strict=False):
            os.preadv(opened[file], [target], offset)
        seen += len(files)
    spent = time.perf_counter() - begin
    for descriptor in opened.values():
        os.close(descriptor)
    return seen / spent


def _cold(name: str, size: int, loader: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """Not more than an eighth of the data set each time: what was read stays warm."""
    few = max(BATCH, len(loader.samples) // 8)

    def ours() -> float:
        drop_caches()
        return _epoch(loader, few)

    value, base = in_turns([ours, partial(_fio, folder, size, few)], rounds)
    what = f"samples of {name}, batches of {BATCH}, cold"
    made = row(what, value, "samples/s", base, aim=AIM_COLD)
    return {**made, "baseline_is": f"fio, random reads, direct, depth {BATCH}"}


def _fio(folder: Path, size: int, count: int) -> float:
    drop_caches()
    files = ":".join(str(path) for path in sorted(folder.iterdir()) if path.stat().st_size > MIB)
    command = [
        "fio",
        "--name=bench",
        f"--filename={files}",
        "--rw=randread",
        f"--bs={size}",
        "--ioengine=libaio",
        "--direct=1",
    ]
    command += [f"--iodepth={BATCH}", f"--io_size={count * size}", "--randrepeat=0", "--output-format=json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["iops"])


def _workers(name: str, places: list[str], rounds: int) -> dict[str, Any]:
    """A torch DataLoader with forked workers, over the cluster and over the local disk. What its beginning costs is not counted."""
    from torch.utils.data import DataLoader

    from ...client.loader import open_samples
    from ...client.loader.pytorch import EpochBatches

    def rate(place: str) -> float:
        batches = EpochBatches(open_samples(place), BATCH, seed=1)
        loader = DataLoader(batches, batch_size=None, num_workers=WORKERS, multiprocessing_context="fork")
        found = iter(loader)
        for _ in range(WORKERS):
            next(found)
        seen, begin = 0, time.perf_counter()
        for batch in found:
            seen += len(batch)
        spent = time.perf_counter() - begin
        batches.samples.close()
        return seen / spent

    value, base = in_turns([partial(rate, place) for place in places], rounds)
    what = f"samples of {name} through DataLoader, {WORKERS} workers, warm"
    return {**row(what, value, "samples/s", base, aim=AIM_WORKERS), "baseline_is": "the same class on the local disk"}


def _memory(url: str, quick: bool) -> dict[str, Any]:
    """Of a process that reads in random order from 10^9 samples: a shard of a million, a thousand times."""
    from ...client.loader import ShardedWriter, open_store

    store = open_store(f"{url}/tiny")
    with ShardedWriter(store) as writer:
        writer.write_all(number.to_bytes(TINY_BYTES, "little") for number in range(TINY_COUNT))
    store.close()
    batches = TINY_BATCHES // 4 if quick else TINY_BATCHES
    measured = []
    for some in (batches // 4, batches):
        command = [sys.executable, "-P", "-c", _MEMORY, f"{url}/tiny", str(TINY_TIMES), str(BATCH), str(some)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        count, used = map(int, done.stdout.split())
        measured.append(used / 1e6)
    what = f"a loader over {count:,} samples, resident"
    return row(what, measured[1], "MB", aim=AIM_MEMORY_MB, least=False, after_a_quarter=round(measured[0], 1))


def _remove(place: str) -> None:
    if not place.startswith("ember:"):
        shutil.rmtree(place)
        return
    from ...client.blocking import connect

    host, _, path = place.removeprefix("ember://").partition("/")
    with connect(f"ember://{host}/") as client:
        client.remove_tree(f"/{path}", forever=True)
