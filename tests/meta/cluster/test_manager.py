"""The manager over the in-memory engine: what it writes outlives it, what it tells adds up, clients end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from emberfs.meta.cluster.manager import NODE_LEASE_SECONDS, Manager
from emberfs.meta.cluster.routing import Book, Draft, Kind
from emberfs.meta.cluster.service import ClusterService
from emberfs.meta.cluster.store import Store
from emberfs.meta.kv.engine import Engine
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.proto import capability
from emberfs.proto.capability import EPOCH_SECONDS, VALID_EPOCHS, Rights
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    LOCAL_STATE_ONLINE,
    NODE_KIND_STORAGE,
    EndClientRequest,
    GetRoutingRequest,
    HeartbeatRequest,
    Node,
    RegisterNodeRequest,
    RenewClientReply,
    RenewClientRequest,
    StatusRequest,
    Target,
)
from emberfs.proto.gen.common_pb2 import TARGET_STATE_LASTSRV, TARGET_STATE_SERVING
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import Identity, PeerInfo
from emberfs.proto.settings import CLIENT_LEASE_SECONDS

ALICE, BOB = b"a" * 16, b"b" * 16


class VirtualClock:
    """Time that stands still until the test moves it; workers are real tasks."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def now(self) -> float:
        return self.time

    def wall_ns(self) -> int:
        return int(self.time * 1e9)

    def random(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.time + seconds, woken))
        await woken

    def lock(self) -> AbstractAsyncContextManager[None]:
        return asyncio.Lock()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self.tasks.append(asyncio.create_task(work(), name=name))

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, waking whoever sleeps when his time has come."""
        end = self.time + seconds
        while True:
            await self.settle()
            due = min((s for s in self.sleepers if not s[1].done()), key=lambda s: s[0], default=None)
            if due is None or due[0] > end:
                break
            self.time = max(self.time, due[0])
            self.sleepers.remove(due)
            due[1].set_result(None)
        self.time = end

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Namespace:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.renewals: list[tuple[bytes, list[int], int]] = []
        self.ended: list[bytes] = []
        self.sessions: list[bytes] = []

    async def renewed(self, client: bytes, report: RenewClientRequest) -> RenewClientReply:
        self.renewals.append((client, list(report.open_inodes), report.acknowledged_request))
        return RenewClientReply(mark=b"mark", report_ms=7)

    def client_ended(self, client: bytes) -> None:
        self.ended.append(client)

    async def session_clients(self) -> list[bytes]:
        return self.sessions

    async def counts(self) -> tuple[int, int]:
        return 12, 3


class FlakyEngine:
    """A real engine whose commits can be made to happen and yet fail, or to fail."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failures: list[tuple[bool, Status]] = []  # (committed all the same, status)

    def begin(self) -> Any:
        transaction = self.engine.begin()
        commit = transaction.commit

        async def failing(*, durable: bool = False) -> int:
            if not self.failures:
                return await commit(durable=durable)
            committed, status = self.failures.pop()
            if committed:
                await commit(durable=durable)
            from emberfs.proto.errors import error

            raise error(status)

        if self.failures:
            transaction.commit = failing  # type: ignore[method-assign]
        return transaction

    async def sync(self) -> None:
        await self.engine.sync()

    async def close(self) -> None:
        await self.engine.close()


class Cluster:
    """A manager that can be restarted over its engine."""

    def __init__(self) -> None:
        self.engine = FlakyEngine(MemoryEngine(time.monotonic))
        self.clock = VirtualClock()
        self.namespace = Namespace()
        self.changes: list[int] = []
        self.own_client = b""

    async def start(self) -> Manager:
        self.manager = await Manager.open(self.engine, self.clock)
        self.manager.listeners.append(self.changes.append)
        await self.manager.start(self.namespace, self.own_client)
        self.service = ClusterService(self.manager, self.namespace.counts, "meta-1", 42)
        return self.manager

    async def restart(self) -> Manager:
        await self.clock.close()
        self.clock = VirtualClock()
        return await self.start()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    await made.start()
    yield made
    await made.clock.close()


