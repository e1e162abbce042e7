"""The process that serves a mount: `python -m emberfs.fuse.daemon SOCKET`, started by a supervisor, which tells it the rest.

    supervisor -> configuration                      daemon -> connected: the root's inode, the client's identity
    supervisor -> serve, with the descriptor         daemon -> serving: what was agreed with the kernel
                                                     daemon -> unmounted, when the kernel says so
    SIGTERM: answer what is in flight, flush everything, say good-bye to the cluster
    SIGUSR1: the same without the good-bye: another daemon goes on under the same identity

A daemon of a later generation takes over a connection that others have served: it knows what they agreed with the kernel, has the
kernel send again what they left unanswered, and is the same client to the cluster, so that locks stay held and a request that was
carried out before is not carried out twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
from typing import Any

import structlog
import uvloop

from ..client.core.client import Core
from ..client.core.options import Options
from ..proto.drivers.aio import AioEnvironment
from ..proto.errors import Status, StatusError, error
from ..proto.ids import new_client_id
from ..proto.process import calm_collector, configure_logging
from ..proto.settings import parse_url, time_scale
from .control import Control
from .device import Device
from .filesystem import FileSystem, handlers
from .inheritance import inherit
from .journal import BEAT_SECONDS, Journal
from .negotiation import REQUEST_HEAD_BYTES_MAX, Agreement
from .notifier import Notifier
from .options import parse
from .protocol import Init, Notify
from .replays import JournaledRequests
from .replies import notify_plain
from .session import Session

MESSAGE_BYTES_MAX = 64 << 10
GENERATION_SHIFT = 40  # each daemon numbers its handles and requests from generation << 40
NOTIFIER_SECONDS_MAX = 5.0
REPLAY_SECONDS_MAX = 60.0  # in which the kernel sends again what it does
SWEEP_SECONDS = 1.0
WRITE_BYTES_MAX = 1 << 20  # of one WRITE

_log = structlog.get_logger("emberfs.mount")


class Supervisor:
    """The other end of the socket. It may die: the daemon goes on without it."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    async def hear(self) -> tuple[dict[str, Any], int]:
        """The next message and the descriptor that came with it, or -1. Raises ConnectionError at the end."""
        loop = asyncio.get_running_loop()
        there = asyncio.Event()
        loop.add_reader(self._socket.fileno(), there.set)
        try:
            await there.wait()
        finally:
            loop.remove_reader(self._socket.fileno())
        data, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES_MAX, 1)
        if not data:
            raise ConnectionError(errno.ECONNRESET, "the supervisor has ended")
        for fd in descriptors:
            os.set_inheritable(fd, False)
        return json.loads(data), descriptors[0] if descriptors else -1

    def tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps(message).encode())


