"""Memory of the caller's that servers on this host fill themselves, so that a read into it costs no copy here.

The client's own pool is taken out of use where a server may still move bytes into it. Memory of the caller's cannot be: a read waits until
the server has said or shown that it is done. Where it does not within seconds (it was stopped), the memory is dead: reads into it say
REGION_DEAD, and whoever made it makes another one.
"""

from __future__ import annotations

import mmap
from types import TracebackType

from ...proto.copying import address_of
from ...proto.env import Environment
from ...proto.errors import Status, error
from ...proto.region import Region, Slice
from ...proto.transport.shm import REGIONS_PER_CLIENT_MAX, sealed_memory

SHARED_MAX = REGIONS_PER_CLIENT_MAX - 16  # of a client; the rest is for its own pool


class SharedMemory:
    """`view` is all of it. Once it is closed, or in a forked child, it is memory as any other; it goes with the last view of it."""

    def __init__(self, owner: SharedMemories, region: Region) -> None:
        self._owner = owner
        self._region = region
        self.view = region.view

    def __len__(self) -> int:
        return self._region.size

    @property
    def dead(self) -> bool:
        """A server may still move bytes into it that nobody waits for."""
        return self._region.dead

    def close(self) -> None:
        """No server reaches it any more. Doing it twice is no harm."""
        self._owner.forget(self._region)

    def __enter__(self) -> SharedMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SharedMemories:
    """Those of one client. Looking takes no lock: the table is replaced, and never changed."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._regions: tuple[tuple[int, Region], ...] = ()  # with their addresses

    def make(self, size: int) -> SharedMemory:
        """New memory of so many bytes, all zeros. Raises INVALID, TOO_LARGE for one too many, OSError."""
        if size < 1:
            raise error(Status.INVALID, f"{size} bytes are no memory")
        if len(self._regions) >= SHARED_MAX:
            raise error(Status.TOO_LARGE, f"a client has at most {SHARED_MAX} pieces of shared memory; close some")
        descriptor = sealed_memory("emberfs-shared", size)
        view = memoryview(mmap.mmap(descriptor, size))
        region = Region(view, descriptor, sealed=True, kept=True)
        self._regions = (*self._regions, (address_of(view), region))
        return SharedMemory(self, region)

    def find(self, view: memoryview) -> Slice | None:
        """What part of one of them a view is; None when it is other memory."""
        if not self._regions or view.readonly or not len(view):
            return None
        address = address_of(view)
        for begin, region in self._regions:
            if begin <= address and address + len(view) <= begin + region.size:
                return Slice(region, address - begin, len(view))
        return None

    def forget(self, region: Region) -> None:
        kept = tuple(known for known in self._regions if known[1] is not region)
        if len(kept) < len(self._regions):
            self._regions = kept
            self._env.unregister(region)

    def close(self) -> None:
        for _, region in self._regions:
            self.forget(region)

    def after_fork_in_child(self) -> None:
        """They are the parent's."""
        self._regions = ()
