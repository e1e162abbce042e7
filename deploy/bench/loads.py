"""What a mount is asked to do, as functions of a directory: each prepares what it needs, and returns a rate (more is better)."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .measure import MIB

SMALL = 4096  # bytes of a small file, and of a random read or write
TREE_FOLDERS = 100  # of a tree of small files
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

Load = Callable[[Path], float]


def drop_caches() -> None:
    """Make the next reads cold, everywhere on this machine. Needs root."""
    os.sync()
    DROP_CACHES.write_text("3")


def fill(path: Path, mib: int) -> None:
    """A file with no two MiB alike, durable."""
    block = os.urandom(MIB)
    with open(path, "wb", buffering=0) as file:
        for i in range(mib):
            file.write(i.to_bytes(8, "big") + block[8:])
        os.fsync(file.fileno())


# --- data -----------------------------------------------------------------------------------------------------------------------------


def read_sequentially(mib: int, *, cold: bool) -> Load:
    """MiB/s of a file that is there already (`big`)."""

    def load(folder: Path) -> float:
        if cold:
            drop_caches()
        buffer = bytearray(MIB)
        begin = time.perf_counter()
        with open(folder / "big", "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        return mib / (time.perf_counter() - begin)

    return load


def write_sequentially(mib: int, files: int = 1) -> Load:
    """MiB/s of new files, each with one fsync at its end."""

    def load(folder: Path) -> float:
        block = os.urandom(MIB)

        def write(number: int) -> None:
            with open(folder / f"new{number}", "wb", buffering=0) as file:
                for _ in range(mib // files):
                    file.write(block)
                os.fsync(file.fileno())

        begin = time.perf_counter()
        with ThreadPoolExecutor(files) as pool:
            list(pool.map(write, range(files)))
        spent = time.perf_counter() - begin
        for number in range(files):
            os.unlink(folder / f"new{number}")
        return mib / spent

    return load


def read_at_random(threads: int, seconds: float) -> Load:
    """4 KiB reads a second of `big`, cold, by fio."""

    def load(folder: Path) -> float:
        drop_caches()
        return _fio(folder / "big", "randread", threads, seconds, "--invalidate=1")

    return load


def write_at_random(seconds: float) -> Load:
    """4 KiB writes a second into `overwritten`, with one fsync each, by fio."""
    return lambda folder: _fio(folder / "overwritten", "randwrite", 1, seconds, "--fsync=1")


def _fio(path: Path, how: str, threads: int, seconds: float, *more: str) -> float:
    sizes = [f"--bs={SMALL}", f"--numjobs={threads}", f"--runtime={seconds * 1000:.0f}ms", "--time_based"]
    fixed = [
        "--name=bench",
        "--ioengine=psync",
        "--thread",
        "--group_reporting",
        "--output-format=json",
        "--randrepeat=0",
    ]
    command = ["fio", f"--filename={path}", f"--rw={how}", *sizes, *fixed, *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(job["read" if how == "randread" else "write"]["iops"])


# --- names ----------------------------------------------------------------------------------------------------------------------------


def stats(count: int, names: int = 64) -> Load:
    """stat(2) a second over a few files that are there already (`stat0`…)."""

    def load(folder: Path) -> float:
        paths = [str(folder / f"stat{i}") for i in range(names)]
        begin = time.perf_counter()
        for i in range(count):
            os.stat(paths[i % names])
        return count / (time.perf_counter() - begin)

    return load


def creates(count: int, processes: int) -> Load:
    """Files of 4 KiB created, written and closed a second. They stay, for `renames` and `unlinks`."""
    return _by_processes(count, processes, _create, keep=False)


def renames(count: int, processes: int) -> Load:
    return _by_processes(count, processes, lambda folder, i: os.rename(folder / f"f{i}", folder / f"r{i}"))


def unlinks(count: int, processes: int) -> Load:
    return _by_processes(count, processes, lambda folder, i: os.unlink(folder / f"r{i}"))


def mkdirs(count: int, processes: int) -> Load:
    return _by_processes(count, processes, lambda folder, i: os.mkdir(folder / f"d{i}"), keep=False)


_BLOCK = bytes(SMALL)


def _create(folder: Path, number: int) -> None:
    descriptor = os.open(folder / f"f{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, _BLOCK)
    os.close(descriptor)


def _by_processes(count: int, processes: int, step: Callable[[Path, int], None], *, keep: bool = True) -> Load:
    """`count` steps in all by forked processes, each in a directory of its own, per second. `keep`: in what the load before left."""

    def load(folder: Path) -> float:
        folders = [folder / f"worker{i}" for i in range(processes)]
        for each in folders:
            if not keep:
                shutil.rmtree(each, ignore_errors=True)
                each.mkdir()
        begin = time.perf_counter()
        children = [_fork(each, count // processes, step) for each in folders]
        failed = [child for child in children if os.waitpid(child, 0)[1]]
        spent = time.perf_counter() - begin
        if failed:
            raise OSError(f"{len(failed)} of {processes} processes failed in {folder}")
        return count / spent

    return load


def _fork(folder: Path, count: int, step: Callable[[Path, int], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for i in range(count):
            step(folder, i)
        status = 0
    finally:
        os._exit(status)


# --- programs -------------------------------------------------------------------------------------------------------------------------


def make_archive(path: Path, files: int) -> None:
    """A tar archive of small files of 0.5 to 4 KiB in 100 directories."""
    choose = random.Random(1)  # noqa: S311
    source = path.parent / "source"
    for i in range(TREE_FOLDERS):
        (source / f"d{i}").mkdir(parents=True)
    for i in range(files):
        (source / f"d{i % TREE_FOLDERS}" / f"file{i}.txt").write_bytes(choose.randbytes(choose.randint(512, SMALL)))
    with tarfile.open(path, "w") as archive:
        archive.add(source, "tree")
    shutil.rmtree(source)


def untar(archive: Path, files: int) -> Load:
    """Files a second out of an archive. The tree stays, for `git_add` and `remove_tree`."""

    def load(folder: Path) -> float:
        shutil.rmtree(folder / "tree", ignore_errors=True)
        return _timed(files, ["tar", "-xf", str(archive), "-C", str(folder)])

    return load


def git_add(files: int) -> Load:
    """Files a second into a new repository."""

    def load(folder: Path) -> float:
        tree = folder / "tree"
        subprocess.run(["git", "init", "-q", str(tree)], check=True)
        return _timed(files, ["git", "-C", str(tree), "add", "-A"])

    return load


def remove_tree(files: int) -> Load:
    """Files a second by rm -r. The repository goes first, untimed: it is not the same size everywhere."""

    def load(folder: Path) -> float:
        shutil.rmtree(folder / "tree" / ".git", ignore_errors=True)
        return _timed(files, ["rm", "-r", str(folder / "tree")])

    return load


def _timed(amount: int, command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return amount / (time.perf_counter() - begin)


def sqlite_transactions(count: int) -> Load:
    """Transactions a second of one row each, with sqlite's own settings (a rollback journal, synced)."""

    def load(folder: Path) -> float:
        path = folder / "sqlite.db"
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
            begin = time.perf_counter()
            for i in range(count):
                connection.execute("INSERT INTO t VALUES (?, ?)", (i, _BLOCK[:100]))
            return count / (time.perf_counter() - begin)
        finally:
            connection.close()

    return load
