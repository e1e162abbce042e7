"""The KV cache against local files, Redis and memcached, all in turns in one run: batches of blocks in and out, matches, what it costs
in processor time, a working set beyond the memory tier, and a trace.

With a trace file the hit ratios of eviction policies are simulated on it, and it is replayed against a cluster with blocks scaled down.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...proto.blocks import KEY_BYTES
from ...proto.errors import Status, StatusError
from . import kv_peers, kv_simulation
from .kv_loads import Blocks, Files, bare_copier, copy_bare, cpu_of, cpu_seconds, drop_cache, shuffled
from .kv_traces import Request, conversations, load
from .measure import MIB, Median, in_turns, median_us, rate, row, temporary_cluster

GIB = 1 << 30
TOKEN_BYTES = 70_272  # DeepSeek-V3's latent attention, bf16, one token in all layers
BLOCK = 64 * TOKEN_BYTES  # 4.29 MiB: a page of 64 tokens
SIZES = (MIB // 2, 16 * TOKEN_BYTES, 5 * MIB // 2, BLOCK, 256 * TOKEN_BYTES)  # 0.5, 1.07, 2.5, 4.29, 17.2 MiB
BATCHES = (1, 8, 32, 128)
BATCH = 32
MIXED_PUTS = 0.63  # of the batches: what a chat service writes anew
TIER_TIMES = 3  # the working set in memory tiers
REPLAY_BLOCK = 64 << 10
REPLAY_BATCH = 128
REPLAY_SPEED = 20
AIM_GET, AIM_PUT = 0.7, 0.6
AIM_MATCH_MS = {128: 1.0, 2_000: 5.0}
AIM_REDIS_GET, AIM_REDIS_PUT, AIM_MEMCACHED = 2.0, 1.5, 1.0
AIM_GETS, AIM_PUTS = 150_000, 100_000
AIM_COLD_PUT, AIM_COLD_GET = 0.7, 0.9
AIM_CPU = 1.3


class Sizes(NamedTuple):
    rounds: int
    bytes: int  # moved by one round of a row of large blocks
    middle_batches: int  # of 64 KiB blocks
    small_batches: int  # of 4 KiB blocks
    matches: int
    tier: int  # bytes of the memory tier in the row about it
    requests: int  # of a trace that is made here
    replayed: int  # requests
    replay_capacity: int  # blocks
    matrix: bool  # all sizes and batches


FULL = Sizes(5, GIB, 150, 2_000, 300, 512 * MIB, 12_000, 4_000, 20_000, True)
QUICK = Sizes(3, 256 * MIB, 50, 500, 50, 128 * MIB, 2_000, 400, 2_000, False)


def run(quick: bool = False, trace: str = "") -> dict[str, Any]:
    """Measure; some minutes, or one with `quick`. `trace`: a file, otherwise one is made with the statistics of a chat service's."""
    sizes = QUICK if quick else FULL
    requests = load(Path(trace)) if trace else conversations(sizes.requests, seed=1)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    with ExitStack() as stack:
        largest = max(SIZES) * max(BATCHES) if sizes.matrix else BLOCK * BATCH
        capacity = 4 * max(largest, sizes.bytes)
        cluster, folder = stack.enter_context(
            temporary_cluster(port=0, capacity=GIB, kv_capacity=capacity, kv_memory=capacity)
        )
        with _client(cluster) as kv:
            server = _storage_process(cluster)
            rows += _large(kv, folder, sizes)
            rows += _cpu(kv, folder, sizes, server)
            rows += _matches(kv, sizes)
            rows += _peers(kv, folder, sizes, left_out)
            rows += _small(kv, sizes, server)
            rows.append(_mixed(kv, folder, sizes))
            if sizes.matrix:
                rows += _matrix(kv, folder, sizes)
    rows += _beyond_memory(sizes)
    rows += _replay(requests, sizes)
    capacities = kv_simulation.CAPACITIES if not quick else kv_simulation.CAPACITIES[:1]
    rows += kv_simulation.rows(requests, capacities)
    return {"rows": rows, "left_out": "; ".join(left_out), "trace": Path(trace).name or "made here"}


