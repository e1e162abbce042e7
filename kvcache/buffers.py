"""Memory of the engine's that blocks are moved to and from.

A `Buffer` is memory that was registered once. Where it is shared memory (allocated here, or an engine's memfd or tmpfs file), servers on
this host move bytes to and from it themselves; other memory is reached by one copy through the client's own pool, or straight through the
socket where the server is on another host. Buffers that were never registered work too: their memory is looked up among what was.

A request that was never answered leaves shared memory in doubt: the server may still write there. Such a region is dead (DESIGN §4):
everything in it is answered with -EFAULT until the server has ended that request, or until the memory is registered anew, which says that
nothing of the old use matters.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_right
from itertools import accumulate
from typing import Any

from ..proto.copying import address_of
from ..proto.region import Region
from ..proto.transport.shm import REGIONS_PER_CLIENT_MAX, is_sealed, sealed_memory
from .memory import Backing, backing_of, view_of

REGIONS_MAX = (
    REGIONS_PER_CLIENT_MAX - 16
)  # shared ones of a client; beyond, memory is copied. The rest is for its own pool

_PLAIN = {bytes, bytearray}  # what is a row of bytes as it is


class Buffer:
    """Registered memory. `view` is all of it; `shared`: servers on this host reach it themselves."""

    __slots__ = ("_owner", "address", "region", "start", "view")

    def __init__(self, view: memoryview, address: int, region: Region, start: int, owner: object) -> None:
        self.view = view
        self.address = address
        self.region = region
        self.start = start  # of the memory in the region
        self._owner = owner  # keeps the memory alive

    def __len__(self) -> int:
        return self.view.nbytes

    @property
    def nbytes(self) -> int:
        return self.view.nbytes

    @property
    def shared(self) -> bool:
        return self.region.fd >= 0

    @property
    def dead(self) -> bool:
        """A request was not answered, so that its bytes may still arrive."""
        return self.region.dead

    @property
    def array(self) -> Any:
        """The memory as a numpy array of bytes. Raises ImportError without numpy."""
        import numpy

        return numpy.frombuffer(self.view, "u1")

    def __getitem__(self, part: slice) -> memoryview:
        return self.view[part]

    def __repr__(self) -> str:
        kind = "dead" if self.dead else "shared" if self.shared else "private"
        return f"<Buffer of {self.nbytes} bytes at {self.address:#x}, {kind}>"


def memory_of(obj: Any) -> tuple[memoryview, int]:
    """Writable memory and where it lies: of anything with the buffer protocol, of a CPU tensor, or at (address, bytes). Raises TypeError,
    ValueError for what is no memory, read-only, scattered, or on a GPU."""
    if isinstance(obj, tuple):
        address, length = obj
        if address <= 0 or length <= 0:
            raise ValueError(f"{length} bytes at {address:#x}: no memory")
        return view_of(address, length), address
    if hasattr(obj, "data_ptr"):
        return _tensor(obj)
    view = view_on(obj)
    if view.readonly:
        raise ValueError("the memory is read-only; blocks cannot be moved into it")
    return view, address_of(view) if view.nbytes else 0


def _tensor(tensor: Any) -> tuple[memoryview, int]:
    if tensor.device.type != "cpu":
        raise ValueError(f"a tensor on {tensor.device}: copy it to pinned memory first (see allocate)")
    if not tensor.is_contiguous():
        raise ValueError("the tensor is not contiguous; give its parts as a list")
    address, length = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    return (view_of(address, length) if length else memoryview(bytearray())), address


def view_on(obj: Any) -> memoryview:
    """The bytes of a buffer, also of a read-only one. Raises TypeError, ValueError."""
    if type(obj) in _PLAIN:
        return memoryview(obj)
    if isinstance(obj, Buffer):
        return obj.view
    if hasattr(obj, "data_ptr"):
        return _tensor(obj)[0]
    try:
        view = memoryview(obj)
    except (TypeError, ValueError):
        if not hasattr(obj, "__array_interface__"):
            raise TypeError(f"{type(obj).__name__} is no memory: give something with the buffer protocol") from None
        view = memoryview(obj.view("u1"))  # an array of a type that the buffer protocol does not know (bfloat16)
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError("the memory is not contiguous; give its parts as a list")
    return view.cast("B") if view.nbytes else memoryview(b"")


class Registry:
    """The registered memory of one client. Thread-safe; lookups take no lock."""

    def __init__(self, unregister: Any) -> None:
        self._unregister = unregister  # of the environment: no server may use a region any more
        self._lock = threading.Lock()
        # By address, the longest first: where each begins, where the last of those up to it ends, they themselves. Replaced, never changed.
        self._index: tuple[tuple[int, ...], tuple[int, ...], tuple[Buffer, ...]] = ((), (), ())
        self._files: dict[
            tuple[int, int], Region
        ] = {}  # device and inode of shared memory -> the newest region over it

    def __bool__(self) -> bool:
        return bool(self.buffers)

    def register(self, obj: Any) -> Buffer:
        """Make memory known; what is registered again gets a new life if it was dead. Raises TypeError, ValueError."""
        view, address = memory_of(obj)
        if not view.nbytes:
            raise ValueError("there is no memory to register: it has no bytes")
        backing = backing_of(address, view.nbytes)
        with self._lock:
            region, start = self._region_over(view, backing)
            buffer = Buffer(view, address, region, start, obj)
            self._add(buffer)
        return buffer

    def allocate(self, nbytes: int) -> Buffer:
        """New shared memory, sealed, which servers on this host map. Raises ValueError, OSError."""
        if nbytes <= 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        descriptor = sealed_memory("emberfs-kvcache", nbytes)
        try:
            memory = mmap.mmap(descriptor, nbytes)
        except BaseException:
            os.close(descriptor)
            raise
        view = memoryview(memory)
        with self._lock:
            if self._shared >= REGIONS_MAX:
                os.close(descriptor)
                descriptor = -1
            region = Region(view, descriptor, sealed=descriptor >= 0, kept=True)
            if descriptor >= 0:  # parts of it that are registered, too, are in this region, and as dead as it is
                status = os.fstat(descriptor)
                self._files[status.st_dev, status.st_ino] = region
            buffer = Buffer(view, address_of(view), region, 0, memory)
            self._add(buffer)
        return buffer

    def unregister(self, buffer: Buffer) -> None:
        """No server may reach this memory any more. Doing it twice is no harm."""
        with self._lock:
            if buffer not in self.buffers:
                return
            self._set([known for known in self.buffers if known is not buffer])
            self._let_go(buffer.region)

    def _let_go(self, region: Region) -> None:
        """Unless other memory lies in it."""
        if not any(known.region is region for known in self.buffers):
            self._files = {file: known for file, known in self._files.items() if known is not region}
            self._unregister(region)

    def find(self, address: int, length: int) -> Buffer | None:
        """The registered memory that holds all of these bytes; of several the one that begins last, of those the shortest: a part of
        another."""
        starts, reaches, buffers = self._index
        end = address + length
        at = bisect_right(starts, address) - 1
        while at >= 0 and reaches[at] >= end:
            if buffers[at].address + buffers[at].nbytes >= end:
                return buffers[at]
            at -= 1
        return None

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return self._index[2]

    @property
    def _shared(self) -> int:
        return len({buffer.region.id for buffer in self.buffers if buffer.shared})

    def _region_over(self, view: memoryview, backing: Backing | None) -> tuple[Region, int]:
        """The region that this memory is part of: of the whole file, up to the end of the memory at least, and the same for all memory in
        it. It is mapped once more, so that nothing depends on the engine keeping its own mapping."""
        if backing is None:
            return Region(view, kept=True), 0
        file, end = (backing.device, backing.inode), backing.offset + view.nbytes
        known = self._files.get(file)
        try:
            if known is not None and known.fd >= 0 and known.size >= end and not known.dead:
                return known, backing.offset
            size = os.fstat(backing.descriptor).st_size
            if self._shared >= REGIONS_MAX or size < end:
                return Region(view, kept=True), 0
            whole = memoryview(mmap.mmap(backing.descriptor, size))
            region = Region(whole, os.dup(backing.descriptor), is_sealed(backing.descriptor), kept=True)
        finally:
            os.close(backing.descriptor)
        self._files[file] = region
        return region, backing.offset

    def _add(self, buffer: Buffer) -> None:
        """It replaces what begins where it does and reaches no further; of what reaches further it may be a part. What was dead is let go
        then: servers know only so many regions of a client."""
        older = [known for known in self.buffers if known.address == buffer.address and known.nbytes <= buffer.nbytes]
        self._set([*(known for known in self.buffers if known not in older), buffer])
        for known in older:
            if known.region.dead:
                self._let_go(known.region)

    def _set(self, buffers: list[Buffer]) -> None:
        buffers.sort(key=lambda buffer: (buffer.address, -buffer.nbytes))  # parts behind what they are parts of
        reaches = accumulate([buffer.address + buffer.nbytes for buffer in buffers], max)
        self._index = tuple(buffer.address for buffer in buffers), tuple(reaches), tuple(buffers)

    def after_fork_in_child(self) -> None:
        """What was shared is the parent's: here the same memory is copied to and from until it is registered."""
        self._lock = threading.Lock()
        self._files = {}
        for buffer in self.buffers:
            if buffer.region.fd >= 0:
                os.close(buffer.region.fd)
                buffer.region.fd = -1
            buffer.region, buffer.start = Region(buffer.view, dead=buffer.region.dead), 0

    def close(self) -> None:
        for buffer in self.buffers:
            self.unregister(buffer)