class Mount:
    """A daemon at work."""

    def __init__(self, configuration: dict[str, Any], memory: int, supervisor: Supervisor) -> None:
        self._given = configuration
        self._supervisor = supervisor
        self._options = parse(configuration["option_texts"]).for_user(configuration["owner"])
        self._generation: int = configuration["generation"]
        self._client = bytes.fromhex(configuration["client"]) or new_client_id()
        self._journal = Journal(memory)
        self._requests: JournaledRequests | None = None
        self._good_bye = True
        self._session: Session | None = None
        self._stopping = asyncio.Event()

    @property
    def _first_number(self) -> int:
        return (self._generation - 1 << GENERATION_SHIFT) + 1

    async def run(self) -> None:
        """From the first contact with the cluster to the end of the mount."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, True)
        loop.add_signal_handler(signal.SIGUSR1, self._stop, False)
        core = await self._connect()
        try:
            root = self._given["root"] or await self._find_root(core)
            self._supervisor.tell(state="connected", root=root, client=self._client.hex())
            stop = asyncio.create_task(self._stopping.wait())
            serve = asyncio.create_task(self._supervisor.hear())
            await asyncio.wait((serve, stop), return_when=asyncio.FIRST_COMPLETED)
            if serve.cancel():
                return
            stop.cancel()
            _, device = serve.result()
            await self._serve(core, root, device)
        finally:
            await self._close(core)

    def _stop(self, good_bye: bool) -> None:
        self._good_bye = good_bye
        self._stopping.set()
        if self._session is not None:
            self._session.stop()

    async def _connect(self) -> Core:
        location = parse_url(self._given["url"])
        options, name = self._options, f"mount {self._given['path']}"
        env = AioEnvironment(
            client=self._client,
            cluster=location.cluster,
            secret_file=options.secret_file or location.secret_file,
            acts_for_others=self._given["owner"] == 0,
            pool_bytes=options.memory,
        )
        chosen = Options(timeout=options.timeout, memory=options.memory, atime=not options.noatime, name=name)
        core = Core(env, location.addresses, chosen, 0)
        core.succeed(self._first_number - 1)
        core.read_together()
        self._requests = core.cluster.requests = JournaledRequests(env, self._first_number - 1, self._journal)
        try:
            await core.connect()
        except BaseException:
            await env.close()
            raise
        return core

    async def _find_root(self, core: Core) -> int:
        path = parse_url(self._given["url"]).path
        try:
            stat = await core.stat(path)
        except StatusError as failed:
            raise error(failed.status, f"{path} of the cluster cannot be mounted: {failed.strerror}") from failed
        if not stat.is_dir:
            raise error(
                Status.NOT_DIRECTORY, f"{path} is not a directory of the cluster: only directories can be mounted"
            )
        return stat.inode

    async def _serve(self, core: Core, root: int, fd: int) -> None:
        device = Device(fd, WRITE_BYTES_MAX + REQUEST_HEAD_BYTES_MAX)
        fs = FileSystem(core, self._options, Notifier(device.notify), root=root, first_handle=self._first_number)
        session = self._session = Session(device, fs, handlers())
        session.on_agreement = self._agreed
        session.on_answered = self._requests.answered if self._requests is not None else None
        fs.journal = self._journal
        self._sweep(core)
        self._beat()
        if self._options.control:
            fs.control = Control(fs, session, self._given["path"], self._generation)
        if agreement := self._given["agreement"]:
            await self._take_over(session, _agreement(agreement))
        if self._stopping.is_set():
            return
        calm_collector()
        await session.run()
        if not self._stopping.is_set():
            _log.info("unmounted", path=self._given["path"])
            self._supervisor.tell(state="unmounted")
        await fs.notifier.close(NOTIFIER_SECONDS_MAX)

    def _beat(self) -> None:
        self._supervisor.tell(state="alive")
        asyncio.get_running_loop().call_later(BEAT_SECONDS * time_scale(), self._beat)

    def _sweep(self, core: Core) -> None:
        """What was sent in the background is not lost with us."""
        inodes = core.inodes
        self._journal.sweep(lambda number: (inode := inodes.get(number)) is not None and inode.unsettled)
        asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep, core)

    async def _take_over(self, session: Session, agreement: Agreement) -> None:
        """Go on where another daemon has died."""
        lost = await inherit(session.fs, self._journal)
        session.adopt(agreement)
        # Before the first read: what we had read ourselves would come twice.
        if failure := session.device.notify(notify_plain(Notify.RESEND)):
            _log.error("the kernel does not send again what was left unanswered", errno=failure)
        loop = asyncio.get_running_loop()
        for (
            inode
        ) in lost:  # the kernel has pages of what it takes to be written; it may need our answers to let go of them
            loop.call_soon(session.fs.notifier.inode, session.fs.node(inode))
        if self._requests is not None:
            loop.call_later(REPLAY_SECONDS_MAX * time_scale(), self._requests.forget_inherited)

    def _agreed(self, agreement: Agreement) -> None:
        _log.info("serving", path=self._given["path"], generation=self._generation, flags=str(agreement.flags))
        kept = {"minor": agreement.minor, "flags": int(agreement.flags)}
        kept |= {"max_write": agreement.max_write, "max_pages": agreement.max_pages}
        self._supervisor.tell(state="serving", agreement=kept)

    async def _close(self, core: Core) -> None:
        try:
            if self._good_bye:
                await core.close()
            else:
                await core.sync()
                self._journal.sweep(lambda number: False)
        except StatusError as failed:
            _log.error("not everything could be flushed", status=failed.status.name, error=str(failed.strerror))


def _agreement(kept: dict[str, Any]) -> Agreement:
    return Agreement(kept["minor"], Init(kept["flags"]), kept["max_write"], kept["max_pages"], b"")


async def _main(supervisor: Supervisor) -> int:
    try:
        configuration, memory = await supervisor.hear()
        await Mount(configuration, memory, supervisor).run()
    except StatusError as failed:
        supervisor.tell(error=str(failed.strerror), status=failed.status.name)
        _log.error("cannot serve", status=failed.status.name, error=str(failed.strerror))
        return 1
    except ConnectionError:
        return 1
    except Exception as bug:
        supervisor.tell(error=f"this is a bug: {type(bug).__name__}: {bug}", status=Status.INTERNAL.name)
        _log.error("broke down", exc_info=bug)
        return 1
    return 0


def main() -> int:
    """Entry point; the exit code."""
    options = argparse.ArgumentParser(
        prog="emberfs.fuse.daemon", description="Serves a mount; started by its supervisor."
    )
    options.add_argument("socket", type=int, help="descriptor of the socket to the supervisor")
    options.add_argument("--log-level", default="info")
    given = options.parse_args()
    configure_logging("mount", given.log_level)
    return uvloop.run(_main(Supervisor(given.socket)))


if __name__ == "__main__":
    raise SystemExit(main())
