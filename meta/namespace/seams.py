"""What the namespace needs from the rest of the metadata server: chunks, layouts, capabilities and time.

The server process builds one object for each of these interfaces and hands them to `Namespace`; tests hand in small real ones that
live in memory. Nothing else reaches the network, a clock or randomness from here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from ...proto.capability import Grant
from ...proto.env import Promise
from ...proto.errors import StatusError
from ..owners import Owners


class Layout(NamedTuple):
    """Where the chunks of a file lie; the fields of the message `Layout` of common.proto, in its order."""

    redundancy: int
    chunk_size: int  # bytes
    table: int
    table_version: int
    base: int
    stripe: int
    seed: int


class DeadFile(NamedTuple):
    """A file that has no name, no session and no inode any more: its chunks may go."""

    inode: int
    layout: Layout


class Space(NamedTuple):
    """Bytes of all targets together; a byte of a file on a chain of R replicas takes R of them."""

    total: int
    free: int
    free_part_min: float = 1.0  # of the fullest target, from 0 to 1


class Chunks(Protocol):
    """The chunks of files, on whatever storage servers the routing names. Every method retries stale chain versions itself and
    raises a retryable StatusError (UNAVAILABLE, TARGET_OFFLINE…) when a chain cannot be reached; calling again is always safe."""

    async def truncate(
        self, inode: int, layout: Layout, old_length: int, new_length: int, truncate_version: int
    ) -> None:
        """Cut the chunk that `new_length` bytes end in and remove every chunk behind it, on all chains of the stripe, whether or not
        it lies below `old_length` (a writer may have gone further than the settled length). From now on chunk writes that
        carry a lower truncate version are refused."""

    async def remove(self, files: Sequence[DeadFile]) -> list[StatusError | None]:
        """Remove all chunks of these files; per file None, or why some are left (it is asked again later)."""

    async def write_first(self, inode: int, layout: Layout, data: bytes, truncate_version: int) -> None:
        """Make chunk 0, which is not there, hold these bytes, so that they survive power loss: their other copy goes next."""

    async def query_last(self, inode: int, layout: Layout, truncate_version: int) -> int:
        """The end of the last chunk in bytes of the file, over all chains of the stripe; 0 when there is none. Chunks that were
        written under an older truncate version do not count."""

    async def sync(self, inode: int, layout: Layout) -> None:
        """A checkpoint of every chain of the stripe: what was acknowledged before survives power loss."""

    def space(self) -> Space:
        """The newest known sums over all targets, without asking anybody."""


class Layouts(Protocol):
    """Layouts for new files, out of the newest version of the chain table that new files go to."""

    def table(self) -> tuple[int, int, int]:
        """(table id, version, number of chains). Raises UNAVAILABLE while there is no chain: no storage server has registered."""


class Capabilities(Protocol):
    """Grants for the storage servers (proto/capability.py) under the cluster's current key and epoch."""

    valid_ms: int  # how long a grant is good at least, from the moment it is issued
    owners: Owners  # of the clients' ids

    def issue(self, client: bytes, inode: int, rights: int) -> bytes:
        """A capability for the chunks of one inode; `rights` are `proto.capability.Rights`."""

    def verify(self, client: bytes, capability: bytes) -> Grant:
        """What a capability of this client grants, or granted until it expired. Raises PERMISSION_DENIED for one that is not its own."""


class Clock(Protocol):
    """The part of `proto.env.Environment` that the namespace uses."""

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float:
        """Seconds on CLOCK_BOOTTIME."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, for file times."""

    def random(self) -> float:
        """[0, 1), for jitter."""

    def promise(self) -> Promise[Any]:
        """What a request waits for until somebody else sets it."""

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Any:
        """Run a background worker until it returns."""
