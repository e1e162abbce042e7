"""A cluster in one thread: the real manager and namespace over the in-memory engine, storage in memory, the local transport."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from emberfs.client import process
from emberfs.client.blocking import Client
from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.meta.chunks import StorageChunks
from emberfs.meta.cluster.manager import Manager
from emberfs.meta.cluster.service import ClusterService
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.namespace import Namespace
from emberfs.meta.namespace.seams import Space
from emberfs.meta.namespace.service import MetaService
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import drive
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_UPTODATE, NODE_KIND_META, NODE_KIND_STORAGE, Node, Target
from emberfs.proto.ids import boot_id, new_u64
from emberfs.proto.routing import RoutingTable
from emberfs.proto.transport.local import LocalNetwork

from .storage import MemoryStorage

_Result = TypeVar("_Result")

TARGETS = 3
SECONDS_MAX = 90.0


class World:
    """`start` it; `client()` gives blocking clients, `aio_env()` an environment for the asyncio face."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.network = LocalNetwork(self.loop)
        self.storage = MemoryStorage()
        self.clients: list[Client] = []
        self.manager: Manager
        self.namespace: Namespace

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run something on the servers' loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS_MAX)

    def start(self) -> World:
        self._thread.start()
        self.run(self._start())
        return self

    async def _start(self) -> None:
        engine = MemoryEngine(time.monotonic)
        self._env = AioEnvironment(local=self.network)
        self.manager = await Manager.open(engine, self._env)
        table = RoutingTable()

        def changed(_: int) -> None:
            news = self.manager.routing(table.version, server=True)
            if news is not None:
                table.apply(news)
            self.storage.chains.update(table.chains)

        self.manager.listeners.append(changed)
        chunks = StorageChunks(self._env, table, lambda: Space(1 << 40, 1 << 39))
        self.namespace = Namespace(engine, chunks, self.manager, self.manager, self._env)
        await self.namespace.start((0, 0))
        await self.manager.start(self.namespace)
        self.namespace.run_workers()
        cluster = ClusterService(self.manager, self.namespace.counts, "test", time.time_ns())
        self.network.serve("meta", [cluster, MetaService(self.namespace)])
        self.network.serve("storage", [self.storage])
        await self._register(NODE_KIND_META, "local:meta", [])
        self._incarnations = [new_u64() for _ in range(TARGETS)]
        await self.restart_storage()

    async def restart_storage(self, power_losses: int = 0) -> None:
        """A new process of the storage server, over what the last one has left."""
        targets = [
            Target(incarnation=number, capacity=1 << 40, state=LOCAL_STATE_UPTODATE, power_losses=power_losses)
            for number in self._incarnations
        ]
        await self._register(NODE_KIND_STORAGE, "local:storage", targets)

    async def _register(self, kind: Any, address: str, targets: list[Target]) -> None:
        node = Node(kind=kind, addresses=[address], host=boot_id(), name=address, process=new_u64())
        await self.manager.register(node, targets)

    def client(self, **options: Any) -> Client:
        """A blocking client, closed with the world."""
        chosen = Options.of({"timeout": 60.0, "memory": 64 << 20, **options})
        env = BlockingEnvironment(pool_bytes=chosen.memory, local=self.network)
        core = Core(env, ["local:meta"], chosen, 0o022)
        drive(core.connect())
        process.track(core)
        self.clients.append(Client(core))
        return self.clients[-1]

    def quiet(self, **options: Any) -> Client:
        """A client whose keeper never comes in between: for who counts requests."""
        client = self.client(**options)
        client.core.keeper.started = True
        return client

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS_MAX)
        self.loop.close()

    async def _stop(self) -> None:
        await self.namespace.close()
        await self._env.close()
