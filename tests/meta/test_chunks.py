"""The metadata server's access to chunks, against small storage servers in memory that check what they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from emberfs.meta.chunks import CHUNKS_PER_REMOVE_MAX, TOTAL_SECONDS, StorageChunks
from emberfs.meta.namespace.seams import DeadFile, Layout, Space
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen import storage_pb2 as pb
from emberfs.proto.gen.cluster_pb2 import ChainTable, Node, Routing
from emberfs.proto.gen.common_pb2 import (
    TARGET_STATE_LASTSRV,
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    Chain,
    ChainMember,
)
from emberfs.proto.layout import stripe_chains
from emberfs.proto.routing import RoutingTable

CHUNK = 1 << 16
LAYOUT = Layout(0, CHUNK, 1, 1, 0, 3, 99)
CHAINS = (1, 2, 3)
FILE = 0x500


class Server:
    """A storage server with one chain: (inode, index) -> (length, truncate version)."""

    def __init__(self, chain_id: int) -> None:
        self.chain = Chain(
            id=chain_id, version=1, members=[ChainMember(target=chain_id, node=chain_id, state=TARGET_STATE_SERVING)]
        )
        self.chunks: dict[tuple[int, int], tuple[int, int]] = {}
        self.numbers: list[tuple[int, int]] = []
        self.failures: list[StatusError] = []  # given instead of answers, last first
        self.silent = False
        self.calls = 0
        self.synced = 0

    def restarted(self) -> None:
        self.chain.version += 1

    def serve(self, call: Call) -> Any:
        self.calls += 1
        if self.failures:
            raise self.failures.pop()
        request: Any = call.request
        assert set(request.chain) == {self.chain.id}
        if set(request.chain_version) != {self.chain.version}:
            return self.reply(call, [Status.STALE_CHAIN_VERSION] * len(request.chain), [self.chain])
        return getattr(self, call.method.handler)(request)

    def reply(self, call: Call, status: Sequence[int], chains: Sequence[Chain]) -> Any:
        return call.method.reply(status=status, chains=chains)  # type: ignore[call-arg]

    def truncate(self, request: pb.TruncateChunkRequest) -> pb.TruncateChunkReply:
        key = (request.inode[0], request.index[0])
        self.numbers.append((request.channel[0], request.sequence[0]))
        if key not in self.chunks:
            return pb.TruncateChunkReply(status=[Status.CHUNK_NOT_FOUND])
        self.chunks[key] = (request.length[0], request.truncate_version[0])
        return pb.TruncateChunkReply(status=[0])

    def remove(self, request: pb.RemoveChunksRequest) -> pb.RemoveChunksReply:
        reply = pb.RemoveChunksReply()
        assert request.chunks_max == CHUNKS_PER_REMOVE_MAX
        for i, inode in enumerate(request.inode):
            version = request.truncate_version[i] if request.truncate_version else 1 << 31
            doomed = [
                (owner, index)
                for (owner, index), (_, written) in self.chunks.items()
                if owner == inode and request.first[i] <= index < request.last[i] and written < version
            ]
            for key in doomed[: request.chunks_max]:
                del self.chunks[key]
            reply.status.append(0)
            reply.removed.append(min(len(doomed), request.chunks_max))
            reply.more.append(len(doomed) > request.chunks_max)
        return reply

    def query_last(self, request: pb.QueryLastRequest) -> pb.QueryLastReply:
        reply = pb.QueryLastReply()
        for inode, version in zip(request.inode, request.truncate_version, strict=True):
            mine = {i: n for (owner, i), (n, written) in self.chunks.items() if owner == inode and written >= version}
            last = max(mine, default=0)
            reply.status.append(0)
            reply.found.append(bool(mine))
            reply.index.append(last)
            reply.length.append(mine.get(last, 0))
        return reply

    def write(self, request: pb.WriteRequest) -> pb.WriteReply:
        self.chunks[request.inode[0], request.index[0]] = (request.length[0], request.truncate_version[0])
        self.synced = 0
        return pb.WriteReply(status=[0])

    def sync(self, request: pb.SyncRequest) -> pb.SyncReply:
        self.synced += 1
        return pb.SyncReply(status=[0])


class Buffers:
    """A pool that has room for everything."""

    def take(self, length: int) -> Any:
        return SimpleNamespace(view=bytearray(length))

    def give(self, slice_: Any) -> None:
        pass


class Network:
    """The environment: calls arrive at once, time passes only while somebody sleeps."""

    pool = Buffers()

    def __init__(self) -> None:
        self.servers = {f"unix:/{c}": Server(c) for c in CHAINS}
        self.time = 0.0
        self.events: list[tuple[float, Callable[[], None]]] = []  # when, what
        self.abandoned = 0

    def start(self, call: Call) -> list[Any]:
        """A ticket: the answer in a list, which stays empty where the server is silent."""
        server = self.servers[call.address]
        if server.silent:
            return []
        try:
            return [server.serve(call)]
        except StatusError as failed:
            return [failed]

    async def collect_any(self, tickets: Sequence[list[Any]], seconds: float) -> Any:
        if found := next((ticket for ticket in tickets if ticket), None):
            return found
        await self.sleep(seconds)
        return None

    async def collect(self, ticket: list[Any]) -> Any:
        await asyncio.sleep(0)
        assert ticket, "waited for a server that is silent"
        if isinstance(ticket[0], StatusError):
            raise ticket[0]
        return ticket[0]

    def abandon(self, ticket: list[Any]) -> None:
        self.abandoned += 1

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        for event in [event for event in self.events if event[0] <= self.time]:
            self.events.remove(event)
            event[1]()
        await asyncio.sleep(0)

    def now(self) -> float:
        return self.time

    def random(self) -> float:
        return 0.5

    def lock(self) -> asyncio.Lock:
        return asyncio.Lock()

    def reachable(self, address: str) -> bool:
        return address in self.servers

    def server(self, chain: int) -> Server:
        return self.servers[f"unix:/{chain}"]

    def write(self, inode: int, indexes: Sequence[int], length: int = CHUNK, version: int = 0) -> None:
        order = stripe_chains(CHAINS, LAYOUT.base, LAYOUT.stripe, LAYOUT.seed)
        for index in indexes:
            self.server(order[index % 3]).chunks[inode, index] = (length, version)

    def chunks(self, inode: int) -> dict[int, tuple[int, int]]:
        return {i: c for s in self.servers.values() for (owner, i), c in s.chunks.items() if owner == inode}


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def chunks(network: Network) -> StorageChunks:
    table = RoutingTable()
    routing = Routing(version=1, cluster="c", tables=[ChainTable(id=1, version=1, chains=CHAINS)])
    routing.nodes.extend(Node(id=c, host="here", addresses=["tcp:nowhere:1", f"unix:/{c}"]) for c in CHAINS)
    for server in network.servers.values():
        routing.chains.add().CopyFrom(server.chain)
    table.apply(routing)
    return StorageChunks(network, table, lambda: Space(10, 5), "here")


async def test_what_grew_out_of_an_inode_survives_power_loss(network: Network, chunks: StorageChunks) -> None:
    await chunks.write_first(FILE, LAYOUT, b"small", 2)
    assert network.chunks(FILE) == {0: (5, 2)}
    assert (
        sum(server.synced for server in network.servers.values()) == 1
    )  # after the write, and before its other copy goes


async def test_power_that_is_lost_before_the_sync_is_told(network: Network, chunks: StorageChunks) -> None:
    """Or the other copy would go, the one that is durable."""
    [server] = [s for s in network.servers.values() if s.chain.id == stripe_chains(CHAINS, 0, 1, 99)[0]]
    write = server.write

    def written(request: pb.WriteRequest) -> pb.WriteReply:
        reply = write(request)
        server.chunks.clear()
        server.restarted()
        server.chain.losses += 1
        server.write = write  # type: ignore[method-assign]
        return reply

    server.write = written  # type: ignore[method-assign]
    layout = Layout(0, CHUNK, 1, 1, 0, 1, 99)
    with pytest.raises(StatusError, match="lost power"):
        await chunks.write_first(FILE, layout, b"small", 2)
    await chunks.write_first(FILE, layout, b"small", 2)
    assert network.chunks(FILE) == {0: (5, 2)}


async def test_truncate_cuts_one_chunk_and_removes_all_behind(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, range(8))
    network.write(FILE + 1, range(8))
    await chunks.truncate(FILE, LAYOUT, 8 * CHUNK, 2 * CHUNK + 100, 1)
    assert network.chunks(FILE) == {0: (CHUNK, 0), 1: (CHUNK, 0), 2: (100, 1)}
    assert len(network.chunks(FILE + 1)) == 8


async def test_truncate_to_a_boundary_or_to_nothing_cuts_no_chunk(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, range(8))
    await chunks.truncate(FILE, LAYOUT, 8 * CHUNK, 2 * CHUNK, 1)
    assert sorted(network.chunks(FILE)) == [0, 1]
    await chunks.truncate(FILE, LAYOUT, 2 * CHUNK, 0, 2)
    assert not network.chunks(FILE)
    assert not any(s.numbers for s in network.servers.values())


async def test_what_the_regrown_file_wrote_stays(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, [5], version=1)
    await chunks.truncate(FILE, LAYOUT, 8 * CHUNK, CHUNK, 1)  # a late repetition
    assert sorted(network.chunks(FILE)) == [5]


async def test_a_missing_chunk_and_a_hole_need_no_cut(network: Network, chunks: StorageChunks) -> None:
    await chunks.truncate(FILE, LAYOUT, 8 * CHUNK, 100, 1)


async def test_truncates_of_one_chunk_are_numbered_and_a_retry_repeats_its_number(
    network: Network, chunks: StorageChunks
) -> None:
    network.write(FILE, [0], 1000)
    for server in network.servers.values():
        server.failures = [error(Status.MAYBE_COMMITTED), error(Status.DEADLINE)]
    await asyncio.gather(
        chunks.truncate(FILE, LAYOUT, 1000, 500, 1),
        chunks.truncate(FILE, LAYOUT, 1000, 400, 2),
    )
    [numbers] = [s.numbers for s in network.servers.values() if s.numbers]
    assert [sequence for _, sequence in numbers] == [1, 2]
    assert len({channel for channel, _ in numbers}) == 1


async def test_remove_goes_on_while_there_is_more_and_reports_per_file(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, range(3 * CHUNKS_PER_REMOVE_MAX + 5))
    network.write(FILE + 1, range(2))
    unknown = LAYOUT._replace(table_version=9)
    failed = await chunks.remove([DeadFile(FILE, LAYOUT), DeadFile(FILE + 2, unknown), DeadFile(FILE + 1, LAYOUT)])
    assert [f and f.status for f in failed] == [None, Status.STALE_ROUTING, None]
    assert not network.chunks(FILE) and not network.chunks(FILE + 1)


async def test_one_dead_server_fails_only_its_files(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, range(6))
    narrow = LAYOUT._replace(base=1, stripe=1)  # chain 2 only
    network.server(2).chunks[FILE + 1, 0] = (1, 0)
    network.server(3).failures = [error(Status.UNAVAILABLE) for _ in range(1000)]
    failed = await chunks.remove([DeadFile(FILE, LAYOUT), DeadFile(FILE + 1, narrow)])
    assert [f and f.status for f in failed] == [Status.UNAVAILABLE, None]
    assert network.time <= TOTAL_SECONDS and network.server(3).calls < 250
    network.server(3).failures.clear()
    assert await chunks.remove([DeadFile(FILE, LAYOUT)]) == [None]
    assert not network.chunks(FILE)


async def test_a_newer_chain_is_learned_from_the_refusal(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, range(4))
    for server in network.servers.values():
        server.restarted()
    assert await chunks.query_last(FILE, LAYOUT, 0) == 4 * CHUNK
    assert [s.calls for s in network.servers.values()] == [2, 2, 2]
    assert await chunks.query_last(FILE, LAYOUT, 0) == 4 * CHUNK
    assert [s.calls for s in network.servers.values()] == [3, 3, 3]


async def test_a_silent_head_is_given_up_when_another_one_leads(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, range(4))
    old, new = network.server(2), Server(2)
    network.servers["unix:/9"] = new
    for server in (old, new):
        server.chain.members.add(target=9, node=9, state=TARGET_STATE_SERVING)
        server.chain.version = 2
    table = chunks._table
    table.apply(Routing(version=2, since=1, nodes=[Node(id=9, host="here", addresses=["unix:/9"])], chains=[old.chain]))
    old.silent = True
    promoted = Chain(id=2, version=3, members=reversed(old.chain.members))
    promoted.members[1].state = TARGET_STATE_OFFLINE

    def promote() -> None:
        new.chunks = old.chunks
        new.chain.CopyFrom(promoted)
        table.learn_chain(promoted)

    network.events.append((5.0, promote))
    await chunks.truncate(FILE, LAYOUT, 4 * CHUNK, 0, 1)
    assert not network.chunks(FILE) and new.calls and network.abandoned
    assert network.time < 6, "detection and a second"


async def test_a_chain_without_a_head_is_waited_for(network: Network, chunks: StorageChunks) -> None:
    network.write(FILE, range(4))
    chain = network.server(2).chain
    died, revived = Chain(), Chain()
    died.CopyFrom(chain)
    died.version, died.members[0].state = 2, TARGET_STATE_LASTSRV
    chunks._table.learn_chain(died)
    revived.CopyFrom(chain)
    revived.version = 3

    def revive() -> None:
        chain.CopyFrom(revived)
        chunks._table.learn_chain(revived)

    network.events.append((8.0, revive))
    assert await chunks.query_last(FILE, LAYOUT, 0) == 4 * CHUNK
    assert network.time < 8.5


async def test_the_end_of_a_file_over_all_chains(network: Network, chunks: StorageChunks) -> None:
    assert await chunks.query_last(FILE, LAYOUT, 0) == 0
    network.write(FILE, [0, 1, 2, 3])
    network.write(FILE, [7], 123, version=2)
    assert await chunks.query_last(FILE, LAYOUT, 0) == 7 * CHUNK + 123
    network.write(FILE, [9], 5, version=1)
    assert await chunks.query_last(FILE, LAYOUT, 2) == 7 * CHUNK + 123


async def test_sync_reaches_every_chain_or_fails(network: Network, chunks: StorageChunks) -> None:
    await chunks.sync(FILE, LAYOUT)
    assert [s.synced for s in network.servers.values()] == [1, 1, 1]
    network.server(2).failures = [error(Status.IO_ERROR)]
    with pytest.raises(StatusError) as failed:
        await chunks.sync(FILE, LAYOUT)
    assert failed.value.status is Status.IO_ERROR


def test_space_is_the_managers(chunks: StorageChunks) -> None:
    assert chunks.space() == Space(10, 5)