class Peer:
    """A context as the wire gives it to handlers, without bulk."""

    cancelled = False

    def __init__(self, client: bytes = ALICE, trusted: bool = False, uid: int = 1000) -> None:
        self.peer = PeerInfo(client, Identity(uid, uid, trusted=trusted), "local", "test")


SERVER: Any = Peer(b"s" * 16, trusted=True)
CLIENT: Any = Peer()


def node(number: int = 0, process: int = 1) -> Node:
    return Node(id=number, kind=NODE_KIND_STORAGE, process=process, name="s1", addresses=["unix:/s"], host="h")


def target(number: int, incarnation: int, **fields: Any) -> Target:
    return Target(id=number, incarnation=incarnation, path="/t", capacity=1000, used=10, **fields)


def status_of(failed: pytest.ExceptionInfo[StatusError]) -> Status:
    return failed.value.status


async def test_ids_and_key_are_made_once(cluster: Cluster) -> None:
    first = cluster.manager
    again = await cluster.restart()
    assert again.cluster == first.cluster and len(first.cluster) == 16
    assert again.book.state == first.book.state


async def test_a_restart_keeps_everything(cluster: Cluster) -> None:
    reply = await cluster.service.register_node(
        RegisterNodeRequest(node=node(), targets=[target(0, 11), target(0, 22)]), SERVER
    )
    before = cluster.manager.routing(server=True)
    assert reply.node == 1 and reply.lease_ms == NODE_LEASE_SECONDS * 1000
    assert reply.routing == before and before is not None and before.capability_key
    after = (await cluster.restart()).routing(server=True)
    assert after is not None
    for kind in ("nodes", "targets", "chains", "tables"):
        key = lambda m: (m.id, getattr(m, "version", 0))  # noqa: E731
        assert sorted(getattr(after, kind), key=key) == sorted(getattr(before, kind), key=key)
    assert after.version == before.version
    assert await cluster.manager.register(node(1), [target(1, 11), target(2, 22)]) == 1
    assert cluster.manager.book.state.version == after.version  # the same process again: nothing is new


async def test_deltas_go_on_over_a_restart(cluster: Cluster) -> None:
    await cluster.manager.register(node(), [target(0, 11)])
    table = RoutingTable()
    full = cluster.manager.routing()
    assert full is not None
    table.apply(full)
    await cluster.restart()
    await cluster.manager.register(node(1, process=2), [target(1, 11)])
    delta = cluster.manager.routing(table.version)
    assert delta is not None and delta.since == full.version
    assert [c.version for c in delta.chains] == [2] and not delta.tables
    table.apply(delta)
    assert table.head(1).node == 1


async def test_another_incarnation_does_not_serve(cluster: Cluster) -> None:
    await cluster.manager.register(node(), [target(0, 11)])
    await cluster.manager.register(node(1, process=2), [target(1, 99)])
    assert cluster.manager.book.chains[1].members[0].state == TARGET_STATE_LASTSRV


async def test_a_process_takes_the_place_of_the_one_that_it_names(cluster: Cluster) -> None:
    for process, replaces, held_by in ((1, 0, 0), (2, 0, 1), (2, 1, 0), (3, 1, 2), (3, 2, 0), (3, 2, 0)):
        request = RegisterNodeRequest(node=node(1 if process > 1 else 0, process=process), replaces=replaces)
        reply = await cluster.service.register_node(request, SERVER)
        assert (reply.held_by, reply.node) == (held_by, 0 if held_by else 1)


async def test_every_change_is_told_once_with_the_version_before(cluster: Cluster) -> None:
    start = cluster.manager.book.state.version
    await cluster.manager.register(node(), [target(0, 11)])
    await cluster.manager.register(node(1), [target(1, 11)])
    await cluster.manager.register(node(1, process=2), [target(1, 11)])
    assert cluster.changes == [start, start + 1]


