"""The story of chains: clients read and write a few chunks while everything fails; then everything is healed and must become whole.

First the safety phase: whatever the knobs say goes wrong, and no answer may be one that no order of the operations explains. Then the
liveness phase: all chains must be SERVING with all their members, every client must end. At the end replicas hold the same bytes under the
same versions, and the history of every chunk is checked.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from emberfs.proto.errors import StatusError
from emberfs.proto.ids import FIRST_INODE

from . import knobs as drawing
from .checks import check_replicas
from .clients import Chunk, ChunkClient, File
from .cluster import LIVENESS_SECONDS, ChainCluster
from .environment import Simulation
from .history import CELLS_MAX
from .knobs import Knobs, Mix
from .linear import check
from .loop import Host
from .trouble import Troublemaker

REPAIR_SECONDS = 60.0  # for a damaged chunk that somebody has found
END_SECONDS = 300.0  # for the clients to end after everything was healed
UNDECIDED_TRACE = "not decided"


class Actor:
    """What one client does."""

    def __init__(self, cluster: ChainCluster, client: ChunkClient, chunks: list[Chunk]) -> None:
        self._cluster = cluster
        self._client = client
        self._chunks = chunks
        self._chance = random.Random(f"{cluster.simulation.seed} {client.name}")  # as in trouble.py
        self._loop = cluster.simulation.loop
        self.over = False  # trouble is

    async def run(self) -> None:
        knobs, done = self._cluster.knobs, 0
        await self._client.refresh()
        while done < knobs.operations or not self.over:
            pause = knobs.pause_seconds if done < knobs.operations else knobs.idle_seconds
            await self._loop.sleep(self._chance.uniform(0, pause))
            await self._step()
            done += 1

    async def _step(self) -> None:
        chance, client = self._chance, self._client
        chunk = chance.choice(self._chunks)
        (what,) = chance.choices(Mix._fields, self._cluster.knobs.mix)
        if what == "read" or chunk.file.dead:
            first = chance.randrange(CELLS_MAX) if chance.random() < 0.2 else 0
            await client.read(chunk, first, CELLS_MAX)
        elif what == "write":
            first = chance.randrange(CELLS_MAX)
            await client.write(chunk, first, chance.randint(first + 1, CELLS_MAX))
        elif what == "truncate":
            await client.truncate(chunk, chance.choice([0, 0, 1, CELLS_MAX]))
        elif what == "sync":
            await client.sync(self._chunks, chunk.file.chain)
        else:
            await self._remove(chunk)

    async def _remove(self, chunk: Chunk) -> None:
        """A file is deleted: from now on nobody begins to change it."""
        if len({one.file for one in self._chunks if not one.file.dead}) < 2:
            return  # something must be left to do
        chunk.file.dead = True
        for one in self._chunks:
            if one.file is chunk.file:
                await self._client.remove(one)


async def chains(
    simulation: Simulation, knobs: Knobs | None = None, also: Callable[[ChainCluster], None] = lambda _: None
) -> None:
    """One run. What it is about is drawn from the seed, unless it is told. `also` is called at its end."""
    knobs = knobs or drawing.draw(random.Random(simulation.seed))
    simulation.about = str(knobs)
    cluster = await ChainCluster(simulation, knobs).start()
    chunks = _chunks(cluster)
    hosts = [simulation.host(f"c{i + 1}") for i in range(knobs.clients)]
    actors = [Actor(cluster, _client(cluster, host), chunks) for host in hosts]
    tasks = [simulation.host("actors").spawn(actor.run(), "actor", loud=True) for actor in actors]
    simulation.network.weather = knobs.weather
    await Troublemaker(cluster, hosts).run()
    simulation.loop.trace("healed")
    await cluster.heal()
    for actor in actors:
        actor.over = True
    until = simulation.loop.time + END_SECONDS
    while not all(task.done for task in tasks):
        assert simulation.loop.time < until, "a client does not come to an end"
        cluster.tend()
        await simulation.loop.sleep(0.5)
    await cluster.until_whole(
        LIVENESS_SECONDS
    )  # what still waited when everything was healed may have cost a member its place
    for node in cluster.nodes:
        await node.scrub()
    await _read_all(cluster, _client(cluster, simulation.host("reader")), chunks)
    cluster.look()
    await check_replicas(cluster)
    for history in cluster.histories.by_chunk.values():
        if not check(history):
            simulation.loop.trace(f"{UNDECIDED_TRACE}: {history.name}")
    also(cluster)


def _chunks(cluster: ChainCluster) -> list[Chunk]:
    knobs, chance = cluster.knobs, cluster.simulation.random
    chunks = []
    for i in range(knobs.files):
        file = File(FIRST_INODE + i, chance.choice(cluster.chains))
        chunks += [Chunk(file, index) for index in range(knobs.chunks_per_file)]
    for chunk in chunks:
        cluster.chunks_of[chunk.file.chain].append(chunk.name)
        cluster.histories.of(chunk.name)
    return chunks


def _client(cluster: ChainCluster, host: Host) -> ChunkClient:
    knobs = cluster.knobs
    return ChunkClient(cluster.simulation, host, cluster.addresses, cluster.histories, cluster.seen, knobs)


async def _read_all(cluster: ChainCluster, client: ChunkClient, chunks: list[Chunk]) -> None:
    """Every chunk from every replica: what is found at the end belongs to the histories too."""
    await client.refresh()
    for chunk in chunks:
        assert await client.read(chunk), f"{chunk.name} cannot be read at the end"
        for _, target in list(cluster.members(chunk.file.chain)):
            until = cluster.simulation.loop.time + REPAIR_SECONDS
            while isinstance(found := await client.read_from(chunk, target.id), StatusError):
                assert cluster.simulation.loop.time < until, f"target {target.id} does not give {chunk.name}: {found}"
                await client.refresh()
                await cluster.simulation.loop.sleep(1.0)
