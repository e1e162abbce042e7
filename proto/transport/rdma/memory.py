"""Opened devices and the memory registered with them.

Registering pins pages and takes the device's time (about 0.1 ms and 0.2 µs for each page of 4 KiB), so a region is registered once with a
device, when it is first used there, and serves every queue pair of this process. It stays until the region is given up, and a little
longer where a request may still be moving: `forget` asks. Peers may do no more there than something was asked of them: a window that they
only read is registered anew, under another key, when they first are to write there.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from ...copying import address_of
from ...errors import Status, StatusError, error
from ...region import Region
from .. import choice
from .verbs import load

WINDOW_BYTES_MIN = 16 << 20
WINDOWS_MAX = 16  # of a region
REGISTRATIONS_MAX = (
    4096  # regions per device and process; what comes then travels in the stream. A server is told of no more
)
REFUSED_MAX = 1024  # regions remembered as not to be registered

LOCAL, READABLE, WRITABLE = 0, 1, 2  # what peers may do there: nothing, read, read and write

_log = logging.getLogger("emberfs.rdma")


class Registration:
    """One region at one device: windows of equal size, each registered when it is first used."""

    __slots__ = ("_replaced", "access", "address", "keys", "local_keys", "memories", "region", "window")

    def __init__(self, region: Region) -> None:
        self.region = region  # keeps the memory from being freed while the device knows it
        self.address = address_of(region.view)
        self.window = window_bytes(region.size)
        count = -(-region.size // self.window)
        self.memories: list[Any] = [None] * count  # as verbs know them (MR)
        self.access = [-1] * count  # what peers may do; -1: not registered
        self._replaced: list[Any] = []  # that let peers do less: something may still move under their keys
        self.keys = [0] * count  # for the peer
        self.local_keys = [0] * count  # for work requests of our own

    def use(self, index: int, memory: Any, access: int) -> None:
        """From now on this window is known as that."""
        if self.memories[index] is not None:
            self._replaced.append(self.memories[index])
        self.memories[index], self.access[index] = memory, access
        self.local_keys[index], self.keys[index] = memory.lkey, memory.rkey

    @property
    def registered(self) -> list[Any]:
        """All that the device knows of it."""
        return [*(memory for memory in self.memories if memory is not None), *self._replaced]

    def close(self) -> None:
        for memory in self.registered:
            memory.close()


def window_bytes(size: int) -> int:
    """Of a region of so many bytes: so few windows that a table of them is small, none so small that there are many registrations."""
    return max(WINDOW_BYTES_MIN, 1 << (-(-size // WINDOWS_MAX) - 1).bit_length())


class Device:
    """An opened device. `limits`: its attributes (ibv_device_attr)."""

    def __init__(self, name: str) -> None:
        verbs = load()
        self.name = name
        try:
            self.context = verbs.Context(name=name)
            self.limits = self.context.query_device()
            self.domain = verbs.PD(self.context)
        except verbs.Failed as failed:
            raise error(
                Status.UNSUPPORTED, f"{name} cannot be opened ({reason_of(failed)}); see deploy/rdma.md"
            ) from failed
        self._verbs = verbs
        self._lock = threading.Lock()
        self._known: dict[int, Registration] = {}
        self._refused: set[int] = set()
        self._leaving: list[Registration] = []  # given up while something might still move
        self.version = 0  # changes with every region that is forgotten
        self.unfit = ""  # why a server here does not go on over it: its own memory is refused

    @property
    def registered(self) -> int:
        """Windows of regions that the device knows, those with several keys as often."""
        return sum(len(found.registered) for found in [*self._known.values(), *self._leaving])

    def cover(self, region: Region, offset: int, length: int, access: int) -> Registration | None:
        """The region's registration, that part of it registered now if need be for peers to do so much; None where that was refused: its
        bytes then travel in the stream. Raises REGION_DEAD for what is outside the region."""
        if offset + length > region.size:
            raise error(
                Status.REGION_DEAD, f"bytes {offset} to {offset + length} are outside a region of {region.size} bytes"
            )
        found = self._known.get(region.id)
        if found is not None:
            allowed, window = found.access, found.window
            for index in range(offset // window, (offset + length - 1) // window + 1):
                if allowed[index] < access:
                    break
            else:
                return found
        if region.id in self._refused:
            return None
        with self._lock:
            return self._register(region, offset, length, access)

    def knows(self, number: int) -> bool:
        return number in self._known

    def _register(self, region: Region, offset: int, length: int, access: int) -> Registration | None:
        try:
            found = self._known.get(region.id)
            if found is None:
                if len(self._known) >= REGISTRATIONS_MAX:
                    raise error(Status.BUSY_RESOURCE, f"{REGISTRATIONS_MAX} regions are registered; unregister some")
                found = self._known[region.id] = Registration(region)
            for index in range(offset // found.window, (offset + length - 1) // found.window + 1):
                if found.access[index] < access:
                    begin = index * found.window
                    found.use(index, self.pin(region.view[begin : begin + found.window], access), access)
        except StatusError as refused:
            if len(self._refused) < REFUSED_MAX:
                self._refused.add(region.id)
            _log.warning(
                "a region of %d bytes is not registered, its bytes take the slow way: %s", region.size, refused.strerror
            )
            return None
        return found

    def pin(self, view: memoryview, access: int) -> Any:
        """A memory region of the device (MR); `access`: what peers may do that know its key, through queue pairs that let them. Raises
        UNSUPPORTED with what to do."""
        e = self._verbs.e
        flags = (
            e.IBV_ACCESS_LOCAL_WRITE
        )  # also where it is only read: pages that are not written to may be others after a fork
        if access >= READABLE:
            flags |= e.IBV_ACCESS_REMOTE_READ
        if access >= WRITABLE:
            flags |= e.IBV_ACCESS_REMOTE_WRITE
        try:
            return self._verbs.MR(self.domain, len(view), flags, address=address_of(view))
        except self._verbs.Failed as failed:
            raise error(
                Status.UNSUPPORTED,
                f"{self.name} does not register {len(view)} bytes ({reason_of(failed)}): is 'ulimit -l' large enough?"
                " deploy/rdma.md says how to raise it",
            ) from failed

    def forget(self, number: int, moving: Callable[[Region], bool]) -> None:
        """This region (by its id) is given up. Where something is `moving` in it now, the device forgets it at a later call."""
        with self._lock:
            found = self._known.pop(number, None)
            self._refused.discard(number)
            if found is not None:
                self.version += 1
                self._leaving.append(found)
            still = []
            for registration in self._leaving:
                if moving(registration.region):
                    still.append(registration)
                else:
                    registration.close()
            self._leaving = still

    def abandon(self) -> None:
        abandon(self, self.context, self.domain)
        for found in [*self._known.values(), *self._leaving]:
            abandon(*found.registered)


_devices: dict[str, Device] = {}
_lock = threading.Lock()


def open_device(name: str) -> Device:
    """The device, opened once in this process. Raises UNSUPPORTED."""
    with _lock:
        device = _devices.get(name)
        if device is None:
            device = _devices[name] = Device(name)
        return device


def opened() -> list[Device]:
    """The devices that this process has opened."""
    return list(_devices.values())


def forget(region: Region, moving: Callable[[Region], bool]) -> None:
    """The region is given up, at every device."""
    for device in opened():
        device.forget(region.id, moving)


choice.on_forget.append(forget)


def reason_of(failed: Exception) -> str:
    """What the kernel said: pyverbs keeps the number."""
    number = getattr(failed, "error_code", None)
    return os.strerror(number).lower() if isinstance(number, int) and number > 0 else str(failed)


def abandon(*objects: Any) -> None:
    """Never destroy these: in a forked child they stand for queue pairs and memory of the parent, and to destroy one here would take it
    from there."""
    for kept in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _leave() -> None:
    """Keep the interpreter's end, or a child's, from tearing devices down in an order that they refuse: the kernel does it."""
    for device in _devices.values():
        device.abandon()
    _devices.clear()


def _after_fork_in_child() -> None:
    _lock._at_fork_reinit()  # type: ignore[attr-defined]
    _leave()


atexit.register(_leave)
os.register_at_fork(after_in_child=_after_fork_in_child)
