"""What the benchmarks share: timing several ways in turns, rows, a cluster in a temporary directory, bare-machine baselines."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..local import LocalCluster

MIB = 1 << 20
PING_BYTES = 256  # about what a stat's request and reply are


class Median(float):
    """The median of several rounds, which it remembers."""

    samples: tuple[float, ...]

    def __new__(cls, samples: Sequence[float]) -> Median:
        made = super().__new__(cls, statistics.median(samples))
        made.samples = tuple(samples)
        return made


def row(
    what: str,
    value: float,
    unit: str,
    baseline: float | None = None,
    *,
    aim: float | None = None,
    least: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """A result. `aim` is for the ratio to the baseline if there is one, else for the value; `least`: it should be at least that.
    Medians bring their spread along: the least and the greatest of the rounds, and of the rounds' ratios."""
    made: dict[str, Any] = {"what": what, "value": round(value, 3), "unit": unit, **more}
    judged = value
    if baseline is not None:
        judged = value / baseline if baseline else 0.0
        made |= {"baseline": round(baseline, 3), "ratio": round(judged, 3)}
    made |= spreads(value, baseline)
    if aim is not None:
        sign = "≥" if least else "≤"
        made |= {
            "aim": f"{sign} {aim:g}{'×' if baseline is not None else ''}",
            "met": judged >= aim if least else judged <= aim,
        }
    return made


def spreads(value: float, baseline: float | None) -> dict[str, Any]:
    """The least and greatest of the rounds."""
    made: dict[str, Any] = {}
    if isinstance(value, Median):
        made["spread"] = [round(min(value.samples), 3), round(max(value.samples), 3)]
        if isinstance(baseline, Median) and all(baseline.samples):
            ratios = [ours / bare for ours, bare in zip(value.samples, baseline.samples, strict=True)]
            made["baseline_spread"] = [round(min(baseline.samples), 3), round(max(baseline.samples), 3)]
            made["ratio_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return made


def in_turns(ways: Sequence[Callable[[], float]], rounds: int) -> list[Median]:
    """Run each way once per round, all in turn, so that a slow minute hits all of them; every other round backwards, so that none
    always comes behind the same one. The median of each."""
    results: list[list[float]] = [[] for _ in ways]
    for number in range(rounds):
        order = list(zip(ways, results, strict=True))
        for way, kept in reversed(order) if number % 2 else order:
            kept.append(way())
    return [Median(kept) for kept in results]


def rate(amount: float, work: Callable[[], object]) -> float:
    """`amount` per second of what `work` does."""
    begin = time.perf_counter()
    work()
    return amount / (time.perf_counter() - begin)


def median_us(work: Callable[[], object], count: int) -> float:
    """Median time of one call, in microseconds."""
    samples = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        work()
        samples.append(time.perf_counter_ns() - begin)
    return statistics.median(samples) / 1000


@contextlib.contextmanager
def temporary_cluster(**options: Any) -> Iterator[tuple[LocalCluster, Path]]:
    """A cluster of its own, and a directory on the same disk for baselines. Both are removed at the end. Without targets for KV blocks
    unless they are asked for."""
    folder = Path(tempfile.mkdtemp(prefix="emberfs-bench-", dir=os.environ.get("EMBERFS_BENCH_DIR")))
    cluster = LocalCluster(folder / "data", bound=True, **{"kv_capacity": 0, **options})
    try:
        cluster.start()
        yield cluster, folder
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def peer(serve: Callable[[socket.socket], None], family: int = socket.AF_UNIX) -> Iterator[socket.socket]:
    """Our end of a connection to a forked process that runs `serve` with the other end."""
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        for end in (ours, theirs):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if threading.active_count() > 1:
        sys.stderr.flush()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            ours.close()
            serve(theirs)
        os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.waitpid(child, 0)


def echo(end: socket.socket) -> None:
    """The other side of a ping-pong."""
    buffer = bytearray(PING_BYTES)
    while end.recv_into(buffer, PING_BYTES, socket.MSG_WAITALL) == PING_BYTES:
        end.sendall(buffer)


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """This thread stays on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def placed_pings() -> Iterator[dict[str, Callable[[int], float]]]:
    """Ways to measure a ping-pong (count -> µs), by where its two ends run: as the kernel likes, on one CPU, on two CPUs. Where they
    run makes more of a difference than anything that is sent."""
    cpus = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        free = stack.enter_context(peer(echo))
        ways: dict[str, Callable[[int], float]] = {"as the kernel places it": lambda count: ping_us(free, count)}
        for name, cpu in zip(("on one CPU", "across two CPUs"), cpus, strict=False):
            end = stack.enter_context(peer(partial(_echo_on, cpu)))
            ways[name] = partial(_ping_from, cpus[0], end)
        yield ways


def _echo_on(cpu: int, end: socket.socket) -> None:
    with pinned(cpu):
        echo(end)


def _ping_from(cpu: int, end: socket.socket, count: int) -> float:
    with pinned(cpu):
        return ping_us(end, count)


def ping_us(end: socket.socket, count: int) -> float:
    """Median round trip of a small message, one in flight, in microseconds."""
    buffer = bytearray(PING_BYTES)

    def once() -> None:
        end.sendall(buffer)
        end.recv_into(buffer, PING_BYTES, socket.MSG_WAITALL)

    return median_us(once, count)


def stream(end: socket.socket) -> None:
    """The other side of a bulk transfer: one byte asks for one MiB."""
    block = memoryview(bytearray(MIB))
    while end.recv(1):
        end.sendall(block)


def stream_mib(end: socket.socket, mib: int) -> None:
    """Ask for and receive so many MiB, two in flight (as a client with readahead)."""
    buffer = bytearray(MIB)
    end.sendall(b"x")
    for i in range(mib):
        if i + 1 < mib:
            end.sendall(b"x")
        view = memoryview(buffer)
        while view:
            view = view[end.recv_into(view) :]


def write_file(path: Path, mib: int) -> None:
    """A local file of random-looking bytes."""
    block = os.urandom(MIB)
    with open(path, "wb", buffering=0) as file:
        for i in range(mib):
            file.write(i.to_bytes(8, "big") + block[8:])


def warm(path: Path) -> None:
    """Bring a local file into the page cache."""
    buffer = bytearray(4 * MIB)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
