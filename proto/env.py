"""The environment: all that the cores may await. Three drivers implement it: blocking, asyncio, simulated.

Client logic is written once, as `async def` over an `Environment`. Under the blocking driver no method ever suspends, so `drive(coro)`
runs a whole operation in the caller's thread with one `send(None)`; under asyncio the same code awaits for real; in the
simulator time, network and disks come from a seed. A core awaits nothing else and imports no asyncio, threading, socket or time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from google.protobuf.message import Message

from .errors import StatusError
from .region import Region, Slice
from .rpc import Method

if TYPE_CHECKING:
    from .transport.choice import Spoken

_Result = TypeVar("_Result")
_Promised = TypeVar("_Promised")


@dataclass(slots=True)
class Call:
    """One request to one server. `address` is "unix:/path", "tcp:host:port" or "local:name"."""

    address: str
    method: Method
    request: Message
    timeout: float  # seconds, for everything: connecting, sending, waiting
    source: Sequence[Slice] = ()  # bulk to the server, concatenated
    target: Sequence[Slice] = ()  # bulk from the server, concatenated
    connect: float = 0.0  # seconds of that for making a connection, where none is there; 0: no limit of its own
    patient: bool = False  # whoever collects it does not mind 0.1 ms: the server has more to do for it meanwhile


class Ticket(Protocol):
    """A call that was started and not yet collected."""


class Promise(Protocol[_Promised]):
    """What somebody will be told once. Any number may await it, before and after; what comes after the first `set` or `fail` is
    ignored, as an answer that comes too late. A failure that nobody awaits is not reported."""

    @property
    def done(self) -> bool: ...

    def set(self, value: _Promised) -> None: ...

    def fail(self, failure: BaseException) -> None: ...

    def __await__(self) -> Generator[Any, Any, _Promised]: ...


class Pool(Protocol):
    """The client's own registered memory, of bounded size, handed out in slices."""

    def take(self, length: int) -> Slice:
        """A slice of at least one page alignment. Raises BUSY at the limit."""

    def give(self, slice_: Slice) -> None:
        """Back to the pool. A slice that is quarantined is kept aside until its peer can no longer move into it."""

    def find(self, view: memoryview) -> Slice | None:
        """What part of the pool a view is; None when it is other memory."""

    def hold(self, slices: Sequence[Slice]) -> Any:
        """Quarantine their memory until the hold is released, whoever gives it back meanwhile."""

    def release(self, hold: Any) -> None: ...

    def reclaim(self) -> None:
        """Look whether peers have stopped moving into memory that is held, or dead."""


class Environment(Protocol):
    @property
    def pool(self) -> Pool: ...

    async def call(self, call: Call) -> Any:
        """The reply message. Raises StatusError: UNAVAILABLE (nothing was sent), MAYBE_COMMITTED, DEADLINE, or the server's."""

    async def call_many(self, calls: Sequence[Call]) -> list[Any]:
        """All at once; per call the reply or the StatusError, in order. Never raises for one of them."""

    def start(self, call: Call) -> Ticket:
        """Send now, collect later (readahead, write-behind). Sends before it returns as far as the socket takes it."""

    async def collect(self, ticket: Ticket) -> Any:
        """The reply of a started call; raises as `call` does. A ticket is collected or abandoned once."""

    async def collect_any(self, tickets: Sequence[Ticket], seconds: float) -> Ticket | None:
        """Wait until one of these has its answer or has failed, and return it: `collect` then does not wait. None: `seconds` have passed
        (with 0, only what is here counts). Whatever happens, all of them are still to be collected or abandoned."""

    def abandon(self, ticket: Ticket) -> None:
        """Nobody wants the answer any more: cancel at the server; its target slices are quarantined until that is certain."""

    def shares_memory(self, address: str) -> bool:
        """Whether pool slices reach this server without passing through a socket (shm, rdma)."""

    def spoken(self) -> Mapping[str, Spoken]:
        """Which transport is spoken with each server, by address, and why."""

    def reachable(self, address: str) -> bool:
        """Whether this address can be tried from here: a Unix socket needs the same host."""

    def register(self, buffer: Any) -> Region:
        """Make the caller's memory a region. It stays valid until `unregister`."""

    def unregister(self, region: Region) -> None: ...

    def renew_identity(self) -> None:
        """A new client id: the old one's session is over. What is under way ends under the old one."""

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float:
        """Seconds on CLOCK_BOOTTIME (leases count while a laptop sleeps)."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, for file times only; never compared between hosts."""

    def random(self) -> float:
        """[0, 1), for jitter."""

    def lock(self) -> AbstractAsyncContextManager[None]:
        """A mutual exclusion usable with `async with` by the tasks or threads of this environment."""

    def promise(self) -> Promise[Any]:
        """A new one, for the tasks or threads of this environment. Its waiters raise CANCELLED when a blocking environment closes."""

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Any:
        """Run a background worker (the keeper): a daemon thread, a task or a simulated task. It stops by `close`."""

    def close(self) -> Awaitable[None] | None: ...


def drive(coro: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a core coroutine to its end in this thread; it must not suspend (blocking driver only)."""
    try:
        coro.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coro.close()
    raise RuntimeError("a core suspended under the blocking driver: it awaited something outside its environment")


__all__ = ["Call", "Environment", "Pool", "Promise", "StatusError", "Ticket", "drive"]
