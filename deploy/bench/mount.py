"""A mounted directory against a libfuse pass-through (bindfs) and the local disk below it, all in turns.

Without a path it makes a cluster and mounts of its own: one as users have it, one that asks the servers about every name, one that
answers from metadata leases.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ...proto.errors import Status, error
from . import loads
from .loads import Load
from .measure import MIB, Median, in_turns, row, temporary_cluster

GIB = 1 << 30
UNCACHED = "attr_timeout=0,entry_timeout=0"  # of the kernel, for the mounts that are asked every time


class Sizes(NamedTuple):
    mib: int  # of the large file
    rounds: int
    stats: int
    names: int  # created, renamed, unlinked
    tree: int  # files
    transactions: int
    seconds: float  # of each run of fio


FULL = Sizes(1024, 3, 20_000, 2_000, 10_000, 200, 2.0)
QUICK = Sizes(64, 3, 2_000, 400, 500, 20, 0.2)
# For what all rounds write and remove: the chunks of removed files go within ten seconds, a fast disk is filled sooner. It is only a limit,
# nothing is set aside for it.
ROOM_FILES = 32  # large ones
ROOM_BYTES = 4 * GIB
PROGRAM_ROUNDS = 2  # a tree of 10,000 files takes minutes on a machine with two cores that others use, too


class Places(NamedTuple):
    """Directories to measure in. Several of ours, for the rows that differ by how it is mounted."""

    ours: Path
    uncached: Path | None  # ours, without caches in kernel and daemon
    leased: Path | None  # ours, without the kernel's caches, with leases
    through: Path  # the pass-through
    through_uncached: Path
    local: Path


def run(quick: bool = False, path: str = "") -> dict[str, Any]:
    """Measure the mount at `path`, or one of its own. Needs root (to drop caches, and for mounts), bindfs and fio."""
    sizes = QUICK if quick else FULL
    _check_needs()
    with ExitStack() as stack:
        places = stack.enter_context(_given(Path(path)) if path else _own(sizes))
        archive = places.local.parent / "tree.tar"
        loads.make_archive(archive, sizes.tree)
        rows = [*_data(places, sizes), *_names(places, sizes), *_programs(places, sizes, archive)]
    return {"rows": rows, "file_mib": sizes.mib, "pass_through": "bindfs"}


def _check_needs() -> None:
    missing = [name for name in ("bindfs", "fio", "git", "tar") if shutil.which(name) is None]
    if missing or os.geteuid():
        what = f"the programs {', '.join(missing)}" if missing else "root"
        raise error(
            Status.INVALID,
            f"this benchmark needs {what}: on Debian, apt-get install bindfs fio git, and run it with sudo",
        )


# --- where -----------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _given(path: Path) -> Iterator[Places]:
    with ExitStack() as stack:
        ours = Path(tempfile.mkdtemp(prefix="emberfs-bench-", dir=path))
        stack.callback(shutil.rmtree, ours, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="emberfs-bench-", dir=os.environ.get("EMBERFS_BENCH_DIR")))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield _beside(stack, folder, ours, None, None)


@contextlib.contextmanager
def _own(sizes: Sizes) -> Iterator[Places]:
    with ExitStack() as stack:
        cluster, folder = stack.enter_context(
            temporary_cluster(port=0, capacity=ROOM_FILES * sizes.mib * MIB + ROOM_BYTES)
        )
        mounts = [
            stack.enter_context(mounted(cluster.url, folder / name, options))
            for name, options in (("mount", ""), ("uncached", f"{UNCACHED},strict"), ("leased", UNCACHED))
        ]
        yield _beside(stack, folder, *mounts)


def _beside(stack: ExitStack, folder: Path, ours: Path, uncached: Path | None, leased: Path | None) -> Places:
    """With the local directory and the two pass-throughs."""
    local = folder / "local"
    local.mkdir()
    through = stack.enter_context(_passed_through(local, folder / "through", ""))
    bare = stack.enter_context(_passed_through(local, folder / "through-uncached", UNCACHED))
    for place in (through, bare):
        (place / "inner").mkdir(exist_ok=True)
    return Places(ours, uncached, leased, through / "inner", bare / "inner", local)


@contextlib.contextmanager
def mounted(url: str, path: Path, options: str) -> Iterator[Path]:
    """A cluster at a new directory, with options as behind -o, until the end of the block."""
    path.mkdir()
    command = [sys.executable, "-P", "-m", "emberfs"]
    chosen = ["-o", options] if options else []
    subprocess.run([*command, "mount", url, str(path), *chosen], check=True, stdout=subprocess.DEVNULL)
    try:
        yield path
    finally:
        subprocess.run([*command, "umount", str(path)], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _passed_through(source: Path, path: Path, options: str) -> Iterator[Path]:
    path.mkdir()
    chosen = ",".join(filter(None, ("big_writes", options)))
    subprocess.run(["bindfs", "--multithreaded", "-o", chosen, str(source), str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


# --- rows ------------------------------------------------------------------------------------------------------------------------------


def _compare(what: str, unit: str, load: Load, ours: Path, base: Path, aim: float, rounds: int) -> dict[str, Any]:
    _tell(what)
    value, against = in_turns([lambda: load(ours), lambda: load(base)], rounds)
    return row(what, value, unit, against, aim=aim)


def _tell(what: str) -> None:
    """Progress, for whoever waits at a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what} … ")
        sys.stderr.flush()