async def test_heartbeats(cluster: Cluster) -> None:
    await cluster.manager.register(node(), [target(0, 11)])
    version = cluster.manager.book.state.version
    beat = HeartbeatRequest(
        node=1, process=1, routing_version=version, targets=[target(1, 11, state=LOCAL_STATE_ONLINE)]
    )
    beat.targets[0].used = 700
    quiet = await cluster.service.heartbeat(beat, SERVER)
    assert not quiet.HasField("routing")  # how full a disk is makes no version
    assert cluster.manager.space() == (1000, 700)
    beat.targets[0].state = LOCAL_STATE_OFFLINE
    loud = await cluster.service.heartbeat(beat, SERVER)
    assert (loud.routing.since, loud.routing.version) == (version, version + 1)
    assert loud.routing.chains[0].members[0].state == TARGET_STATE_LASTSRV
    assert cluster.manager.space() == (0, 0)
    beat.targets[0].state = LOCAL_STATE_ONLINE
    await cluster.service.heartbeat(beat, SERVER)
    assert cluster.manager.book.chains[1].members[0].state == TARGET_STATE_SERVING
    with pytest.raises(StatusError) as failed:
        await cluster.service.heartbeat(HeartbeatRequest(node=1, process=9), SERVER)
    assert status_of(failed) is Status.FENCED
    with pytest.raises(StatusError) as failed:
        await cluster.service.heartbeat(HeartbeatRequest(node=9, process=9), SERVER)
    assert status_of(failed) is Status.NOT_FOUND


async def test_status_shows_silent_nodes_but_a_chain_of_one_serves_on(cluster: Cluster) -> None:
    await cluster.manager.register(node(), [target(0, 11)])
    shown = await cluster.service.status(StatusRequest(), CLIENT)
    assert (shown.inodes, shown.gc_pending, shown.primary, shown.started_ns) == (12, 3, "meta-1", 42)
    assert shown.routing.targets[0].state == LOCAL_STATE_ONLINE
    await cluster.clock.pass_time(2 * NODE_LEASE_SECONDS + 1)
    shown = await cluster.service.status(StatusRequest(), CLIENT)
    assert shown.routing.targets[0].state == LOCAL_STATE_OFFLINE
    assert cluster.manager.book.chains[1].members[0].state == TARGET_STATE_SERVING
    assert not shown.routing.capability_key


async def test_only_servers_register_and_only_they_get_the_key(cluster: Cluster) -> None:
    for call in (
        cluster.service.register_node(RegisterNodeRequest(node=node()), CLIENT),
        cluster.service.heartbeat(HeartbeatRequest(node=1), CLIENT),
    ):
        with pytest.raises(StatusError) as failed:
            await call
        assert status_of(failed) is Status.UNAUTHENTICATED
    full = await cluster.service.get_routing(GetRoutingRequest(), SERVER)
    assert full.version and not full.capability_key
    nothing = await cluster.service.get_routing(GetRoutingRequest(since=full.version), CLIENT)
    assert nothing.since == nothing.version == full.version


async def renew(cluster: Cluster, peer: Any = CLIENT, **fields: Any) -> Any:
    return await cluster.service.renew_client(RenewClientRequest(name="host pid 1", **fields), peer)


async def test_a_client_lives_as_long_as_it_renews(cluster: Cluster) -> None:
    reply = await renew(cluster, open_inodes=[5, 6], acknowledged_request=9)
    assert reply.lease_ms == CLIENT_LEASE_SECONDS * 1000 and reply.routing.version
    assert (reply.mark, reply.report_ms) == (b"mark", 7)
    assert cluster.namespace.renewals == [(ALICE, [5, 6], 9)]
    for _ in range(5):
        await cluster.clock.pass_time(CLIENT_LEASE_SECONDS * 0.8)
        assert (await renew(cluster)).epoch == reply.epoch
    assert not cluster.namespace.ended
    version = cluster.manager.book.state.version
    await cluster.clock.pass_time(CLIENT_LEASE_SECONDS * 1.2)
    assert cluster.namespace.ended == [ALICE]
    delta = cluster.manager.routing(version)
    assert delta is not None and list(delta.ended_clients) == [ALICE]
    with pytest.raises(StatusError) as failed:
        await renew(cluster)
    assert status_of(failed) is Status.SESSION_ENDED
    await cluster.restart()
    with pytest.raises(StatusError):
        await renew(cluster)