def _client(cluster: Any) -> Any:
    from ...kvcache import KVCache

    return KVCache(cluster.url, timeout=60)


def _storage_process(cluster: Any) -> int:
    return next(int(one["pid"]) for one in cluster.status()["servers"] if one["name"].startswith("storage"))


def _mib(size: int) -> str:
    return f"{size / MIB:.3g} MiB"


# --- large blocks against local files ----------------------------------------------------------------------------------------------------


def _large(kv: Any, folder: Path, sizes: Sizes) -> list[dict[str, Any]]:
    made = _against_files(kv, folder, BLOCK, BATCH, sizes.bytes, sizes.rounds)
    return [
        _aimed(made[0], AIM_GET),
        _aimed(made[1], AIM_PUT),
    ]


def _aimed(made: dict[str, Any], aim: float) -> dict[str, Any]:
    return {**made, "aim": f"≥ {aim:g}×", "met": made["ratio"] >= aim}


def _against_files(kv: Any, folder: Path, size: int, batch: int, amount: int, rounds: int) -> list[dict[str, Any]]:
    """A row for gets and one for puts."""
    batches = max(1, amount // (size * batch))
    mib = batches * batch * size / MIB
    with ExitStack() as stack:
        blocks = Blocks(kv, size, batch)
        stack.callback(blocks.close)
        files = Files(folder, blocks, batches)
        stack.callback(files.close)
        files.make()
        stored = blocks.keys(batches)
        blocks.put_all(stored)
        get, read = in_turns(
            [partial(rate, mib, lambda: blocks.get_all(stored)), partial(rate, mib, files.read)], rounds
        )
        blocks.delete(stored)

        def put() -> float:
            keys = blocks.keys(batches)
            done = rate(mib, lambda: blocks.put_all(keys))
            blocks.delete(keys)
            return done

        def write() -> float:
            done = rate(mib, files.write)
            files.remove()
            return done

        put(), write()  # pages that this machine never had before cost more than everything else
        stored_rate, written = in_turns([put, write], rounds)
    name = f"{_mib(size)} × {batch}"
    return [
        row(f"get_into, {name}, against preadv of a local file", get, "MiB/s", read),
        row(f"put_from, {name}, against pwrite of new local files", stored_rate, "MiB/s", written, again=blocks.again),
    ]


def _matrix(kv: Any, folder: Path, sizes: Sizes) -> list[dict[str, Any]]:
    made = []
    for size in SIZES:
        for batch in BATCHES:
            if (size, batch) != (BLOCK, BATCH):
                made += _against_files(kv, folder, size, batch, sizes.bytes // 4, 3)
    return made


def _cpu(kv: Any, folder: Path, sizes: Sizes, server: int) -> list[dict[str, Any]]:
    """Processor seconds of client and server for each GiB that is read, against a process that only copies."""
    batches = max(1, sizes.bytes // (BLOCK * BATCH))
    gib = batches * BATCH * BLOCK / GIB
    with ExitStack() as stack:
        blocks = Blocks(kv, BLOCK, BATCH, "cpu")
        stack.callback(blocks.close)
        files = Files(folder, blocks, batches)
        stack.callback(files.close)
        files.make()
        stored = blocks.keys(batches)
        blocks.put_all(stored)
        region = os.memfd_create("emberfs-bench")
        stack.callback(os.close, region)
        os.ftruncate(region, len(blocks.buffer))
        end, copier = stack.enter_context(bare_copier(files.folder / "blocks", region, len(blocks.buffer)))
        source = kv.allocate(len(blocks.buffer))
        stack.callback(kv.unregister, source)
        source.view[:] = blocks.buffer.view

        def memcpy() -> None:
            for _ in range(batches):
                blocks.buffer.view[:] = source.view

        mine = os.getpid()
        ours, copied, bare = in_turns(
            [
                lambda: cpu_of([mine, server], lambda: blocks.get_all(stored)) / gib,
                lambda: cpu_of([mine], memcpy) / gib,
                lambda: cpu_of([mine, copier], lambda: copy_bare(end, BLOCK, BATCH, batches)) / gib,
            ],
            sizes.rounds,
        )
    made = row("processor time, get_into, against copying memory", ours, "s/GiB", copied, aim=AIM_CPU, least=False)
    return [made, row("the same, against a bare preadv into shared memory", ours, "s/GiB", bare)]


# --- small ones --------------------------------------------------------------------------------------------------------------------------


def _matches(kv: Any, sizes: Sizes) -> list[dict[str, Any]]:
    """All keys are there."""
    made = []
    blocks = Blocks(kv, 4096, 500, "match")
    try:
        stored = blocks.keys(4)
        blocks.put_all(stored)
        keys = b"".join(stored)
        for count, aim in AIM_MATCH_MS.items():
            asked = keys[: count * KEY_BYTES]
            if kv.match(blocks.namespace, asked).n != count:
                raise StatusError(Status.LOST_DATA, "a block is not there")
            once = partial(kv.match, blocks.namespace, asked)
            times = [median_us(once, sizes.matches) / 1000 for _ in range(sizes.rounds)]
            made.append(row(f"match of {count:,} keys, all there, p50", Median(times), "ms", aim=aim, least=False))
    finally:
        blocks.close()
    return made


def _small(kv: Any, sizes: Sizes, server: int) -> list[dict[str, Any]]:
    """Blocks of 4 KiB from one process: how many a second, and what one costs client and server. Got in the batches in which they were
    put, as engines do, and in batches of keys that lie far apart."""
    blocks = Blocks(kv, 4096, BATCH, "small")
    mine, count = os.getpid(), sizes.small_batches * BATCH
    costs: dict[str, list[float]] = {}

    def costed(name: str, work: Callable[[], object]) -> float:
        """The rate; what it costs is noted."""
        before = cpu_seconds(mine), cpu_seconds(server)
        done = rate(count, work)
        for who, process, began in zip(("client", "server"), (mine, server), before, strict=True):
            costs.setdefault(f"{name}_{who}_us", []).append(1e6 * (cpu_seconds(process) - began) / count)
        return done

    def get(name: str, batches: list[bytes]) -> float:
        return costed(name, lambda: blocks.get_all(batches))

    def put() -> float:
        keys = blocks.keys(sizes.small_batches)
        done = costed("put", lambda: blocks.put_all(keys))
        blocks.delete(keys)
        return done

    try:
        stored = blocks.keys(sizes.small_batches)
        blocks.put_all(stored)
        ways: list[Callable[[], float]] = [partial(get, "get", stored), partial(get, "far", shuffled(stored, 1)), put]
        gets, far, puts = in_turns(ways, sizes.rounds)
    finally:
        blocks.close()
    middle = {name: round(statistics.median(values), 2) for name, values in costs.items()}

    def of(what: str) -> dict[str, float]:
        return {name.removeprefix(what): value for name, value in middle.items() if name.startswith(what)}

    return [
        row(f"get_into, 4 KiB × {BATCH}, one process", gets, "/s", aim=AIM_GETS) | of("get_"),
        row("the same, of keys that were put far apart", far, "/s") | of("far_"),
        row(f"put_from, 4 KiB × {BATCH}, one process", puts, "/s", aim=AIM_PUTS) | of("put_"),
    ]


def _peers(kv: Any, folder: Path, sizes: Sizes, left_out: list[str]) -> list[dict[str, Any]]:
    """Blocks of 64 KiB beside caches in memory, as far as they are installed."""
    size, batches = 64 << 10, sizes.middle_batches
    made: list[dict[str, Any]] = []
    peers = ((kv_peers.redis, AIM_REDIS_GET, AIM_REDIS_PUT), (kv_peers.memcached, AIM_MEMCACHED, AIM_MEMCACHED))
    for start, aim_get, aim_put in peers:
        try:
            with ExitStack() as stack:
                other = stack.enter_context(start(folder, 4 * batches * BATCH * size // MIB))
                blocks = Blocks(kv, size, BATCH, f"beside {other.name}")
                stack.callback(blocks.close)
                made += _beside(blocks, other, batches, sizes.rounds, (aim_get, aim_put))
        except StatusError as missing:
            if missing.status is not Status.UNSUPPORTED:
                raise
            left_out.append(str(missing.strerror))
    return made


def _beside(
    blocks: Blocks, other: kv_peers.Peer, batches: int, rounds: int, aims: tuple[float, float]
) -> list[dict[str, Any]]:
    count = batches * blocks.batch
    rows = blocks.views()

    def split(keys: bytes) -> list[bytes]:
        return [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]

    stored = blocks.keys(batches)
    blocks.put_all(stored)
    names = [split(keys) for keys in stored]
    for keys in names:
        other.put(keys, rows[blocks.next_row()])

    def get_theirs() -> None:
        for keys in names:
            other.get(keys, rows[blocks.next_row()])

    def put_ours() -> float:
        fresh = blocks.keys(batches)
        done = rate(count, lambda: blocks.put_all(fresh))
        blocks.delete(fresh)
        return done

    def put_theirs() -> float:
        fresh = [split(keys) for keys in blocks.keys(batches)]

        def work() -> None:
            for keys in fresh:
                other.put(keys, rows[blocks.next_row()])

        return rate(count, work)

    ways = [partial(rate, count, lambda: blocks.get_all(stored)), partial(rate, count, get_theirs)]
    gets, their_gets = in_turns(ways, rounds)
    put_ours(), put_theirs()
    puts, their_puts = in_turns([put_ours, put_theirs], rounds)
    return [
        row(f"get_into, 64 KiB × {BATCH}, against {other.name}", gets, "/s", their_gets, aim=aims[0]),
        row(f"put_from, 64 KiB × {BATCH}, against {other.name}", puts, "/s", their_puts, aim=aims[1]),
    ]


# --- patterns ----------------------------------------------------------------------------------------------------------------------------


def _mixed(kv: Any, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """63 batches of new blocks, 37 of blocks that are there, as on a chat service's trace; against files."""
    size = SIZES[1]
    batches = max(8, sizes.bytes // (size * BATCH))
    puts = [round(MIXED_PUTS * (i + 1)) > round(MIXED_PUTS * i) for i in range(batches)]
    mib = batches * BATCH * size / MIB
    with ExitStack() as stack:
        blocks = Blocks(kv, size, BATCH, "mixed")
        stack.callback(blocks.close)
        files = Files(folder, blocks, 1)
        stack.callback(files.close)
        files.make()
        stored = blocks.keys(1)[0]
        blocks.put(stored)

        def ours() -> float:
            fresh = blocks.keys(batches)

            def work() -> None:
                for keys, is_put in zip(fresh, puts, strict=True):
                    if is_put:
                        blocks.put(keys)
                    else:
                        blocks.get_all([stored])

            done = rate(mib, work)
            blocks.delete(fresh)
            return done

        def theirs() -> float:
            def work() -> None:
                for is_put in puts:
                    if is_put:
                        files.write()
                    else:
                        files.read()

            done = rate(mib, work)
            files.remove()
            return done

        ours(), theirs()
        value, base = in_turns([ours, theirs], sizes.rounds)
    return row(f"63 % puts, 37 % gets, {_mib(size)} × {BATCH}, against files", value, "MiB/s", base)


def _beyond_memory(sizes: Sizes) -> list[dict[str, Any]]:
    """A working set of three times the memory tier, in a cluster of its own: stored, and read when no memory has it."""
    batches = -(-TIER_TIMES * sizes.tier // (BLOCK * BATCH))
    mib = batches * BATCH * BLOCK / MIB
    capacity = 2 * TIER_TIMES * sizes.tier + GIB
    with ExitStack() as stack:
        cluster, folder = stack.enter_context(
            temporary_cluster(port=0, capacity=GIB, kv_capacity=capacity, kv_memory=sizes.tier)
        )
        kv = stack.enter_context(_client(cluster))
        blocks = Blocks(kv, BLOCK, BATCH, "beyond")
        files = Files(folder, blocks, batches)
        arrived: list[int] = []
        puts: list[float] = []
        writes: list[float] = []

        def ours() -> float:
            keys = blocks.keys(batches)
            puts.append(rate(mib, lambda: blocks.put_all(keys)))
            drop_cache(cluster.data)
            done = rate(mib, lambda: arrived.extend(blocks.get(one) for one in keys))
            blocks.delete(keys)
            return done

        def theirs() -> float:
            writes.append(rate(mib, files.write))
            drop_cache(files.folder)
            done = rate(mib, files.read_files)
            files.remove()
            return done

        rounds = min(3, sizes.rounds)
        gets, reads = in_turns([ours, theirs], rounds)
    hit_rate = sum(arrived) / (rounds * batches * BATCH)
    name = f"working set of {TIER_TIMES} memory tiers ({_mib(sizes.tier)})"
    return [
        row(f"{name}, put, against files", Median(puts), "MiB/s", Median(writes), aim=AIM_COLD_PUT, again=blocks.again),
        row(f"{name}, cold get, against files", gets, "MiB/s", reads, aim=AIM_COLD_GET),
        row(f"{name}, hit rate", hit_rate, "", aim=1.0),
    ]


def _replay(trace: Sequence[Request], sizes: Sizes) -> list[dict[str, Any]]:
    """Requests of a trace as an engine makes them: match, get what is there, put the rest. REPLAY_SPEED times as fast as they came, as a
    target of a few hundred MiB would be overwritten within a second otherwise, faster than checkpoints give room back."""
    requests = trace[: sizes.replayed]
    capacity = sizes.replay_capacity * REPLAY_BLOCK
    hits = references = 0
    times: list[float] = []
    with ExitStack() as stack:
        cluster, _ = stack.enter_context(
            temporary_cluster(port=0, capacity=GIB, kv_capacity=capacity, kv_memory=capacity)
        )
        kv = stack.enter_context(_client(cluster))
        blocks = Blocks(kv, REPLAY_BLOCK, REPLAY_BATCH, "replay")

        def serve(request: Request) -> int:
            keys = b"".join(map(kv_simulation.key_of, request.blocks))
            found: int = kv.match(blocks.namespace, keys).n
            met = 0
            for at in range(0, len(request.blocks), REPLAY_BATCH):
                some = keys[at * KEY_BYTES : (at + REPLAY_BATCH) * KEY_BYTES]
                there = min(max(0, found - at), REPLAY_BATCH) * KEY_BYTES
                if there:
                    met += blocks.get(some[:there])
                if some[there:]:
                    blocks.put(some[there:], depth=at + there // KEY_BYTES)
            return met

        began = time.monotonic()
        for request in requests:
            due = began + (request.at_ms - requests[0].at_ms) / 1000 / REPLAY_SPEED
            time.sleep(max(0.0, due - time.monotonic()))
            start = time.perf_counter()
            hits += serve(request)
            times.append(1000 * (time.perf_counter() - start))
            references += len(request.blocks)
    ours, lru = (
        100 * kv_simulation.hit_ratio(make(sizes.replay_capacity), requests)
        for make in (kv_simulation.Ours, kv_simulation.IdealLRU)
    )
    name = f"replay of {len(requests):,} requests, {sizes.replay_capacity:,} blocks of 64 KiB"
    p99 = sorted(times)[len(times) * 99 // 100]
    return [
        row(f"{name}, prefix hits, against ideal LRU", 100 * hits / references, "%", lru, simulated=round(ours, 2)),
        row(f"{name}, a request, p50", statistics.median(times), "ms", p99=round(p99, 2), again=blocks.again),
    ]
