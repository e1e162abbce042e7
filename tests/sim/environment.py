"""The simulated driver of `proto/env.py`: the same cores, in virtual time, over a network whose faults come from a seed.

    simulation = Simulation(seed)
    server, client = simulation.host("meta"), simulation.host("client")
    address = simulation.network.serve(server, [service])
    simulation.run(story(...))            # a coroutine over simulation.environment(host)

`run_seeds(story)` is what tests use: fresh seeds, some of them twice, and the seed in the message of whatever fails.
`EMBERFS_SIM_SEED` runs that one alone.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, TypeVar

from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.pool import Pool
from emberfs.proto.region import Region
from emberfs.proto.rpc import Identity, PeerInfo
from emberfs.proto.transport.choice import Spoken

from .loop import Future, Host, Lock, Loop, Task
from .network import ADDRESS, CALM, Exchange, Network, Weather

POOL_BYTES = 64 << 20
WALL_NS = 1_700_000_000_000_000_000  # when every run begins
REPEAT_EVERY = 10  # of so many seeds one is run twice

_Result = TypeVar("_Result")


class Promise(Future[Any]):
    """`proto.env.Promise`."""

    def set(self, value: Any = None) -> None:
        self.resolve(value)


class SimulatedEnvironment:
    """One process on a host, with one identity."""

    def __init__(self, network: Network, host: Host, pool_bytes: int = POOL_BYTES) -> None:
        self.pool = Pool(pool_bytes)
        self.host = host
        self._network = network
        self._loop = network.loop
        self._workers: list[Task[None]] = []
        self.renew_identity()

    def renew_identity(self) -> None:
        self.client = self._loop.random.randbytes(16)
        self._peer = PeerInfo(self.client, Identity(0, 0, trusted=True), "local", self.host.name)

    # Calls.

    async def call(self, call: Call) -> Any:
        return await self.collect(self.start(call))

    async def call_many(self, calls: Sequence[Call]) -> list[Any]:
        results: list[Any] = []
        for ticket in [self.start(call) for call in calls]:
            try:
                results.append(await self.collect(ticket))
            except StatusError as failure:
                results.append(failure)
        return results

    def start(self, call: Call) -> Exchange:
        if not call.address.startswith(ADDRESS):
            raise error(Status.INVALID, f"{call.address}: the simulated network has only {ADDRESS} addresses")
        return self._network.start(self.host, call, self._peer)

    async def collect(self, ticket: Any) -> Any:
        return await ticket.answer

    async def collect_any(self, tickets: Sequence[Any], seconds: float) -> Any:
        first = Future[Any]()
        for ticket in tickets:
            ticket.answer.when_done(partial(first.resolve, ticket))
        self._loop.call_at(self._loop.time + seconds / self.host.clock_rate, lambda: first.resolve(None))
        return await first

    def abandon(self, ticket: Any) -> None:
        ticket.abandon()

    def shares_memory(self, address: str) -> bool:
        return False

    def spoken(self) -> dict[str, Spoken]:
        return {}

    def reachable(self, address: str) -> bool:
        return address.startswith(ADDRESS)

    def register(self, buffer: Any) -> Region:
        return Region(memoryview(buffer).cast("B"))

    def unregister(self, region: Region) -> None:
        """Nothing was shared."""

    # Time, chance, tasks.

    async def sleep(self, seconds: float) -> None:
        await self._loop.sleep(seconds / self.host.clock_rate)

    def now(self) -> float:
        return self.host.now()

    def wall_ns(self) -> int:
        return WALL_NS + int(self.host.now() * 1e9)

    def random(self) -> float:
        return self._loop.random.random()

    def lock(self) -> AbstractAsyncContextManager[None]:
        return Lock()

    def promise(self) -> Promise:
        return Promise()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Task[None]:
        task = self.host.spawn(work(), f"{self.host.name} {name}", loud=True)
        self._workers.append(task)
        return task

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self.pool.close()

    async def pause(self) -> None:
        """Let others go first, now and then for a while: what `MemoryEngine` awaits between two steps of a transaction."""
        if self.random() < 0.3:
            await self._loop.sleep(self.random() * 0.001)


class Simulation:
    """One run: a loop, a network, hosts, and their environments, all from one seed."""

    def __init__(self, seed: int, weather: Weather = CALM) -> None:
        self.seed = seed
        self.loop = Loop(seed)
        self.random = self.loop.random
        self.network = Network(self.loop, weather)
        self.about = ""  # what this run is about, shown with a failure
        self._environments: list[SimulatedEnvironment] = []

    def host(self, name: str) -> Host:
        return self.loop.host(name)

    def environment(self, host: Host, pool_bytes: int = POOL_BYTES) -> SimulatedEnvironment:
        self._environments.append(SimulatedEnvironment(self.network, host, pool_bytes))
        return self._environments[-1]

    async def gather(self, *work: Awaitable[_Result]) -> list[_Result]:
        """All at once, on the story's own host; raises the first failure after all have ended."""

        async def one(awaitable: Awaitable[_Result]) -> _Result:
            return await awaitable

        host = self.host("gather")
        tasks = [host.spawn(one(awaitable), f"gather {i}") for i, awaitable in enumerate(work)]
        for task in tasks:
            if not task.done:
                with suppress(Exception):  # raised below, in order
                    await task
        return [await task for task in tasks]

    def run(self, story: Coroutine[Any, Any, _Result]) -> _Result:
        try:
            return self.loop.run(story)
        finally:
            for environment in self._environments:
                environment.close()


Story = Callable[[Simulation], Coroutine[Any, Any, None]]


def run_seed(story: Story, seed: int) -> str:
    """One run; its digest. A failure names the seed and how the run ended."""
    simulation = Simulation(seed)
    try:
        simulation.run(story(simulation))
    except BaseException as failure:
        failure.add_note("\n".join(simulation.loop.lines))
        failure.add_note(simulation.about)
        failure.add_note(f"seed {seed}: run it again with EMBERFS_SIM_SEED={seed}")
        raise
    return simulation.loop.digest


def run_seeds(story: Story, count: int = 20) -> None:
    """Fresh seeds; every tenth runs twice and must do the same again."""
    if chosen := os.environ.get("EMBERFS_SIM_SEED"):
        assert run_seed(story, int(chosen)) == run_seed(story, int(chosen)), f"seed {chosen}: two runs differ"
        return
    first = int.from_bytes(os.urandom(5), "big")
    for seed in range(first, first + count):
        digest = run_seed(story, seed)
        if (seed - first) % REPEAT_EVERY == 0:
            again = run_seed(story, seed)
            assert again == digest, f"seed {seed}: the second run differs; something outside the seed decides"