@pytest.mark.parametrize("whose", ["another one", "its own"])
async def test_who_is_told_that_he_lives_does_not_end(cluster: Cluster, whose: str) -> None:
    """A renewal comes late, while an end is on its way to the disk: it counts, or it is refused."""
    first, second = Peer(ALICE), Peer(BOB)
    for peer in (first, second):
        await renew(cluster, peer)
    memory: MemoryEngine = cluster.engine.engine  # type: ignore[assignment]
    told: list[object] = []

    async def late() -> None:
        if not told:
            told.append(None)
            try:
                told[0] = (await renew(cluster, second if whose == "another one" else first)).epoch
            except StatusError as refused:
                told[0] = refused.status

    await cluster.clock.pass_time(CLIENT_LEASE_SECONDS * 0.98)
    memory.pause = late
    await cluster.clock.pass_time(CLIENT_LEASE_SECONDS * 0.12)
    if whose == "another one":
        assert told == [1] and cluster.namespace.ended == [ALICE]
        await renew(cluster, second)
    else:
        assert told == [Status.SESSION_ENDED] and cluster.namespace.ended == [ALICE, BOB]


async def test_a_lease_is_its_users_also_after_a_restart(cluster: Cluster) -> None:
    await renew(cluster)
    stranger, root = Peer(uid=2001), Peer(uid=0, trusted=True)
    for _ in range(2):
        for call in (renew(cluster, stranger), cluster.service.end_client(EndClientRequest(), stranger)):
            with pytest.raises(StatusError) as refused:
                await call
            assert status_of(refused) is Status.NOT_PERMITTED
        await cluster.restart()
    assert not cluster.namespace.ended
    await renew(cluster)
    await renew(cluster, root)  # may act for anybody
    await cluster.service.end_client(EndClientRequest(), CLIENT)
    assert cluster.namespace.ended == [ALICE]


async def test_a_lease_keeps_its_epoch_and_a_new_one_has_another(cluster: Cluster) -> None:
    first = (await renew(cluster)).epoch
    for _ in range(100):
        await cluster.clock.pass_time(EPOCH_SECONDS / 100)
        assert (await renew(cluster)).epoch == first
    await cluster.restart()
    assert (await renew(cluster)).epoch == first
    await cluster.clock.pass_time(3 * EPOCH_SECONDS)  # silent so long that nobody remembers its end
    assert (await renew(cluster)).epoch != first


async def test_the_servers_own_client_ends_with_its_successor(cluster: Cluster) -> None:
    cluster.own_client = ALICE
    await cluster.restart()
    await cluster.clock.pass_time(3 * CLIENT_LEASE_SECONDS)
    assert not cluster.manager.book.ended and not len(cluster.manager.leases)
    cluster.own_client = BOB
    await cluster.restart()
    await cluster.clock.pass_time(1.2 * CLIENT_LEASE_SECONDS)
    assert set(cluster.manager.book.ended) == {ALICE}


async def test_a_client_that_says_goodbye_has_ended(cluster: Cluster) -> None:
    await renew(cluster)
    await renew(cluster, Peer(BOB))
    await cluster.service.end_client(EndClientRequest(), CLIENT)
    assert cluster.namespace.ended == [ALICE]
    assert set(cluster.manager.book.ended) == {ALICE}
    await cluster.service.end_client(EndClientRequest(), CLIENT)  # twice is fine
    version = cluster.manager.book.state.version
    await cluster.service.end_client(EndClientRequest(), Peer(b"x" * 16))  # never had a lease: nothing to make known
    assert cluster.manager.book.state.version == version


async def test_after_a_restart_every_client_gets_one_lease_time(cluster: Cluster) -> None:
    await renew(cluster)
    await renew(cluster, Peer(BOB))
    cluster.namespace.sessions = [b"c" * 16]  # has a session but never renewed
    await cluster.restart()
    await cluster.clock.pass_time(CLIENT_LEASE_SECONDS * 0.9)
    await renew(cluster, Peer(BOB))
    assert not cluster.namespace.ended
    await cluster.clock.pass_time(CLIENT_LEASE_SECONDS * 0.3)
    assert set(cluster.namespace.ended) == {ALICE, b"c" * 16}
    assert set(cluster.manager.book.ended) == {ALICE, b"c" * 16}


