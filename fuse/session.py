"""One mount at work: requests from the device to their handlers, answers back, nothing lost on the way.

    device readable -> request -> handler -> bytes        answered at once, no task
                                          -> coroutine    begun at once; answered when it is done; INTERRUPT finds it by its number
                                          -> raises       errno of a StatusError or OSError, EIO and a line in the log for all else

Limits: `REQUESTS_MAX` operations in flight, then nothing is read until one is done; so with `device.BUFFERS_MAX` WRITEs. Waits for
locks may be many and long and end only by other requests, so they count apart, up to `LOCK_WAITS_MAX`. So do waits for the kernel to drop
pages, which it does when a READ of them is answered that we have perhaps not read yet, up to `INVALIDATIONS_MAX`.

An INTERRUPT cancels what only waits (locks, reads past the page cache), which then says EINTR. For everything else a caller waits on, as on
a disk, unless he was killed (`killed`): then reads are cancelled, too. What may have taken effect by then goes on; after
`INTERRUPT_SECONDS` its caller gets EINTR all the same, and what the operation opens later is closed again (`undo`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import perf_counter
from types import CoroutineType
from typing import Any

from ..proto.settings import time_scale
from .device import Body, Device, Unmounted
from .filesystem import FileSystem, batch_forget, forget
from .killed import Killed, is_direct, is_for_pages, is_killed
from .negotiation import WANTED, Agreement, Wanted, negotiate
from .operation import Operation
from .protocol import IN_HEADER_BYTES, NO_REPLY, ROOT_NODE, Init, Opcode, ProtocolError, check
from .requests import InitIn
from .statistics import LATER, OPCODES
from .structs import INTERRUPT_IN, WRITE_IN
from .undo import distrust, undo
from .wakeful import Wakeful

REQUESTS_MAX = 512  # operations in flight, without those that wait for locks
LOCK_WAITS_MAX = 4096
INVALIDATIONS_MAX = 4096
READS_PER_TURN = 64  # requests that are read before the loop's other work has its turn
INTERRUPT_SECONDS = 5.0  # before scaling: after which an interrupted operation is answered although it goes on
DRAIN_SECONDS = (
    35.0  # before scaling: for operations in flight when the mount ends; longer than any operation's own patience
)

COPIED_BYTES_MAX = 16 << 10  # a WRITE of so much is copied (0.5 µs), so that small ones that wait use up no buffers
VIRTUAL_NODE_MIN = 1 << 63  # nodes from here on are no inodes of the cluster

DATA_START = IN_HEADER_BYTES + WRITE_IN.size  # of a WRITE's payload
# What names no name: where its node is gone, the kernel came by an old name, and with ESTALE it looks that up again.
OF_A_NODE = frozenset((Opcode.GETATTR, Opcode.SETATTR, Opcode.STATX, Opcode.READLINK, Opcode.OPEN, Opcode.OPENDIR))
CANCELLED_BY_INTERRUPT = frozenset((Opcode.READ, Opcode.SETLKW))  # all else goes on

OF_BYTES = frozenset((Opcode.READ, Opcode.WRITE))

# What another process may have begun for somebody else: the page cache, closing.
UNGUARDED = NO_REPLY | {
    Opcode.INIT,
    Opcode.DESTROY,
    Opcode.READ,
    Opcode.WRITE,
    Opcode.FSYNC,
    Opcode.RELEASE,
    Opcode.READDIR,
    Opcode.READDIRPLUS,
    Opcode.FSYNCDIR,
    Opcode.RELEASEDIR,
}

FLAGS = (WANTED & ~Init.CREATE_SUPP_GROUP) | Init.POSIX_ACL | Init.DONT_MASK | Init.HAS_RESEND

Answer = Body | Coroutine[Any, Any, Body]
Handler = Callable[[FileSystem, "Request"], Answer]
Watcher = Callable[["Request", int, float], None]  # request, errno, seconds

logger = logging.getLogger(__name__)


class Request:
    """One request of the kernel."""

    __slots__ = (
        "abandoned",
        "begin",
        "body",
        "buffer",
        "data",
        "gid",
        "interrupted",
        "lends",
        "node",
        "opcode",
        "operation",
        "pid",
        "uid",
        "unique",
    )

    def __init__(self, opcode: int, unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> None:
        self.opcode = opcode
        self.unique = unique
        self.node = node
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.body = body  # what follows the header; of WRITE: only its fixed part
        self.data: memoryview | None = None  # of WRITE: the payload, valid until the reply was sent
        self.lends = False  # it lies in the device's buffer
        self.interrupted = False
        self.abandoned = False  # answered already, with EINTR
        self.begin = 0.0  # seconds, perf_counter
        self.buffer: memoryview | None = None  # the device's, lent until the reply was sent
        self.operation: Operation | None = None  # at work, where it has to wait


class Session:
    """Serves one device. `run` returns when the kernel has unmounted, or after `stop`."""

    def __init__(self, device: Device, fs: FileSystem, handlers: dict[int, Handler]) -> None:
        self.device = device
        self.fs = fs
        fs.reply = device.reply
        self.watcher: Watcher | None = None  # is told of every answer, while somebody reads the access log
        self.on_agreement: Callable[[Agreement], None] | None = None  # is told what was agreed with the kernel
        self.on_answered: Callable[[int], None] | None = None  # is told which request has its answer
        self.inflight: dict[int, Request] = {}  # by unique: those that wait for something
        self._handlers = self._table(handlers)
        self._guarded = fs.options.allow_root
        self._lock_waits = 0
        self._reading = False
        self._ended: asyncio.Future[None] | None = None
        self._idle: asyncio.Event | None = None  # while the mount ends: nothing is in flight
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakeful: Wakeful
        self._killed: Killed

    def _table(self, handlers: dict[int, Handler]) -> list[Handler]:
        """By opcode, and at the end what serves the opcodes of newer kernels."""
        own: dict[int, Handler] = {
            Opcode.INIT: self._init,
            Opcode.INTERRUPT: self._interrupt,
            Opcode.DESTROY: self._destroy,
            Opcode.FORGET: forget,
            Opcode.BATCH_FORGET: batch_forget,
        }
        table = {**handlers, **own}
        return [table.get(opcode, unknown) for opcode in range(OPCODES + 1)]

    # --- the whole ----------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the kernel has unmounted or `stop` was called, and end what is in flight. Raises OSError where the device cannot be
        read for another reason."""
        self._loop = asyncio.get_running_loop()
        self._wakeful = Wakeful(self._loop)
        self._killed = Killed(self._loop, self.inflight, self._interrupted)
        self._ended = self._loop.create_future()
        self.fs.notifier.on_awaited = self._look_for_room
        self._resume()
        try:
            await self._ended
        finally:
            self._pause()
            await self._drain()

    def stop(self) -> None:
        """Read no more requests; `run` returns when those in flight are answered."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, failure: OSError) -> None:
        """End as `stop` does; `run` raises. The mount is still there: another process may serve it."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(failure)

    async def _drain(self) -> None:
        """Wait for what is in flight, then cancel it: whoever waits for it gets an answer in any case.

        But no waits for locks: who would unlock cannot any more. The kernel ends them with the connection, or asks whoever takes it over.
        """
        seconds = DRAIN_SECONDS * time_scale()
        self._idle = asyncio.Event()
        if not self.inflight:
            self._idle.set()
        for request in list(self.inflight.values()):
            if request.opcode == Opcode.SETLKW:
                request.abandoned = True
                self._cancel(request)
        for _ in range(2):
            try:
                await asyncio.wait_for(self._idle.wait(), seconds)
            except TimeoutError:
                logger.error("%d operations do not end: they are cancelled", len(self.inflight))
                for request in list(self.inflight.values()):
                    self._cancel(request)
        await self.fs.settle(seconds)

    @staticmethod
    def _cancel(request: Request) -> None:
        if request.operation is not None:
            request.operation.cancel()

    def _pause(self) -> None:
        if self._reading and self._loop is not None:
            self._reading = False
            self._loop.remove_reader(self.device.fd)

    def _resume(self) -> None:
        if not self._reading and self._loop is not None and self._ended is not None and not self._ended.done():
            self._reading = True
            self._loop.add_reader(self.device.fd, self._readable)

    # --- requests -----------------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """The device has requests: serve some, and let the loop go on."""
        device = self.device
        self._wakeful.event()
        for _ in range(READS_PER_TURN):
            try:
                received = device.receive()
                if not received:
                    return
                header = check(device.buffer, received)
            except Unmounted:
                self.stop()
                return
            except ProtocolError as failure:
                logger.error("a request that cannot be: %s", failure)
                if failure.unique:
                    device.refuse(failure.unique, errno.EIO)
                continue
            except OSError as failure:
                logger.critical("the device cannot be read: %s", failure)
                self._fail(failure)
                return
            self._serve(header, received)
            if not self._reading:
                return

    def _serve(self, header: tuple[int, ...], received: int) -> None:
        """Hand one request to its handler, and answer it or make a task of it."""
        _, opcode, unique, node, uid, gid, pid, words = header
        view = self.device.buffer
        if opcode == Opcode.WRITE:
            request = Request(opcode, unique, node, uid, gid, pid, bytes(view[IN_HEADER_BYTES:DATA_START]))
            if received <= COPIED_BYTES_MAX:
                request.data = memoryview(bytes(view[DATA_START:received]))
            else:
                request.data = view[DATA_START:received]
                request.lends = True
        else:
            request = Request(opcode, unique, node, uid, gid, pid, bytes(view[IN_HEADER_BYTES : received - 8 * words]))
        if opcode >= OPCODES:
            opcode = LATER
        request.begin = perf_counter()
        try:
            handler = self._handlers[opcode]
            if node == ROOT_NODE or node >= VIRTUAL_NODE_MIN:
                handler = self._chosen(request, handler)
            if self._guarded:
                self._guard(request)
            answer = handler(self.fs, request)
        except Exception as failure:
            self._failed(request, self._errno(request, failure))
        else:
            if type(answer) is CoroutineType:
                self._start(request, answer)
            else:
                self.fs.statistics.inline += 1
                self._answer(request, answer)  # type: ignore[arg-type]

    def _chosen(self, request: Request, handler: Handler) -> Handler:
        """Nodes that are no inodes, and the names of theirs in the root, have a handler of their own."""
        control = self.fs.control
        if request.node >= VIRTUAL_NODE_MIN:
            return unknown_node if control is None else control.handle
        if request.opcode == Opcode.LOOKUP and control is not None and request.body[:-1] in control.names:
            return control.handle
        return handler

    def _guard(self, request: Request) -> None:
        """With allow_root the kernel lets everybody in: others than root and the owner are kept out here. Raises EACCES."""
        if request.uid and request.uid != self.fs.options.owner and request.opcode not in UNGUARDED:
            raise PermissionError(errno.EACCES, "this mount is its owner's and root's only")

    def _start(self, request: Request, work: Coroutine[Any, Any, Body]) -> None:
        """Begin an operation that may have to wait. Mostly it does; what it holds while it does is counted here."""
        waits_for_lock = request.opcode == Opcode.SETLKW
        if waits_for_lock and self._lock_waits >= LOCK_WAITS_MAX:
            work.close()
            self._failed(request, errno.ENOLCK)
            return
        operation = request.operation = Operation(self._loop, request, work, self._finished)  # type: ignore[arg-type]
        if operation.step():
            return
        self.inflight[request.unique] = request
        self._lock_waits += waits_for_lock
        if request.opcode in OF_BYTES and is_direct(request):
            self._killed.waits(request)
        if request.lends:
            request.buffer = self.device.lend()
        if not self._has_room():
            self._pause()

    def _finished(self, operation: Operation) -> None:
        """An operation is over: answer it, and what it held is free again."""
        request: Request = operation.request
        failure = operation.failure
        if failure is None:
            self._answer(request, operation.result)
        else:
            self._failed(request, self._errno(request, failure))
        if failure is not None or request.abandoned:
            distrust(self.fs, request)
        if self.on_answered is not None:
            self.on_answered(request.unique)
        if self.inflight.pop(request.unique, None) is None:
            return  # it never waited
        self._wakeful.event()
        request.operation = None
        if request.opcode == Opcode.SETLKW:
            self._lock_waits -= 1
        if request.buffer is not None:
            request.data = None
            self.device.take_back(request.buffer)
            request.buffer = None
        self._look_for_room()
        if self._idle is not None and not self.inflight:
            self._idle.set()

    def _look_for_room(self) -> None:
        if not self._reading and self._has_room():
            self._resume()

    def _has_room(self) -> bool:
        waits = self._lock_waits + min(self.fs.notifier.awaited, INVALIDATIONS_MAX)
        return len(self.inflight) - waits < REQUESTS_MAX and self.device.can_lend

    @staticmethod
    def _errno(request: Request, failure: BaseException) -> int:
        """What a failure is to the caller. One that is no answer of the file system is a fault of ours, and is logged."""
        if isinstance(failure, OSError) and failure.errno:
            if failure.errno == errno.ENOENT and request.opcode in OF_A_NODE:
                return errno.ESTALE
            return failure.errno
        if isinstance(failure, asyncio.CancelledError):
            return errno.EINTR if request.interrupted else errno.EIO
        logger.error("operation %d of inode %x failed", request.opcode, request.node, exc_info=failure)
        return errno.EIO

    # --- answers ------------------------------------------------------------------------------------------------------------------

    def _answer(self, request: Request, body: Body) -> None:
        if body is not None and (request.abandoned or not self.device.reply(request.unique, body)):
            undo(self.fs, request.opcode, body)
        if not request.abandoned:
            self._count(request, 0)

    def _failed(self, request: Request, number: int) -> None:
        if request.abandoned:
            return
        if request.opcode not in NO_REPLY:
            self.device.refuse(request.unique, number)
        self._count(request, number)

    def _count(self, request: Request, number: int) -> None:
        opcode = request.opcode if request.opcode < OPCODES else LATER
        seconds = perf_counter() - request.begin
        if request.node >= VIRTUAL_NODE_MIN and opcode != Opcode.SYMLINK:
            return  # who looks at the log is not in it, who removes a tree through 3fs-virt/rm-rf is
        statistics = self.fs.statistics
        statistics.requests[opcode] += 1
        statistics.seconds[opcode] += seconds
        if seconds > statistics.longest[opcode]:  # noqa: PLR1730 -- a call costs more, and this is every request
            statistics.longest[opcode] = seconds
        if number:
            statistics.errors[opcode] += 1
        if self.watcher is not None:
            self.watcher(request, number, seconds)

    # --- what the session serves itself ---------------------------------------------------------------------------------------------

    def _init(self, fs: FileSystem, request: Request) -> Body:
        try:
            agreed = negotiate(InitIn.parse(request.body), Wanted(flags=FLAGS), max_pages_limit=pages_limit())
        except ProtocolError as failure:
            logger.critical("%s", failure)
            raise OSError(errno.EPROTO, str(failure)) from None
        if not agreed.again:
            self.adopt(agreed)
        return agreed.reply

    def adopt(self, agreed: Agreement) -> None:
        """Work under what was agreed with the kernel, by this process or by one before it."""
        self.fs.agreed = agreed
        if self.on_agreement is not None:
            self.on_agreement(agreed)

    def _destroy(self, fs: FileSystem, request: Request) -> Body:
        self.stop()
        return b""

    def _interrupt(self, fs: FileSystem, request: Request) -> Body:
        """A caller has had a signal. One that was answered meanwhile needs nothing."""
        found = self.inflight.get(INTERRUPT_IN.unpack_from(request.body)[0])
        if found is not None and not found.interrupted:
            only_waits = found.opcode in CANCELLED_BY_INTERRUPT and not is_for_pages(found)
            if only_waits or is_killed(found.pid, unseen=found.opcode != Opcode.READ):
                self._interrupted(found)
            else:
                self._killed.waits(found)
        return None

    def _interrupted(self, request: Request) -> None:
        request.interrupted = True
        self.fs.statistics.interrupted += 1
        if request.opcode in CANCELLED_BY_INTERRUPT:
            self._cancel(request)
        else:
            self._loop.call_later(INTERRUPT_SECONDS * time_scale(), self._abandon, request)  # type: ignore[union-attr]

    def _abandon(self, request: Request) -> None:
        """Let the caller go. The operation ends without him."""
        if self.inflight.get(request.unique) is not request or request.abandoned:
            return
        self._failed(request, errno.EINTR)
        request.abandoned = True
        self.fs.statistics.abandoned += 1


def unknown(fs: FileSystem, request: Request) -> Body:
    """An operation that we do not have."""
    raise OSError(errno.ENOSYS, f"operation {request.opcode}")


def unknown_node(fs: FileSystem, request: Request) -> Body:
    """A node that was never given out, or a FORGET of one that is not counted."""
    if request.opcode in NO_REPLY:
        return None
    raise OSError(errno.ESTALE, f"node {request.node:x}")


def pages_limit() -> int:
    """The kernel's limit of pages in one request."""
    try:
        return int(Path("/proc/sys/fs/fuse/max_pages_limit").read_text())
    except (OSError, ValueError):
        return 256  # kernels before 6.13 have no setting
