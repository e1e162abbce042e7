"""Trouble: what goes wrong in a run of `chains`, one kind after the other and several at once, as the knobs say."""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from emberfs.proto.errors import StatusError

from .cluster import ChainCluster
from .knobs import Knobs, Power, Trouble
from .loop import Host, Task
from .nodes import ManagerNode, StorageNode

LONG_SECONDS = 25.0  # of a stop or a cut at most: several leases
EFFECTS_MAX = 30  # of a disk until it strikes
STRIKE_SECONDS = 3.0  # that we wait for that effect
READ_ERRORS = 0.3
SLOW_FACTOR = 40.0
STALL = 0.3


class Troublemaker:
    """Runs one run's troubles. What it did it undoes by itself after a while, except for what `ChainCluster.heal` undoes."""

    def __init__(self, cluster: ChainCluster, clients: list[Host]) -> None:
        self._cluster = cluster
        self._clients = clients
        self._simulation = cluster.simulation
        # Its own draws: what a seed is about stays, when the code draws more or less than it did.
        self._chance = random.Random(f"{cluster.simulation.seed} trouble")
        self._knobs: Knobs = cluster.knobs
        self._replaced = False
        self._victim: StorageNode | None = None  # the one whose copies are damaged: nobody else is disturbed then
        if Trouble.FLIP in self._knobs.troubles:
            self._victim = self._chance.choice(cluster.nodes)
        self._kinds: dict[Trouble, Callable[[], Awaitable[None]]] = {
            Trouble.KILL: self._kill,
            Trouble.KILL_ALL: self._kill_all,
            Trouble.EFFECT: self._effect,
            Trouble.POWER: self._power,
            Trouble.FREEZE: self._freeze,
            Trouble.FREEZE_MANAGER: self._freeze_manager,
            Trouble.KILL_MANAGER: self._kill_manager,
            Trouble.CUT_ONE: self._cut_one,
            Trouble.CUT_NEIGHBOURS: self._cut_neighbours,
            Trouble.CUT_MANAGER: self._cut_manager,
            Trouble.CUT_CLIENT: self._cut_client,
            Trouble.DISK_ERROR: self._disk_error,
            Trouble.READ_ERRORS: self._read_errors,
            Trouble.REPLACE: self._replace,
            Trouble.FLIP: self._flip,
            Trouble.SLOW: self._slow,
            Trouble.DISABLE: self._disable,
        }

    async def run(self) -> None:
        host = self._simulation.host("trouble")
        begun: list[Task[None]] = []
        for i, kind in enumerate(self._knobs.troubles):
            await self._sleep(self._knobs.quiet_seconds)
            self._simulation.loop.trace(f"trouble: {kind.value}")
            begun.append(host.spawn(self._one(kind), f"trouble {i}: {kind.value}", loud=True))
        for task in begun:
            await task

    async def _one(self, kind: Trouble) -> None:
        await self._kinds[kind]()

    async def _sleep(self, seconds_max: float) -> None:
        await self._simulation.loop.sleep(self._chance.uniform(0, seconds_max))

    async def _some_time(self) -> None:
        """Shorter than a lease, or longer than several."""
        await self._sleep(self._chance.choice([1.0, 4.0, 9.0, LONG_SECONDS]))

    def _node(self) -> StorageNode:
        return self._victim or self._chance.choice(self._cluster.nodes)

    def _manager(self) -> ManagerNode:
        return self._chance.choice(self._cluster.managers)

    # Processes.

    async def _kill(self) -> None:
        node = self._node()
        if node.running:
            node.kill()
        await self._restart(node)

    async def _kill_all(self) -> None:
        def kill() -> None:
            for node in nodes:
                if node.running:
                    node.kill()

        nodes = list(self._cluster.nodes)
        if self._chance.random() < 0.3:
            kill()
        else:
            first = self._node()
            first.when_died = kill
            platters = self._chance.choice(first.platters)
            platters.faults.strike(self._chance.randrange(EFFECTS_MAX), "after")
            await self._simulation.loop.sleep(STRIKE_SECONDS)
            platters.faults.disarm()
            first.when_died = lambda: None
        self._chance.shuffle(nodes)
        for node in nodes:
            await self._restart(node)

    async def _effect(self) -> None:
        await self._strike(self._chance.choice(["before", "after", "torn"]))

    async def _strike(self, kind: str | int) -> None:
        """The process ends at one of the next effects of a disk, or the disk errs there."""
        node = self._node()
        platters = self._chance.choice(node.platters)
        platters.faults.strike(self._chance.randrange(EFFECTS_MAX), kind)
        await self._sleep(STRIKE_SECONDS)
        platters.faults.disarm()
        await self._restart(node)

    async def _restart(self, node: StorageNode) -> None:
        await self._sleep(self._knobs.down_seconds)
        if not node.running:
            node.start()

    async def _power(self) -> None:
        node = self._node()
        if self._knobs.power is Power.ALL:
            nodes = self._cluster.nodes
        else:
            nodes = [node] if self._cluster.serves(node) else []
        for one in nodes:
            self._cluster.power_loss(one)
        for one in nodes:
            await self._restart(one)

    async def _freeze(self) -> None:
        host = self._node().host
        host.freeze()
        await self._some_time()
        host.thaw()

    async def _freeze_manager(self) -> None:
        host = self._manager().host
        host.freeze()
        await self._some_time()
        host.thaw()

    async def _kill_manager(self) -> None:
        manager = self._manager()
        if manager.running:
            manager.kill()
        await self._sleep(self._knobs.down_seconds)
        if not manager.running:
            manager.start()

    # The network.

    async def _cut(self, hosts: list[Host], others: list[Host]) -> None:
        network = self._simulation.network
        both = self._chance.random() < 0.6
        if self._chance.random() < 0.5:
            hosts, others = others, hosts
        network.partition(hosts, others, both_ways=both)
        await self._some_time()
        network.mend(hosts, others)

    async def _cut_one(self) -> None:
        node = self._node()
        others = [host for host in self._cluster.hosts if host is not node.host]
        await self._cut([node.host], self._some([*others, *self._clients]))

    async def _cut_neighbours(self) -> None:
        node = self._node()
        others = [other.host for other in self._cluster.nodes if other is not node]
        if others:
            await self._cut([node.host], [self._chance.choice(others)])

    async def _cut_manager(self) -> None:
        await self._cut([self._node().host], [manager.host for manager in self._cluster.managers])

    async def _cut_client(self) -> None:
        await self._cut([self._chance.choice(self._clients)], self._some(self._cluster.hosts))

    def _some(self, hosts: list[Host]) -> list[Host]:
        return self._chance.sample(hosts, self._chance.randint(1, len(hosts)))

    # Disks.

    async def _disk_error(self) -> None:
        await self._strike(self._chance.choice([errno.EIO, errno.EIO, errno.ENOSPC]))
        for one in self._cluster.nodes:
            if one.running and any(target.engine.failed or target.read_only for target in one.targets):
                await self._some_time()
                if one.running:
                    one.kill()
                await self._restart(one)

    async def _replace(self) -> None:
        node = self._node()
        if node.running and not self._replaced and self._cluster.serves(node):
            self._replaced = True  # one is missing for good from now on
            down = [node]
            if self._chance.random() < 0.5:  # the others come back later, with what they have
                down += [other for other in self._cluster.nodes if other is not node and other.running]
            for other in down[1:]:
                other.kill()
            self._cluster.replace_disks(node)
            for other in down:
                await self._restart(other)

    async def _read_errors(self) -> None:
        node = self._node()
        for platters in node.platters:
            platters.disk.read_errors = READ_ERRORS
        await self._some_time()
        node.calm(self._knobs.disk_seconds)

    async def _flip(self) -> None:
        platters = self._chance.choice(self._node().platters)
        self._simulation.loop.trace(f"a bit flips in {platters.disk.flip()}")

    async def _slow(self) -> None:
        node = self._node()
        if self._chance.random() < 0.5:
            node.disk_seconds = self._knobs.disk_seconds * SLOW_FACTOR
        else:  # most of its jobs are as fast as ever
            node.stall, node.stall_seconds = STALL, LONG_SECONDS
        await self._some_time()
        node.stall, node.stall_seconds = self._knobs.stall, self._knobs.stall_seconds
        node.calm(self._knobs.disk_seconds)

    # Administrators.

    async def _disable(self) -> None:
        """A target leaves its chains at once, without a restart; its process has to finish what it is at."""
        targets = [target.id for target in self._node().targets if target.id]
        if targets:
            target = self._chance.choice(targets)
            with suppress(StatusError):  # no manager answers; `heal` enables what is still disabled
                await self._cluster.disable(target, True)
                await self._some_time()
                await self._cluster.disable(target, False)
