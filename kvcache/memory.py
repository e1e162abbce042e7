"""What lies behind an address of this process: whether it is shared memory that a storage server on this host could write to itself.

Engines keep their host pools in a memfd (SGLang), in a file on tmpfs (vLLM) or in anonymous memory. The first two have a descriptor
somewhere in this process: `/proc/self/maps` names the inode behind an address, `/proc/self/fd` the descriptor of that inode. Where the
engine has closed it, the file's path or `/proc/self/map_files` (root only) leads to it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from typing import NamedTuple


class Backing(NamedTuple):
    """The file behind a piece of memory. The descriptor is the caller's to close."""

    descriptor: int
    offset: int  # of the memory's first byte in the file
    device: int
    inode: int


class _Area(NamedTuple):
    """A line of /proc/self/maps."""

    start: int
    end: int
    shared: bool  # and writable
    offset: int
    device: int
    inode: int
    path: str


def view_of(address: int, length: int) -> memoryview:
    """The memory at an address. Whoever has it must keep the memory alive."""
    return memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B")


def backing_of(address: int, length: int) -> Backing | None:
    """The shared memory that all of these bytes are, or None: anonymous or private memory, a file on a disk, or several files."""
    areas = _areas(address, address + length)
    if not areas or not all(area.shared and area.inode for area in areas):
        return None
    first = areas[0]
    same = {(area.device, area.inode, area.start - area.offset) for area in areas}
    if len(same) != 1 or first.device not in _memory_devices():
        return None
    descriptor = _open(first)
    if descriptor is None:
        return None
    return Backing(descriptor, first.offset + address - first.start, first.device, first.inode)


def _areas(start: int, end: int) -> list[_Area]:
    """The areas that these bytes lie in, in order; none where some of them are not mapped."""
    found: list[_Area] = []
    reached = start
    with open("/proc/self/maps", errors="surrogateescape") as lines:
        for line in lines:
            area = _parsed(line)
            if area.start <= reached < area.end:
                found.append(area)
                reached = area.end
                if reached >= end:
                    return found
    return []


def _parsed(line: str) -> _Area:
    fields = line.split(None, 5)
    start, end = (int(number, 16) for number in fields[0].split("-"))
    major, minor = (int(number, 16) for number in fields[3].split(":"))
    shared = fields[1][3] == "s" and fields[1].startswith("rw")
    path = fields[5].rstrip("\n") if len(fields) > 5 else ""
    return _Area(start, end, shared, int(fields[2], 16), os.makedev(major, minor), int(fields[4]), path)


def _memory_devices() -> frozenset[int]:
    """Of memfds, and of file systems in memory. (Huge pages are not among them: they cannot be written by system calls.)"""
    descriptor = os.memfd_create("emberfs-probe", os.MFD_CLOEXEC)
    try:
        found = {os.fstat(descriptor).st_dev}
    finally:
        os.close(descriptor)
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            if rest.startswith(("tmpfs ", "ramfs ")):
                major, minor = fields.split()[2].split(":")
                found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)


def _open(area: _Area) -> int | None:
    """A descriptor of our own, for reading and writing, of the file behind an area."""
    for number in os.listdir("/proc/self/fd"):
        try:
            if _is_of(int(number), area):
                return fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError:
            continue  # closed meanwhile, or the directory's own
    for path in (area.path, f"/proc/self/map_files/{area.start:x}-{area.end:x}"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            continue
        if _is_of(descriptor, area):
            return descriptor
        os.close(descriptor)
    return None


def _is_of(descriptor: int, area: _Area) -> bool:
    status = os.fstat(descriptor)
    return (
        stat.S_ISREG(status.st_mode)
        and (status.st_dev, status.st_ino) == (area.device, area.inode)
        and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    )