async def test_an_ended_client_with_sessions_is_told_again_after_a_crash(cluster: Cluster) -> None:
    await renew(cluster)
    await cluster.service.end_client(EndClientRequest(), CLIENT)
    cluster.namespace = Namespace()
    cluster.namespace.sessions = [ALICE]
    await cluster.restart()
    assert set(cluster.namespace.ended) == {ALICE}


async def test_many_clients_that_ended_in_one_epoch_are_forgotten(cluster: Cluster) -> None:
    """The names of so many keys do not fit the record that tells followers what changed."""
    clients = [b"%016d" % i for i in range(5000)]

    def end(book: Book) -> Draft:
        draft = Draft(book)
        for client in clients:
            draft.end_client(client)
        return draft

    version = cluster.manager.book.state.version
    await cluster.manager._writer.change(end)
    assert len(cluster.manager.book.ended) == 5000
    assert await Store(cluster.engine).news(version) is None  # too much: whoever follows reads everything
    epoch = cluster.manager.book.state.capability_epoch
    await cluster.clock.pass_time((VALID_EPOCHS + 2) * EPOCH_SECONDS)
    assert cluster.manager.book.state.capability_epoch == epoch + VALID_EPOCHS + 2
    assert not cluster.manager.book.ended
    version = cluster.manager.book.state.version
    await cluster.manager._writer.change(_one_more)
    news = await Store(cluster.engine).news(version)
    assert news is not None and list(news.rows) == [(Kind.ENDED, ALICE)]


def _one_more(book: Book) -> Draft:
    draft = Draft(book)
    draft.end_client(ALICE)
    return draft


async def test_capabilities_outlive_an_epoch_and_ended_clients_are_forgotten_later(cluster: Cluster) -> None:
    state = cluster.manager.book.state
    token = cluster.manager.issue(ALICE, 77, Rights.READ)
    await renew(cluster)
    await cluster.service.end_client(EndClientRequest(), CLIENT)

    def check() -> None:
        epoch = cluster.manager.book.state.capability_epoch
        capability.check(state.capability_key, token, client=ALICE, inode=77, rights=Rights.READ, epoch=epoch)

    assert cluster.manager.valid_ms == EPOCH_SECONDS * 1000
    await cluster.clock.pass_time(EPOCH_SECONDS * 1.5)
    check()
    assert ALICE in cluster.manager.book.ended
    await cluster.clock.pass_time(EPOCH_SECONDS)
    with pytest.raises(StatusError):
        check()
    assert ALICE not in cluster.manager.book.ended
    await cluster.restart()
    assert cluster.manager.book.state.capability_epoch == state.capability_epoch + 2
    assert ALICE not in cluster.manager.book.ended


@pytest.mark.parametrize("committed", [False, True])
async def test_a_commit_that_failed_halfway_is_neither_lost_nor_repeated(cluster: Cluster, committed: bool) -> None:
    cluster.engine.failures = [(committed, Status.MAYBE_COMMITTED)]
    with pytest.raises(StatusError):
        await cluster.manager.register(node(), [target(0, 11)])
    assert not cluster.manager.book.nodes  # it does not act on what it is not sure of
    assert await cluster.manager.register(node(), [target(0, 11)]) == 1
    assert len(cluster.manager.book.targets) == 1
    before = cluster.manager.book.state
    assert (await cluster.restart()).book.state == before


async def test_layouts_need_a_storage_server(cluster: Cluster) -> None:
    with pytest.raises(StatusError) as failed:
        cluster.manager.table()
    assert status_of(failed) is Status.UNAVAILABLE
    await cluster.manager.register(node(), [target(0, 11), target(0, 22)])
    assert cluster.manager.table() == (1, 1, 2)


async def test_registrations_at_the_same_moment_do_not_mix(cluster: Cluster) -> None:
    numbers = await asyncio.gather(
        *(cluster.manager.register(node(0, process=i), [target(0, 100 + i)]) for i in range(1, 21))
    )
    assert sorted(numbers) == list(range(1, 21))
    assert list(cluster.manager.book.tables[1].chains) == list(range(1, 21))
    assert cluster.manager.book.tables[1].version == 20
