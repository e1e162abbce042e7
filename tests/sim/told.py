"""Scenarios as text: what happens to a cluster, line by line, and what was seen. They run in fair weather, without chance.

A file in `told/` begins with comments (`#`) that say what it is about and a line `cluster nodes=3 replicas=3`. Every line that begins
with `> ` is a command; the lines below it are what it showed when the scenario was recorded. `python -m emberfs.tests.sim --rewrite`
records all of them anew: read the difference before you commit it.

    write CLIENT CHUNK FIRST:LAST      cells of a chunk; CHUNK is a letter, chunk a is the first of file 400 and so on
    truncate CLIENT CHUNK CELLS · remove CLIENT CHUNK · sync CLIENT
    read CLIENT CHUNK [NODE]           from any replica, or one try at that node's
    begin NAME COMMAND · end NAME      a command of a client in the background, and what came of it
    kill NODE · power NODE · start NODE · freeze NODE · thaw NODE
    replace NODE                       an empty disk takes the place of its disk; it stays down
    unreadable NODE · readable NODE    its disk answers reads with errors
    slow NODE SECONDS                  its disk's reads wait, so long at most
    flip NODE                          a bit of the first chunk on its disk
    strike NODE EFFECTS KIND           the process ends "before", "after" or "torn" at the effect on its disk that comes after so many
    hold METHOD FROM TO · release      the next request of this kind stays on its way, and arrives after all
    echo METHOD FROM TO · release      the next one of this kind arrives, and then once more
    cut A B · cut A to B · mend A B    hosts; "managers" and "nodes" stand for all of them
    refresh CLIENT                     it asks a manager for news of the routing
    sleep SECONDS · whole              the latter waits until every chain is whole
    chain · held                       the chain's entry; what each replica holds
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from emberfs.proto.errors import StatusError
from emberfs.proto.gen.common_pb2 import TargetState
from emberfs.proto.ids import FIRST_INODE

from .checks import check_replicas
from .clients import Chunk, ChunkClient, File
from .cluster import LIVENESS_SECONDS, ChainCluster
from .environment import Simulation
from .history import cells_of
from .knobs import MIXED, Knobs, Power
from .linear import check
from .loop import Host, Task
from .network import Weather
from .watch import LAST_CHUNK

FOLDER = Path(__file__).parent / "told"
CELL_BYTES = 64
ATTEMPT_SECONDS = 30.0  # of a client that waits for a server that was stopped
SEED = 1


def fair_knobs(nodes: int, replicas: int, managers: int = 1) -> Knobs:
    return Knobs(
        nodes=nodes,
        replicas=replicas,
        chains=1,
        managers=managers,
        clients=0,
        files=0,
        chunks_per_file=1,
        cell_bytes=CELL_BYTES,
        operations=0,
        mix=MIXED,
        probe=0.0,
        pause_seconds=0.0,
        idle_seconds=0.0,
        attempt_seconds=ATTEMPT_SECONDS,
        weather=Weather(),
        power=Power.NEVER,
        troubles=(),
        quiet_seconds=0.0,
        down_seconds=0.0,
        disk_seconds=0.001,
        stall=0.0,
        stall_seconds=0.0,
        cold=False,
        clock_rates=(1.0,) * (nodes + managers),
        clock_offsets=(0.0,) * (nodes + managers),
        capacity=16 << 20,
    )


class Teller:
    """Carries out the commands of one scenario."""

    def __init__(self, cluster: ChainCluster) -> None:
        self._cluster = cluster
        self._simulation = cluster.simulation
        self._clients: dict[str, ChunkClient] = {}
        self._chunks: dict[str, Chunk] = {}
        self._begun: dict[str, Task[str]] = {}

    async def do(self, line: str) -> str:
        """Carry out a command; what it shows, in lines."""
        name, *words = line.split()
        command: Callable[..., Awaitable[str]] = getattr(self, f"do_{name}")
        return await command(*words)

    # Clients.

    async def _client(self, name: str) -> ChunkClient:
        if name not in self._clients:
            cluster = self._cluster
            host = self._simulation.host(name)
            self._clients[name] = ChunkClient(
                self._simulation, host, cluster.addresses, cluster.histories, cluster.seen, cluster.knobs
            )
            await self._clients[name].refresh()
        return self._clients[name]

    def _chunk(self, letter: str) -> Chunk:
        if letter not in self._chunks:
            chain = self._cluster.chains[0]
            made = self._chunks[letter] = Chunk(File(FIRST_INODE + ord(letter) - ord("a"), chain), 0)
            self._cluster.chunks_of[chain].append(made.name)
        return self._chunks[letter]

    async def do_write(self, client: str, chunk: str, cells: str) -> str:
        first, _, last = cells.partition(":")
        writer = await self._client(client)
        return _last(await writer.write(self._chunk(chunk), int(first), int(last)), writer)

    async def do_truncate(self, client: str, chunk: str, cells: str) -> str:
        writer = await self._client(client)
        return _last(await writer.truncate(self._chunk(chunk), int(cells)), writer)

    async def do_remove(self, client: str, chunk: str) -> str:
        remover = await self._client(client)
        return _last(await remover.remove(self._chunk(chunk)), remover)

    async def do_sync(self, client: str) -> str:
        done = await (await self._client(client)).sync(list(self._chunks.values()), self._cluster.chains[0])
        return "ok" if done else "no answer"

    async def do_read(self, client: str, chunk: str, node: str = "") -> str:
        reader = await self._client(client)
        if not node:
            return _last(await reader.read(self._chunk(chunk)), reader)
        found = await reader.read_from(self._chunk(chunk), self._cluster.target_of(node).id)
        return found.status.name if isinstance(found, StatusError) else str(found)

    async def do_refresh(self, client: str) -> str:
        await (await self._client(client)).refresh()
        return ""

    async def do_begin(self, name: str, *words: str) -> str:
        host = self._simulation.host(f"story {name}")
        self._begun[name] = host.spawn(self.do(" ".join(words)), f"begun {name}", loud=True)
        return ""

    async def do_end(self, name: str) -> str:
        return await self._begun.pop(name)

    # Machines.

    async def do_kill(self, node: str) -> str:
        if node.startswith("m"):
            self._cluster.manager_named(node).kill()
        else:
            self._cluster.node_named(node).kill()
        return ""

    async def do_power(self, node: str) -> str:
        self._cluster.power_loss(self._cluster.node_named(node))
        return ""

    async def do_start(self, node: str) -> str:
        server: Any = self._cluster.manager_named(node) if node.startswith("m") else self._cluster.node_named(node)
        server.start()
        return ""

    async def do_freeze(self, node: str) -> str:
        self._host(node).freeze()
        return ""

    async def do_thaw(self, node: str) -> str:
        self._host(node).thaw()
        return ""

    async def do_strike(self, node: str, effects: str, kind: str) -> str:
        self._cluster.node_named(node).platters[0].faults.strike(int(effects), kind)
        return ""

    async def do_replace(self, node: str) -> str:
        self._cluster.replace_disks(self._cluster.node_named(node))
        return ""

    async def do_unreadable(self, node: str) -> str:
        for platters in self._cluster.node_named(node).platters:
            platters.disk.read_errors = 1.0
        return ""

    async def do_readable(self, node: str) -> str:
        for platters in self._cluster.node_named(node).platters:
            platters.disk.read_errors = 0.0
        return ""

    async def do_slow(self, node: str, seconds: str) -> str:
        server = self._cluster.node_named(node)
        server.disk_seconds = float(seconds)
        for platters in server.platters:
            platters.disk.cold = True
        return ""

    async def do_flip(self, node: str) -> str:
        target = self._cluster.target_of(node)
        (info, *_) = target.engine.chunks(b"", LAST_CHUNK)
        with target.engine.plan([(info.chunk, 0, info.length)]) as (plan,):
            handle, offset, _ = plan.segments[0]
        self._cluster.node_named(node).platters[0].disk.flip_at(handle, offset)
        return ""

    # The network.

    def _host(self, name: str) -> Host:
        return self._hosts(name)[0]

    def _hosts(self, name: str) -> list[Host]:
        cluster = self._cluster
        groups = {
            "managers": [manager.host for manager in cluster.managers],
            "nodes": [node.host for node in cluster.nodes],
        }
        known = {host.name: host for group in groups.values() for host in group}
        return groups.get(name) or [known.get(name) or self._simulation.host(name)]

    async def do_cut(self, first: str, *words: str) -> str:
        both_ways = words[0] != "to"
        self._simulation.network.partition(self._hosts(first), self._hosts(words[-1]), both_ways=both_ways)
        return ""

    async def do_mend(self, first: str, second: str) -> str:
        self._simulation.network.mend(self._hosts(first), self._hosts(second))
        return ""

    async def do_hold(self, method: str, source: str, target: str) -> str:
        self._simulation.network.hold(method, source, target)
        return ""

    async def do_echo(self, method: str, source: str, target: str) -> str:
        self._simulation.network.echo(method, source, target)
        return ""

    async def do_release(self) -> str:
        self._simulation.network.release()
        return ""

    # Time, and looking.

    async def do_sleep(self, seconds: str) -> str:
        await self._simulation.loop.sleep(float(seconds))
        return ""

    async def do_whole(self) -> str:
        await self._cluster.until_whole(LIVENESS_SECONDS)
        return await self.do_chain()

    async def do_chain(self) -> str:
        entry = self._cluster.chain(self._cluster.chains[0])
        names = {node.number: node.host.name for node in self._cluster.nodes}
        members = [f"{names[m.node]} {TargetState.Name(m.state).rpartition('_')[2]}" for m in entry.members]
        losses = f", losses {entry.losses}" if entry.losses else ""
        return f"version {entry.version}: {', '.join(members)}{losses}"

    async def do_held(self) -> str:
        lines = []
        for node, target in self._cluster.members(self._cluster.chains[0]):
            for info in target.engine.chunks(b"", LAST_CHUNK):
                cells = cells_of(target.engine.read(info.chunk), CELL_BYTES) if info.version else None
                pending = f", {info.pending} is pending" if info.pending else ""
                lines.append(f"{node.host.name}: version {info.chain_version}.{info.version} {cells}{pending}")
        return "\n".join(lines) or "nothing"


def _last(done: bool, client: ChunkClient) -> str:
    return client.last if done else "no answer"


def play(text: str) -> str:
    """Run a scenario; the text again, with what was seen this time."""
    simulation = Simulation(SEED)
    written: list[str] = []

    async def story() -> None:
        cluster: ChainCluster | None = None
        teller: Teller | None = None
        for line in text.splitlines():
            if line.startswith("cluster "):
                words = dict(word.split("=") for word in line.split()[1:])
                cluster = await ChainCluster(simulation, fair_knobs(**{k: int(v) for k, v in words.items()})).start()
                teller = Teller(cluster)
            if not line or line.startswith(("#", "cluster ")):
                written.append(line)
            elif line.startswith("> "):
                assert teller is not None, "the scenario has no line 'cluster …'"
                written.append(line)
                shown = await teller.do(line[2:])
                written.extend(shown.splitlines())
        assert cluster is not None
        await cluster.heal()
        await check_replicas(cluster)
        for history in cluster.histories.by_chunk.values():
            assert check(history)

    simulation.run(story())
    return "\n".join(written) + "\n"
