"""A mount for tests: the daemon's inside (session, file system, core) in a thread or process of its own, over a given cluster.

python tests/plugin/emberfs_mount.py ember://… MOUNTPOINT      by hand, as root; Ctrl-C unmounts
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emberfs.fuse.options import MountOptions
    from emberfs.fuse.session import Session

MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount_device(path: str, *, read_only: bool = False) -> int:
    """Mount a new connection at `path` (root only); its descriptor."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    given = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576"
    if _libc.mount(b"emberfs", path.encode(), b"fuse.emberfs", 6 | (1 if read_only else 0), given.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, os.strerror(number), path)
    return fd


def unmount(path: str) -> None:
    """Unmount whatever is at `path`, now or when nobody uses it any more."""
    if _libc.umount2(path.encode(), 0) and ctypes.get_errno():
        _libc.umount2(path.encode(), MNT_DETACH)


async def make_session(url: str, fd: int, options: MountOptions) -> Session:
    """Everything behind one descriptor, connected to its cluster."""
    from emberfs.client.core.client import Core
    from emberfs.client.core.options import Options
    from emberfs.fuse.device import Device
    from emberfs.fuse.filesystem import FileSystem, handlers
    from emberfs.fuse.negotiation import REQUEST_HEAD_BYTES_MAX
    from emberfs.fuse.notifier import Notifier
    from emberfs.fuse.session import Session
    from emberfs.proto.drivers.aio import AioEnvironment
    from emberfs.proto.settings import parse_url

    location = parse_url(url)
    env = AioEnvironment(cluster=location.cluster, secret_file=location.secret_file, acts_for_others=True)
    core = Core(env, location.addresses, Options(), 0)
    await core.connect()
    device = Device(fd, (1 << 20) + REQUEST_HEAD_BYTES_MAX)
    return Session(device, FileSystem(core, options, Notifier(device.notify)), handlers())


async def serve(url: str, fd: int, options: MountOptions) -> None:
    session = await make_session(url, fd, options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, session.stop)
    try:
        await session.run()
    finally:
        await session.fs.notifier.close(5.0)
        await session.fs.core.close()


def main(url: str, path: str, **options: Any) -> None:
    import uvloop

    from emberfs.fuse.options import MountOptions

    logging.basicConfig(level=logging.INFO)
    fd = mount_device(path)
    try:
        uvloop.run(serve(url, fd, MountOptions(**options)))
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)  # first: nobody answers any more, so nothing may wait
        unmount(path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
