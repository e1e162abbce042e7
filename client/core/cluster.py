"""A client's view of the cluster: where the metadata servers are, the routing, request ids, and calls that outlive failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from google.protobuf.message import Message

from ...proto.env import Call, Environment, Ticket
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import NODE_KIND_META, GetRoutingRequest, Routing
from ...proto.gen.common_pb2 import Chain
from ...proto.heads import LOOK_SECONDS, answer_of_head
from ...proto.ids import boot_id
from ...proto.rendezvous import owner_of
from ...proto.routing import RoutingTable
from ...proto.rpc import CLUSTER, Method
from .leases import Leases
from .options import Options
from .replicas import Replicas
from .retry import ATTEMPT_SECONDS, DELAY_SECONDS_MAX, Patience
from .turns import Turns

REFRESH_SECONDS = 2.0  # a look at the routing between two attempts waits at most so long
OWNER_REST_SECONDS = (
    5.0  # in which a metadata server that did not answer is not asked first; what it owns, the next one does
)
REFRESH_PAUSE_SECONDS = 0.1  # between two looks in the background
SILENT_SECONDS = (
    0.4  # without an answer of one of several metadata servers, ask whether it is there, and wait as long again
)
HEAD_CONNECT_SECONDS = 0.5  # for a new connection to the head of several: it may be stopped, and another one lead soon

# After these the routing may say something new.
_REFRESH_AFTER = frozenset(
    {
        Status.UNAVAILABLE,
        Status.MAYBE_COMMITTED,
        Status.DEADLINE,
        Status.STALE_CHAIN_VERSION,
        Status.STALE_ROUTING,
        Status.TARGET_OFFLINE,
        Status.FENCED,
        Status.NOT_PRIMARY,
    }
)
# After these a metadata server owns no inodes for a while.
_SILENT = frozenset({Status.UNAVAILABLE, Status.MAYBE_COMMITTED, Status.DEADLINE})
# After these another address of the same server, or another server, may do better.
_NEXT_ADDRESS_AFTER = frozenset({Status.UNAVAILABLE, Status.MAYBE_COMMITTED, Status.DEADLINE, Status.NOT_PRIMARY})


class Cluster:
    """Routing and metadata calls. Shared by all threads or tasks of a client."""

    def __init__(self, env: Environment, addresses: Sequence[str], options: Options) -> None:
        self.env = env
        self.options = options
        self.host = boot_id()
        self.table = RoutingTable()
        self.seeds = tuple(addresses)
        self._meta_addresses: list[str] = list(addresses)
        self._meta_turn = 0
        self._meta_order: dict[int, float] = {}  # metadata server -> where it stands: clients spread over them
        self._managers: list[str] = []  # where the elected one is, as others say; empty: wherever we ask for names
        self._owners_resting: dict[str, float] = {}  # address -> until when
        self._meta_nodes: dict[int, str] = {}  # metadata servers -> how to reach them
        self._node_turns = Turns(env, options)
        self._node_cache: dict[int, str] = {}
        self._cache_generation = -1
        self._refreshing = env.lock()
        self._refresh_due = 0.0  # no look in the background before
        self.requests = RequestIds(env)
        self.operation_seconds = options.scaled(options.timeout)
        self.attempt_seconds = min(options.scaled(ATTEMPT_SECONDS), self.operation_seconds)
        self.replicas = Replicas(env, options)
        self.leases: Leases[Any] | None = None  # what this client may believe without asking
        self.lookahead: dict[Any, Any] = {}  # streams between two reads -> their windows, who read last at the end

    def after_fork_in_child(self) -> None:
        """As `renew_identity`; what was read ahead is the parent's, and so is what is on its way."""
        self.renew_identity()
        self.lookahead = {}
        before, self.replicas = self.replicas, Replicas(self.env, self.options)
        self.replicas.local, self.replicas.near = before.local, before.near

    def renew_identity(self) -> None:
        """New locks and request ids: another thread of the parent may have held them. The routing is good as it is."""
        self._refreshing = self.env.lock()
        self._refresh_due = 0.0
        # The numbers go on: a request that is on its way while the identity changes must not share one with a later request.
        self.requests = RequestIds(self.env, self.requests.last)
        if self.leases is not None:
            self.leases.begin_anew()

    def drop_lookahead(self) -> bool:
        """Buffers are short: give back what some file has read ahead and not used for longest. False if there is nothing."""
        return any(self.forget_lookahead(stream) for stream in list(self.lookahead))

    def forget_lookahead(self, stream: Any) -> bool:
        """Give back what a stream has read ahead. False if it has nothing, or its reader was faster."""
        windows = self.lookahead.pop(stream, None)
        while windows:
            windows.popleft().drop()
        return windows is not None

    # --- routing ----------------------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """The first contact: fetch the routing from whichever address answers. Raises the error of the last one that did not: soon where
        nobody listens; who listens and says nothing has much to do, or stands still for a moment, and is given an operation's time."""
        if not self.seeds:
            raise error(Status.UNAVAILABLE, "the cluster has no address to connect to")
        waits = self.options.scaled(self.options.connect_timeout)  # between attempts, in all
        patience = self.patience(max(self.options.timeout, self.options.connect_timeout))
        while True:
            try:
                self._learn(await self.env.call(self._routing_call(patience.attempt())))
                return
            except StatusError as failure:
                self._turn_meta()
                failed = self.env.now()
                try:
                    await patience.again(failure)
                except StatusError:
                    raise failure from None  # that nobody listens says more here than that time ran out
                waits -= min(
                    self.env.now() - failed, DELAY_SECONDS_MAX
                )  # this process may have been the one that stood still
                if waits <= 0:
                    raise failure from None

    def _routing_call(self, timeout: float) -> Call:
        return Call(self.meta_address(), CLUSTER.GetRouting, GetRoutingRequest(since=self.table.version), timeout)

    async def refresh(self) -> None:
        """Ask for news of the routing, once. A failure is not an error: the next attempt of the operation will tell."""
        before = self.table.version
        async with self._refreshing:
            if self.table.version != before:
                return  # somebody else has just asked
            with suppress(StatusError):
                self._learn(await self.env.call(self._routing_call(self.options.scaled(REFRESH_SECONDS))))

    async def refresh_after(self, failure: StatusError) -> None:
        """`refresh`, if that can help after such a failure."""
        if failure.status in _REFRESH_AFTER:
            await self.refresh()

    def refresh_soon(self, failures: Iterable[StatusError] | None = None) -> None:
        """`refresh` in the background: nobody waits for it. `failures`: only if that can help after one of these."""
        now = self.env.now()
        if now >= self._refresh_due and (failures is None or any(f.status in _REFRESH_AFTER for f in failures)):
            self._refresh_due = now + self.options.scaled(REFRESH_SECONDS)  # until it is over
            self.env.spawn(self._refresh_now, "routing")

    async def _refresh_now(self) -> None:
        try:
            await self.refresh()
        finally:
            self._refresh_due = self.env.now() + self.options.scaled(REFRESH_PAUSE_SECONDS)

    async def learn(self, routing: Routing) -> None:
        """Take over routing that came with another reply."""
        async with self._refreshing:
            self._learn(routing)

    def _learn(self, routing: Routing) -> None:
        try:
            self.table.apply(routing)
        except StatusError as failure:
            if failure.status is not Status.STALE_ROUTING:
                raise
            self.table.version = 0  # a gap: the next refresh asks for everything
        self.replicas.local = self.table.local_nodes(self.host)
        self.replicas.near = self.table.near_nodes(self.options.rack)
        self._learn_meta()

    def _learn_meta(self) -> None:
        """Take over where the metadata servers are; of several, stay with the one that we ask."""
        before, knew_several = self.meta_address(), bool(self._meta_order)
        self._meta_addresses = self._find_meta()
        if not knew_several:
            self._meta_turn = (
                0 if self._meta_order else self._meta_turn
            )  # there are several: begin with the one that is ours
        elif before in self._meta_addresses:
            self._meta_turn = self._meta_addresses.index(before)

    def lost_since(self, taken: Mapping[int, int]) -> list[int]:
        """The chains (-> their losses at some time) that may have lost since then what they had taken and not synced."""
        known = self.table.chains
        return [chain for chain, losses in taken.items() if chain in known and known[chain].losses != losses]

    def learn_chains(self, chains: Sequence[Chain]) -> None:
        """Take over newer chain entries that came with a refusal."""
        for chain in chains:
            self.table.learn_chain(chain)

    def _find_meta(self) -> list[str]:
        nodes = {
            node.id: [a for a in self.table.node_addresses(node.id, self.host) if self.env.reachable(a)]
            for node in self.table.nodes.values()
            if node.kind == NODE_KIND_META
        }
        self._meta_nodes = {node: addresses[0] for node, addresses in nodes.items() if addresses}
        servers = list(nodes)
        if (
            len(servers) > 1
        ):  # any of them knows all names: each client stays with one, and they take them in another order
            for server in servers:
                self._meta_order.setdefault(server, self.env.random())
            servers.sort(key=lambda server: (server not in self.replicas.local, self._meta_order[server]))
        found = [address for server in servers for address in nodes[server]]
        # How we came here stays a way back: what a server calls itself may not be reachable from everywhere.
        others = [a for a in self.seeds if a not in found]
        return found + others if len(servers) > 1 else others + found

    def meta_address(self) -> str:
        """The metadata server to ask now."""
        addresses = self._meta_addresses
        return addresses[self._meta_turn % len(addresses)]

    def manager_address(self) -> str:
        """The metadata server to ask now about the cluster and our lease: of several, the one that leads."""
        return self._managers[0] if self._managers else self.meta_address()

    def owner_address(self, inode: int) -> str:
        """The metadata server where all who lock an inode, or append to it, meet: what is asked there conflicts with nobody."""
        if len(self._meta_nodes) < 2:
            return self.meta_address()
        now, resting = self.env.now(), self._owners_resting
        nodes = [node for node, address in self._meta_nodes.items() if resting.get(address, 0.0) <= now]
        return self._meta_nodes[owner_of(inode, nodes)] if nodes else self.meta_address()

    def _turn_meta(self) -> None:
        self._meta_turn += 1

    def node_address(self, node: int) -> str:
        """How to reach a storage node. Raises STALE_ROUTING for an unknown one, UNAVAILABLE when no address of it can be used here."""
        if self._cache_generation != self.table.generation:
            self._node_cache, self._cache_generation = {}, self.table.generation
        address = self._node_cache.get(node)
        if address is None:
            usable = [a for a in self.table.node_addresses(node, self.host) if self.env.reachable(a)]
            if not usable:
                raise error(
                    Status.UNAVAILABLE, f"storage node {node} has no address that can be reached from this machine"
                )
            turn = self._node_turns.of(node)
            address = usable[turn % len(usable)]
            if not turn:
                self._node_cache[node] = address
        return address

    async def recover(self, failure: StatusError, node: int = 0) -> None:
        """Learn from a failed attempt before the next one: newer chains, other addresses, newer routing. `node` 0: a metadata server."""
        self.note(failure, node)
        if not isinstance(failure.detail, Chain):
            await self.refresh_after(failure)

    async def recover_from(self, failure: StatusError, address: str) -> None:
        """As `recover`, after this metadata server was asked. The one that we stay with is left only for its own failures."""
        if failure.status in _SILENT:
            self._owners_resting[address] = self.env.now() + self.options.scaled(OWNER_REST_SECONDS)
        if address != self.meta_address() and failure.status in _NEXT_ADDRESS_AFTER - {Status.NOT_PRIMARY}:
            self._managers = [manager for manager in self._managers if manager != address]
            await self.refresh_after(failure)
        else:
            await self.recover(failure)

    def note(self, failure: StatusError, node: int = 0) -> None:
        """As `recover`, without asking anybody."""
        if failure.status in _NEXT_ADDRESS_AFTER:
            if failure.status is Status.NOT_PRIMARY:
                named = failure.detail if isinstance(failure.detail, list) else []
                self._managers = [address for address in named if self.env.reachable(address)]
                if not self._managers:
                    self._turn_meta()  # it knows of none: another one may
            elif node:
                self._node_turns.failed(node)
                self._node_cache.pop(node, None)
            else:
                self._turn_meta()
        if isinstance(failure.detail, Chain):
            self.table.learn_chain(failure.detail)

    # --- heads --------------------------------------------------------------------------------------------------------------------

    def head_call(self, node: int, method: Method, request: Message, chains: Iterable[int], **bulk: Any) -> Call:
        """A request to the node that leads these chains. Raises STALE_ROUTING, UNAVAILABLE."""
        several = any(self.table.route(chain).several for chain in chains)
        connect = self.options.scaled(HEAD_CONNECT_SECONDS) if several else 0.0
        return Call(self.node_address(node), method, request, self.attempt_seconds, connect=connect, **bulk)

    async def answer_of_head(self, ticket: Ticket, node: int, chains: Sequence[int]) -> Any:
        """The reply of a started `head_call`. Raises MAYBE_COMMITTED when another node leads one of the chains meanwhile."""
        seconds = self.options.scaled(LOOK_SECONDS)
        return await answer_of_head(self.env, self.table, ticket, node, chains, seconds, self.refresh_soon)

    # --- calls --------------------------------------------------------------------------------------------------------------------

    def patience(self, seconds: float | None = None) -> Patience:
        """A new operation's patience."""
        scaled = self.operation_seconds if seconds is None else self.options.scaled(seconds)
        return Patience(self.env, scaled, self.attempt_seconds)

    async def meta(
        self,
        method: Method,
        request: Message,
        patience: Patience | None = None,
        ids: RequestIds | None = None,
        inode: int = 0,
    ) -> Any:
        """Ask a metadata server, again until the deadline where that can help. `ids`: those of the identity that this is asked under;
        `inode`: whose owner is asked first. Raises StatusError."""
        patience = patience or self.patience()
        while True:
            if ids is not None and ids is not self.requests:
                # Under the new identity its number means another request, and nobody would know that it is a repetition.
                text = f"the client's lease ran out during {method.name}: it may have been carried out; look, and repeat it"
                raise error(Status.MAYBE_COMMITTED, text)
            address = self._address_for(method, 0 if patience.failures else inode)
            try:
                return await self._answer(Call(address, method, request, patience.attempt()))
            except StatusError as failure:
                await patience.again(failure)
                await self.recover_from(failure, address)

    async def _answer(self, call: Call) -> Any:
        """The reply of a metadata server. One of several that says nothing for a while is asked whether it is there at all: another
        one can carry the request out, and it counts once wherever it arrives."""
        if len(self._meta_nodes) < 2:
            return await self.env.call(call)
        seconds = self.options.scaled(SILENT_SECONDS)
        ticket = self.env.start(call)
        try:
            while await self.env.collect_any((ticket,), seconds) is None:
                question = GetRoutingRequest(since=self.table.version)
                await self.env.call(Call(call.address, CLUSTER.GetRouting, question, seconds))
        except BaseException:
            self.env.abandon(ticket)
            raise
        return await self.env.collect(ticket)

    def _address_for(self, method: Method, inode: int) -> str:
        if method.service == CLUSTER.name:
            return self.manager_address()
        return self.owner_address(inode) if inode else self.meta_address()

    async def change(self, method: Method, request: Any, patience: Patience | None = None, *, inode: int = 0) -> Any:
        """`meta` for a request that changes something: its request id makes every repetition count once."""
        ids, leases = self.requests, self.leases
        request.request_id = await ids.begin()
        began = leases.begin() if leases is not None else 0
        patience = patience or self.patience()
        try:
            reply = await self.meta(method, request, patience, ids, inode)
        except BaseException as failure:
            if leases is not None:
                leases.failed(failure, uncertain=patience.uncertain)
            raise
        else:
            if leases is not None:
                leases.changed(began, method, request, reply)
            return reply
        finally:
            await ids.end(request.request_id)

    async def meta_many(self, method: Method, requests: Sequence[Message]) -> list[Any]:
        """The same question about many things at once: per request the reply or its StatusError, in order."""
        patience = self.patience()
        address = self.meta_address()
        replies = await self.env.call_many([Call(address, method, request, patience.attempt()) for request in requests])
        for i, reply in enumerate(replies):
            if isinstance(reply, StatusError) and (reply.retryable or reply.status is Status.DEADLINE):
                try:
                    await self.recover(reply)
                    replies[i] = await self.meta(method, requests[i], patience)
                except StatusError as failure:
                    replies[i] = failure
        return replies


class RequestIds:
    """Numbers of this client's changes, and up to which of them all replies have arrived (their records may then be dropped)."""

    def __init__(self, env: Environment, last: int = 0) -> None:
        self._lock = env.lock()
        self.last = last
        self._in_flight: dict[int, None] = {}  # in rising order

    @property
    def quiet_since(self) -> int:
        """The number of the last change, if all have their answers: while this stays, nothing was changed by this client. Else -1."""
        return -1 if self._in_flight else self.last

    async def begin(self) -> int:
        async with self._lock:
            self.last += 1
            self._in_flight[self.last] = None
            return self.last

    async def end(self, request_id: int) -> None:
        async with self._lock:
            self._in_flight.pop(request_id, None)

    async def acknowledged(self) -> int:
        """Every change up to this number has its answer."""
        async with self._lock:
            return next(iter(self._in_flight), self.last + 1) - 1
