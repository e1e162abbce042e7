"""The metadata server: `python -m emberfs.meta.server --data DIR`. Namespace and cluster manager in one process.

One event loop. Order of the start: data directory, KV engine, manager, namespace, listeners, registration of this server itself. Over an
engine that several servers share (`--kv postgresql://…`) each serves the namespace, and one of them is elected to be the manager.
The stop is the reverse: no more requests, then the workers, then the clean-stop record, then the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from ..proto.blocks import TABLE_OF_FILES
from ..proto.datadir import DataDirectory, open_data_directory
from ..proto.drivers.aio import AioEnvironment
from ..proto.errors import Status, error
from ..proto.gen.cluster_pb2 import NODE_KIND_META, Node
from ..proto.hello import SOFTWARE
from ..proto.ids import boot_id, new_u64
from ..proto.process import Process, parser, run
from ..proto.routing import RoutingTable
from ..proto.rpc import Service
from ..proto.server import Server
from ..proto.settings import read_secret, time_scale
from ..proto.subscription import Hub
from .backup import Backups, Frozen
from .chunks import StorageChunks
from .cluster.manager import Manager
from .cluster.service import ClusterService
from .cluster.shared import Shared
from .dump import require_whole
from .kv import retry
from .kv.engine import Engine
from .kv.open import is_shared, open_engine
from .namespace import inline, trash
from .namespace.namespace import Namespace
from .namespace.seams import Space
from .namespace.service import MetaService

DATA_FORMAT = 1
POOL_BYTES = 1 << 20  # this server reads and writes no chunk bytes itself
ROUTING_TOPIC = "routing"

_log = structlog.get_logger("emberfs.meta")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("emberfs.meta.server", "The metadata server of emberfs: namespace and cluster manager.")
    made.add_argument(
        "--kv",
        metavar="URL",
        help="the key-value engine: rocksdb:///path (default: in the data directory), or one that several servers share: "
        "postgresql://user@host/database, or fdb:///path/of/fdb.cluster (experimental)",
    )
    made.add_argument(
        "--trash",
        metavar="SECONDS",
        type=int,
        default=trash.SECONDS_DEFAULT,
        help="keep what is removed for so long, where a directory does not say (default: a day; 0: not at all)",
    )
    made.add_argument(
        "--inline",
        metavar="BYTES",
        type=int,
        help=f"keep files of up to so many bytes beside their inodes (default: {inline.BYTES_DEFAULT}; 0 where chunks have several "
        "copies and the metadata's store has one)",
    )
    made.add_argument(
        "--grpc", metavar="HOST:PORT", action="append", default=[], help="serve gRPC for other tools there"
    )
    return made


class _Environment(AioEnvironment):
    """Workers that fail take the process down instead of being forgotten."""

    def __init__(self, process: Process, secret: bytes) -> None:
        super().__init__(secret=secret, acts_for_others=True, pool_bytes=POOL_BYTES)
        self._process = process

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Any:
        return self._process.spawn(work(), name)


class MetaServer:
    """The parts of one running server; made by `opened`."""

    def __init__(
        self, process: Process, data: DataDirectory, engine: Engine, env: AioEnvironment, manager: Manager | Shared
    ) -> None:
        self.manager = manager
        self.hub = Hub()
        self._process = process
        self._data = data
        self._table = RoutingTable()  # for our own access to chunks
        chunks = StorageChunks(env, self._table, self._space, ends=manager)
        self.namespace = Namespace(
            engine,
            chunks,
            manager,
            manager,
            env,
            trash_seconds=process.options.trash,
            inline_max=self._inline_max,
        )
        self._env = env
        self._embedded = isinstance(engine, Frozen)  # (asked once: isinstance with a protocol takes 10 µs)
        self._backups = None
        if isinstance(engine, Frozen):
            self._backups = Backups(engine, chunks, self._chains, env, data.path, manager.cluster)
        self._number = new_u64()  # of this process
        self.services: list[Service] = []
        self._cluster: ClusterService

    @property
    def default_address(self) -> str:
        return f"unix:{self._data.path / 'meta.sock'}"

    def _space(self) -> Space:
        usage = self.manager.space()
        return Space(usage.capacity, max(0, usage.capacity - usage.used), self.manager.free_part_min())

    def _inline_max(self) -> int:
        """Small files are as safe as others: where the store has one copy and chains have several, they lie in chunks unless asked for."""
        asked = self._process.options.inline
        if asked is not None:
            return max(0, min(int(asked), inline.BYTES_MAX))
        if not self._embedded:
            return inline.BYTES_DEFAULT
        newest = self.manager.book.tables.get(TABLE_OF_FILES)
        return inline.BYTES_DEFAULT if newest is not None and newest.replicas <= 1 else 0

    def _chains(self) -> list[int]:
        """Those that new files are laid out over."""
        newest = self.manager.book.tables.get(TABLE_OF_FILES)
        return list(newest.chains) if newest is not None else []

    def routing_changed(self, before: int) -> None:
        """Tell our own storage access, and everybody who watches."""
        delta = self.manager.routing(self._table.version, server=True)
        if delta is not None:
            change = self._table.apply(delta)
            if not self.namespace.in_charge():  # whoever is cleans up after them
                for client in change.ended_clients:
                    self.namespace.clients.readers.gone(client)
        body = self.manager.routing(before)
        if body is not None:
            self.hub.publish(ROUTING_TOPIC, body.version, body.SerializeToString())

    async def register(self, addresses: list[str]) -> int:
        """Put this server into the routing; its node number, kept in the data directory."""
        facts = self._data.facts
        node = Node(
            id=facts.get("node", 0),
            kind=NODE_KIND_META,
            addresses=addresses,
            host=boot_id(),
            name=self._process.options.name,
            process=self._number,
            software=SOFTWARE,
        )
        number = await self.manager.register(node, [])
        if facts.get("node") != number:
            self._data.remember(node=number, cluster=self.manager.cluster)
        return number

    async def start(self, own_client: bytes) -> int:
        """Everything but the listeners; our node number."""
        known = self._data.facts.get("cluster", self.manager.cluster)
        if known != self.manager.cluster:
            message = f"{self._data.path} belongs to cluster {known}, and its key-value engine holds {self.manager.cluster}; check --kv"
            raise error(Status.WRONG_CLUSTER, message)
        self.manager.listeners.append(self.routing_changed)
        self.routing_changed(0)
        owner = self._data.path.stat()
        await self.namespace.start((owner.st_uid, owner.st_gid))
        if isinstance(self.manager, Manager):
            await self.manager.start(self.namespace, own_client)
        else:
            self.namespace.in_charge = lambda manager=self.manager: manager.in_charge  # type: ignore[misc]
        self.namespace.run_workers()
        if self._backups is not None:
            self._env.spawn(self._backups.run, "backups")
        number = self._data.facts.get("node", 0)
        if not number and isinstance(self.manager, Manager):
            number = await self.register([])
        self._cluster = ClusterService(
            self.manager, self.namespace.counts, self._title(number), time.time_ns(), self._backups
        )
        self.services = [self._cluster, MetaService(self.namespace)]
        return int(number)

    def _title(self, number: int) -> str:
        return f"{self._process.options.name} (node {number})"

    async def join(self, server: Server) -> int:
        """Take our place under these addresses: among the servers that share the engine, and in the routing. Our node number."""
        if isinstance(self.manager, Shared):
            self.manager.start(self._number, server.addresses, self.namespace)
        number = await self.register(server.addresses)
        self._cluster.primary = self._title(number)
        server.settings = replace(server.settings, node=number)
        return number


@contextlib.asynccontextmanager
async def opened(process: Process, secret: bytes) -> AsyncIterator[tuple[MetaServer, int]]:
    """The server, started but not listening, with its node number; closed in order at the end."""
    data = open_data_directory(process.options.data, "meta", DATA_FORMAT, SOFTWARE)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(data.close)
        url = process.options.kv or _default_engine(data.path)
        engine = open_engine(url, on_failure=process.fail)
        stack.push_async_callback(engine.close)
        await require_whole(engine)
        env = _Environment(process, secret)
        stack.push_async_callback(env.close)
        manager: Manager | Shared
        if is_shared(url):
            manager = await Shared.open(engine, env, time_scale=time_scale())
            stack.push_async_callback(manager.stop)
        else:
            manager = await Manager.open(engine, env, time_scale=time_scale())
        env.credentials.cluster = manager.cluster
        server = MetaServer(process, data, engine, env, manager)
        stack.push_async_callback(process.end_workers)
        number = await server.start(env.client)
        stack.push_async_callback(server.namespace.close)
        _measure(process, server)
        yield server, number


def _default_engine(data: Path) -> str:
    return f"rocksdb://{data / 'kv'}"


def _measure(process: Process, server: MetaServer) -> None:
    manager = server.manager
    process.metrics.gauge("emberfs_clients", "Clients with a lease", lambda: len(manager.leases))
    locking, appending = server.namespace.locking, server.namespace.appending
    process.metrics.gauge("emberfs_lock_waits", "Requests that wait for a lock", lambda: locking.waiters.count)
    process.metrics.gauge(
        "emberfs_append_waits", "Requests that wait to append to a file", lambda: appending.waiters.count
    )
    process.metrics.gauge("emberfs_routing_version", "Version of the routing", lambda: manager.book.state.version)
    process.metrics.gauge("emberfs_targets", "Targets", lambda: len(manager.book.targets))
    process.metrics.gauge("emberfs_bytes_used", "Bytes used on all targets", lambda: manager.space().used)
    process.metrics.gauge("emberfs_bytes_capacity", "Bytes of all targets", lambda: manager.space().capacity)
    for counter in (retry.RETRIES, retry.GIVEN_UP):
        process.metrics.registry.register(counter)


async def main(process: Process) -> None:
    """Serve until asked to stop. Raises StatusError when it cannot start."""
    secret = read_secret(process.options.secret_file or "")
    async with opened(process, secret) as (meta, number):
        server = Server(meta.services, cluster=meta.manager.cluster, node=number, secret=secret, hub=meta.hub)
        try:
            for address in process.options.listen or [meta.default_address]:
                await server.listen(address)
            node = await meta.join(server)
            async with contextlib.AsyncExitStack() as stack:
                if process.options.grpc:
                    from .grpc import serve_grpc

                    listening = await serve_grpc(meta.services, process.options.grpc, secret, meta.manager.cluster)
                    stack.push_async_callback(listening.stop, 1.0)
                process.ready(node=node, addresses=server.addresses, cluster=meta.manager.cluster)
                await process.stopped()
        finally:
            await server.stop()


if __name__ == "__main__":
    raise SystemExit(run("meta", options().parse_args(), main))
