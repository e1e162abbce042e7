"""Mounts inside the test's own process: the session, the file system and the core in a thread, so that a test can look at them.

A test that touches such a mount must let go of the GIL while it does, as all system calls of `os` and `open` do. Page faults do
not: what maps files is tested with mounts of their own processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from emberfs.client.core.client import Core
    from emberfs.fuse.options import MountOptions
    from emberfs.fuse.session import Handler, Session

    MakeMount = Callable[..., "MountThread"]

MNT_FORCE, MNT_DETACH = 1, 2
SECONDS_MAX = 100.0  # for beginning and for ending
UNMOUNT_SECONDS_MAX = 2.0  # for the kernel to end the connection
STOP = {signal.SIGINT, signal.SIGTERM}
_libc = ctypes.CDLL(None, use_errno=True)


def detach(path: str) -> None:
    """Unmount what nobody serves any more."""
    _libc.umount2(os.fsencode(path), MNT_DETACH)


def can_mount() -> bool:
    return os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


class MountThread:
    """One mount of `url` (empty: of no cluster, for handlers that need none) at `path`. Options as of MountOptions."""

    session: Session

    def __init__(
        self, url: str, path: str | os.PathLike[str], *, handlers: dict[int, Handler] | None = None, **options: Any
    ) -> None:
        from emberfs.fuse.options import MountOptions

        self.path = Path(path)
        self._url = url
        self._handlers = handlers
        self._options = MountOptions(**options)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._fd = _mount(self.path, self._options)
        self._thread = threading.Thread(target=self._main, name=f"mount {self.path.name}", daemon=True)
        self._thread.start()
        self._ready.wait(SECONDS_MAX)
        if self._failure is not None:
            self.close()
            raise self._failure

    def _main(self) -> None:
        import uvloop

        try:
            uvloop.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            os.close(self._fd)
            self._ready.set()

    async def _serve(self) -> None:
        from emberfs.fuse.device import Device
        from emberfs.fuse.filesystem import FileSystem, handlers
        from emberfs.fuse.negotiation import REQUEST_HEAD_BYTES_MAX
        from emberfs.fuse.notifier import Notifier
        from emberfs.fuse.session import Session

        self.loop = asyncio.get_running_loop()
        core = await _connect(self._url)
        device = Device(self._fd, (1 << 20) + REQUEST_HEAD_BYTES_MAX)
        notifier = Notifier(device.notify)
        fs = FileSystem(core, self._options, notifier)
        self.session = Session(device, fs, handlers() if self._handlers is None else self._handlers)
        self.session.on_agreement = lambda agreement: self._ready.set()
        try:
            await self.session.run()
        finally:
            await notifier.close(SECONDS_MAX)
            await core.close()

    def requests(self, opcode: int) -> int:
        """How many of an operation were answered."""

        async def look() -> int:  # there, since an answer is counted after it was given
            return self.session.fs.statistics.requests[opcode]

        return int(self.call(look()))

    def soon(self, work: Callable[[], None]) -> None:
        """Have something done on the mount's loop, if that is still there."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(work)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the mount's loop; its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS_MAX)

    def abort(self) -> None:
        """The kernel ends the connection, whatever is under way."""
        _libc.umount2(os.fsencode(self.path), MNT_FORCE)

    def close(self) -> None:
        """Unmount, and wait until everything has ended."""
        if _libc.umount2(os.fsencode(self.path), 0):
            _libc.umount2(os.fsencode(self.path), MNT_DETACH)
        else:
            self._thread.join(UNMOUNT_SECONDS_MAX)  # by itself
        if hasattr(self, "session"):
            self.soon(self.session.stop)  # a mount namespace that another process has made meanwhile has the mount, too
        self._thread.join(SECONDS_MAX)
        if self._thread.is_alive():
            raise TimeoutError(f"the mount at {self.path} does not end")


def _mount(path: Path, options: MountOptions) -> int:
    """A new connection, mounted; its descriptor."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    given = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576"
    if _libc.mount(b"emberfs", os.fsencode(path), b"fuse.emberfs", options.mount_flags, given.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, os.strerror(number), str(path))
    return fd


async def _connect(url: str) -> Core:
    from emberfs.client.core.client import Core
    from emberfs.client.core.options import Options
    from emberfs.proto.drivers.aio import AioEnvironment
    from emberfs.proto.settings import parse_url

    if not url:
        return Core(AioEnvironment(), (), Options(), 0)
    location = parse_url(url)
    env = AioEnvironment(cluster=location.cluster, secret_file=location.secret_file, acts_for_others=True)
    core = Core(env, location.addresses, Options(), 0)
    await core.connect()
    return core


@pytest.fixture
def make_mount() -> Iterator[MakeMount]:
    """Mounts for one test: `make_mount(cluster.url, attr_timeout=0.0)`; each has `path`."""
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    with contextlib.ExitStack() as stack:

        def make(url: str = "", **options: Any) -> MountThread:
            path = stack.enter_context(tempfile.TemporaryDirectory(prefix="emberfs-session-"))
            made = MountThread(url, path, **options)
            stack.callback(made.close)
            return made

        yield make


def main(url: str, path: str) -> None:
    """One mount in a process of its own, until a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # also in the threads to come, so that they reach `sigwait`
    mount = MountThread(url, path)
    print("mounted", flush=True)
    signal.sigwait(STOP)
    mount.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