def _data(places: Places, sizes: Sizes) -> list[dict[str, Any]]:
    ours, through, local, rounds = places.ours, places.through, places.local, sizes.rounds
    for place in (ours, through, local):
        loads.fill(place / "big", sizes.mib)
    loads.read_sequentially(sizes.mib, cold=False)(ours)
    warm, cold = (loads.read_sequentially(sizes.mib, cold=cold) for cold in (False, True))
    rows = [_compare("sequential read, 1 MiB, warm, against local", "MiB/s", warm, ours, local, 0.6, rounds)]
    for what, load, aim in (
        ("sequential read, 1 MiB, cold", cold, 0.75),
        ("sequential write, 1 MiB, fsync", loads.write_sequentially(sizes.mib), 0.75),
        ("the same, four files at once", loads.write_sequentially(sizes.mib, 4), 0.75),
    ):
        rows.append(_compare(what, "MiB/s", load, ours, through, aim, rounds))
    for place in (ours, through):
        loads.fill(place / "overwritten", min(64, sizes.mib))
    for what, load in (
        ("random read, 4 KiB, cold, 16 threads", loads.read_at_random(16, sizes.seconds)),
        ("random read, 4 KiB, cold, one thread", loads.read_at_random(1, sizes.seconds)),
        ("random write, 4 KiB, fsync each", loads.write_at_random(sizes.seconds)),
    ):
        rows.append(_compare(what, "IOPS", load, ours, through, 0.5, rounds))
    return rows


def _names(places: Places, sizes: Sizes) -> list[dict[str, Any]]:
    count, rounds = sizes.stats, sizes.rounds
    for place in (places.ours, places.through, places.local):
        for i in range(64):
            (place / f"stat{i}").touch()
    stat = loads.stats(count)
    rows = [_compare("stat, cached by the kernel, against local", "/s", stat, places.ours, places.local, 0.8, rounds)]
    uncached = [("stat, no cache", places.uncached, 0.45), ("stat, metadata leases", places.leased, 0.7)]
    fewer = loads.stats(count // 10)
    for what, ours, aim in uncached:
        if ours is not None:
            rows.append(_compare(what, "/s", fewer, ours, places.through_uncached, aim, rounds))
    for processes in (1, 4):
        rows += _named(places, sizes.names, processes, rounds)
    return rows


def _named(places: Places, count: int, processes: int, rounds: int) -> list[dict[str, Any]]:
    """These depend on one another, so a round is all of them in one place, then all in the other."""
    steps = {
        "create, write 4 KiB, close": loads.creates(count, processes),
        "rename": loads.renames(count, processes),
        "unlink": loads.unlinks(count, processes),
        "mkdir": loads.mkdirs(count, processes),
    }
    return _chained(
        places, steps, dict.fromkeys(steps, 0.4), rounds, f", {processes} process{'es'[: processes * 2 - 2]}", "/s"
    )


def _programs(places: Places, sizes: Sizes, archive: Path) -> list[dict[str, Any]]:
    steps = {
        "untar": loads.untar(archive, sizes.tree),
        "git add": loads.git_add(sizes.tree),
        "rm -r": loads.remove_tree(sizes.tree),
        "sqlite, a transaction each": loads.sqlite_transactions(sizes.transactions),
    }
    aims = dict(zip(steps, (0.4, 0.5, 0.5, 0.4), strict=True))
    return _chained(places, steps, aims, min(PROGRAM_ROUNDS, sizes.rounds), "", "/s")


def _chained(
    places: Places, steps: dict[str, Load], aims: dict[str, float], rounds: int, suffix: str, unit: str
) -> list[dict[str, Any]]:
    results: dict[tuple[str, Path], list[float]] = {}

    def all_in(place: Path) -> float:
        for name, load in steps.items():
            _tell(name + suffix)
            results.setdefault((name, place), []).append(load(place))
        return 0.0

    in_turns([lambda: all_in(places.ours), lambda: all_in(places.through)], rounds)
    return [
        row(
            name + suffix,
            Median(results[name, places.ours]),
            unit,
            Median(results[name, places.through]),
            aim=aims[name],
        )
        for name in steps
    ]
