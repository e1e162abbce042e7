"""Small disks: file systems in files, mounted through loop devices."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

XFS_BYTES = 320 << 20  # mkfs.xfs refuses less than 300 MiB


def _run(*command: str) -> str:
    """Raises CalledProcessError, with what it said."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@functools.cache
def cannot() -> str:
    """Why there are no small disks here; empty where there are."""
    if os.geteuid():
        return "only root mounts loop devices"
    if missing := [name for name in ("mkfs.xfs", "losetup", "mount") if shutil.which(name) is None]:
        return f"no loop devices with XFS: {', '.join(missing)} is missing"
    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        try:
            with small_disk(Path(folder) / "image", Path(folder)):
                return ""
        except subprocess.CalledProcessError as refused:
            return f"no loop devices with XFS: {refused.stderr.strip()}"


@contextlib.contextmanager
def small_disk(image: Path, place: Path) -> Iterator[None]:
    """An empty XFS mounted at `place`. Raises CalledProcessError."""
    with open(image, "wb") as file:
        file.truncate(XFS_BYTES)
    _run("mkfs.xfs", "-q", str(image))
    _run("mount", "-o", "loop", str(image), str(place))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(place))  # a server that a failed test left behind may still be in it


def free_bytes(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def others_take(place: Path, leave: int) -> Iterator[None]:
    """Somebody else's file takes all of the disk but `leave` bytes."""
    ballast = place / "ballast"
    descriptor = os.open(ballast, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, free_bytes(place) - leave)
        yield
    finally:
        os.close(descriptor)
        ballast.unlink()
