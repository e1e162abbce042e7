"""What the daemon takes after a `find` over many files, and gives back when the kernel forgets them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from emberfs_mount import can_mount

from emberfs import connect

from .processes import daemon_of, details, mounted

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

FILES = 1_000_000
DIRECTORIES = 100
MEMORY_MAX = 300_000_000  # bytes
FORGOTTEN_SECONDS_MAX = 60.0
MS_NOSUID, MS_NODEV, MS_REMOUNT = 2, 4, 32

pytestmark = pytest.mark.skipif(not can_mount(), reason="mounting needs root and /dev/fuse")


def forget_all(path: Path) -> None:
    """Have the kernel drop every entry of this mount that nobody uses, as it does when memory is short: a mount(2) that changes nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(path), None, MS_REMOUNT | MS_NOSUID | MS_NODEV, None):
        raise OSError(ctypes.get_errno(), "remount")


def memory(pid: int, which: str) -> int:
    """Bytes: resident now (VmRSS), at the most (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{which}:"))


def known(path: Path) -> int:
    """How many inodes the daemon says that the kernel holds."""
    lines = (path / ".ember" / "stats").read_text().splitlines()
    return next(int(words[1]) for line in lines if (words := line.split()) and words[0] == "inodes_of_kernel")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_find_over_a_million_files(fresh_cluster: LocalCluster) -> None:
    with connect(fresh_cluster.url) as client:
        for number in range(DIRECTORIES):
            client.mkdir(f"/{number:02d}")
            client.create_many([f"/{number:02d}/{i:05d}" for i in range(FILES // DIRECTORIES)])
    with mounted(fresh_cluster.url) as path:
        daemon = daemon_of(details(path)["pid"])
        before = memory(daemon, "VmRSS")
        found = subprocess.run(
            ["find", path, "-type", "f", "-newermt", "2001-01-01"], stdout=subprocess.PIPE, check=True
        )
        assert found.stdout.count(b"\n") == FILES
        after, most = memory(daemon, "VmRSS"), memory(daemon, "VmHWM")
        assert known(path) > FILES // 2, "most of them are still known"
        forget_all(path)
        deadline = time.monotonic() + FORGOTTEN_SECONDS_MAX
        while known(path) > DIRECTORIES:
            assert time.monotonic() < deadline, known(path)
        left = memory(daemon, "VmRSS")
        print(
            f"{before >> 20} MiB before, {after >> 20} after it, {most >> 20} at the most, {left >> 20} when all were forgotten"
        )
        assert most < MEMORY_MAX
        assert left < after
