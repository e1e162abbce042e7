"""A network that loses, delays, doubles and reorders messages, and is cut, as its seed says.

What a caller is told is what the wire would tell it: UNAVAILABLE only where nothing can have been sent, MAYBE_COMMITTED where a connection
broke before the answer, DEADLINE where there was silence. A bug in a handler (anything but a StatusError) ends the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.region import parts
from emberfs.proto.rpc import Bulk, PeerInfo, Service, served
from emberfs.proto.transport.buffers import Buffers
from emberfs.proto.transport.tcp import Scratch

from .loop import Future, Host, Loop

CONNECT_SECONDS = 5.0  # until a connect into silence is given up
ADDRESS = "local:"


@dataclass
class Weather:
    """What messages go through. The shares are of messages, from 0 to 1."""

    delay_seconds_min: float = 0.000_05
    delay_seconds_max: float = 0.002
    slow: float = 0.0  # share that takes up to `slow_seconds`, so that later ones overtake it
    slow_seconds: float = 0.5
    loss: float = 0.0  # of requests, and of replies
    breaks: float = 0.5  # share of the losses that the caller hears of, as a broken connection
    duplication: float = 0.0  # of requests
    echo_seconds: float = 0.0  # that the second copy takes besides, at most


CALM = Weather()
ROUGH = Weather(slow=0.1, loss=0.05, duplication=0.05)


class Server:
    def __init__(self, host: Host, services: Sequence[Service]) -> None:
        self.host = host
        self.incarnation = host.incarnation
        self.methods = {method.number: handler for service in services for method, handler in served(service)}

    @property
    def alive(self) -> bool:
        return self.incarnation == self.host.incarnation


class SimulatedContext:
    """What a handler knows about one delivery of a request. Bulk that it fills is its own until the reply has arrived."""

    def __init__(self, exchange: Exchange, peer: PeerInfo, host: Host) -> None:
        self.peer = peer
        self.cancelled = False
        self.stopping = False
        self.filled: Scratch | None = None
        self._exchange = exchange
        self._host = host
        self._until = host.now() + exchange.call.timeout

    def remaining(self) -> float:
        return self._until - self._host.now()

    def sink(self, length: int) -> Scratch:
        offered = sum(slice_.length for slice_ in self._exchange.call.target)
        if offered < length:
            raise error(Status.INVALID, f"the reply has {length} bytes of bulk, the client offered {offered}")
        self.filled = Scratch(length, self._exchange.network.buffers)
        return self.filled

    async def pull(self) -> memoryview:
        return memoryview(bytearray(self._exchange.bulk))

    def lent(self) -> None:
        return None

    def subscribe(self, subscription: int, topic: str) -> Any:
        raise error(Status.UNSUPPORTED, "the simulated network has no subscriptions")


class Network:
    def __init__(self, loop: Loop, weather: Weather = CALM) -> None:
        self.loop = loop
        self.weather = weather
        self.buffers = Buffers()
        self._servers: dict[str, Server] = {}
        self._cut: set[tuple[str, str]] = set()  # from host, to host
        self._connected: dict[
            tuple[str, int, str], int
        ] = {}  # host, its incarnation, server -> the server's incarnation
        self._calls = 0
        self._holds: set[tuple[str, str, str]] = set()  # method, source, address
        self._echoes: list[tuple[str, str, str]] = []
        self._held: list[Exchange] = []
        self._open: dict[Exchange, None] = {}  # not answered yet

    def serve(self, host: Host, services: Sequence[Service], name: str = "") -> str:
        """Serve on a host; returns the address. A crash of the host ends it, serving again revives it."""
        name = name or host.name
        if name not in self._servers:
            host.when_killed.append(partial(self._reset, ADDRESS + name))
        self._servers[name] = Server(host, services)
        self.loop.trace(f"{name} serves")
        return ADDRESS + name

    def partition(self, sources: Iterable[Host], targets: Iterable[Host], *, both_ways: bool = True) -> None:
        """Messages from `sources` to `targets` vanish, and back if `both_ways`."""
        targets = list(targets)
        for source in sources:
            for target in targets:
                self.loop.trace(f"cut {source.name} {'-x-' if both_ways else '-x>'} {target.name}")
                self._cut.add((source.name, target.name))
                if both_ways:
                    self._cut.add((target.name, source.name))

    def mend(self, sources: Iterable[Host], targets: Iterable[Host]) -> None:
        """Messages between these pass again, both ways."""
        targets = list(targets)
        for source in sources:
            for target in targets:
                self.loop.trace(f"mend {source.name} -- {target.name}")
                self._cut -= {(source.name, target.name), (target.name, source.name)}

    def hold(self, method: str, source: str, target: str) -> None:
        """The next request of this kind from one host to another stays on its way until `release`, as if in a stopped process's socket."""
        self._holds.add((method, source, ADDRESS + target))

    def echo(self, method: str, source: str, target: str) -> None:
        """The next request of this kind arrives, and comes a second time at `release`."""
        self._echoes.append((method, source, ADDRESS + target))

    def release(self) -> None:
        self._holds.clear()
        self._echoes.clear()
        held, self._held = self._held, []
        for exchange in held:
            exchange.send_held()

    def holds(self, exchange: Exchange) -> bool:
        """Whether this request is kept; it is sent later. So is the copy of one that is to come twice."""
        call = exchange.call
        kind = (call.method.name, exchange.source, call.address)
        held, doubled = kind in self._holds, kind in self._echoes
        if held:
            self._holds.discard(kind)
        elif doubled:
            self._echoes.remove(kind)
        if held or doubled:
            self._held.append(exchange)
        return held

    def heal(self) -> None:
        """Every host reaches every other one."""
        self.loop.trace("heal")
        self._cut.clear()

    def start(self, host: Host, call: Call, peer: PeerInfo) -> Exchange:
        """Send a request; the answer comes to the exchange's future."""
        self._calls += 1
        exchange = Exchange(self, host, call, peer, self._calls)
        self._open[exchange] = None
        exchange.answer.when_done(lambda: self._open.pop(exchange, None))
        exchange.begin()
        return exchange

    def _reset(self, address: str) -> None:
        for exchange in self._open:
            if exchange.call.address == address:
                exchange.reset()

    # For exchanges.

    def is_cut(self, source: Host, target: Host) -> bool:
        return (source.name, target.name) in self._cut

    def server(self, address: str) -> Server | None:
        found = self._servers.get(address.removeprefix(ADDRESS))
        return found if found is not None and found.alive else None

    def host_of(self, address: str) -> Host | None:
        found = self._servers.get(address.removeprefix(ADDRESS))
        return found.host if found is not None else None

    def connection(self, host: Host, address: str) -> int | None:
        """Which incarnation of the server the host has a connection to; None: it has none."""
        return self._connected.get((host.name, host.incarnation, address))

    def connect(self, host: Host, address: str, incarnation: int) -> None:
        self._connected[host.name, host.incarnation, address] = incarnation

    def disconnect(self, host: Host, address: str) -> None:
        self._connected.pop((host.name, host.incarnation, address), None)

    def delay(self) -> float:
        """Seconds that one message takes."""
        weather, chance = self.weather, self.loop.random
        if chance.random() < weather.slow:
            return chance.uniform(weather.delay_seconds_max, weather.slow_seconds)
        return chance.uniform(weather.delay_seconds_min, weather.delay_seconds_max)

    def happens(self, share: float) -> bool:
        return self.loop.random.random() < share


class Exchange:
    """One call: a request that may arrive never, once or twice, and the first reply that comes back."""

    def __init__(self, network: Network, host: Host, call: Call, peer: PeerInfo, number: int) -> None:
        self.network = network
        self.call = call
        self.answer: Future[Any] = Future()
        self.bulk = b"".join(slice_.view for slice_ in call.source) if call.method.bulk is Bulk.TO_SERVER else b""
        self.source = host.name
        self._host = host
        self._peer = peer
        self._message = call.request.SerializeToString()
        self._contexts: list[SimulatedContext] = []
        self._incarnation = 0  # of the server that the connection leads to: another one never gets what was sent on it
        self._name = f"#{number} {host.name}>{call.address.removeprefix(ADDRESS)} {call.method.name}"

    def begin(self) -> None:
        network, loop, call = self.network, self.network.loop, self.call
        self._trace("send")
        loop.call_at(loop.time + call.timeout, self._too_late)
        server, known = network.server(call.address), network.connection(self._host, call.address)
        if known is None or (server is not None and known != server.incarnation):
            network.disconnect(self._host, call.address)
            if not self._connect(server):
                return
        if server is None:
            network.disconnect(self._host, call.address)
            self._break("the server is gone")
            return
        self._incarnation = server.incarnation
        self._send(0.0)
        if network.happens(network.weather.duplication):
            self._send(loop.random.uniform(0, network.weather.echo_seconds))

    def _send(self, late: float) -> None:
        network, loop = self.network, self.network.loop
        if network.happens(network.weather.loss):
            self._lose("request lost")
        elif not network.holds(self):
            loop.call_at(loop.time + late + network.delay(), self._arrive)

    def send_held(self) -> None:
        """It goes on its way now, whether anybody still waits for the answer or not."""
        self._trace("goes on")
        self.network.loop.call_at(self.network.loop.time + self.network.delay(), self._arrive)

    def _connect(self, server: Server | None) -> bool:
        network, loop = self.network, self.network.loop
        host = network.host_of(self.call.address)
        silent = host is not None and (network.is_cut(self._host, host) or network.is_cut(host, self._host))
        if server is not None and not silent:
            network.connect(self._host, self.call.address, server.incarnation)
            return True
        patience = min(self.call.connect or CONNECT_SECONDS, self.call.timeout)
        seconds = patience if silent else network.delay()
        refusal = error(Status.UNAVAILABLE, f"{self.call.address} cannot be reached")
        loop.call_at(loop.time + seconds, lambda: self._fail("unavailable", refusal))
        return False

    def _arrive(self) -> None:
        network, call = self.network, self.call
        server = network.server(call.address)
        if server is None or server.incarnation != self._incarnation:
            self._break("the server crashed")
            return
        if network.is_cut(self._host, server.host):
            self._trace("request vanishes")
            return
        self._trace("arrives")
        handler = server.methods.get(call.method.number)
        if handler is None:
            self._reply(server, None, error(Status.UNSUPPORTED, f"{call.address} has no {call.method.name}"), None)
            return
        context = SimulatedContext(self, self._peer, server.host)
        self._contexts.append(context)
        server.host.spawn(self._serve(server, handler, context), self._name, loud=True)

    async def _serve(self, server: Server, handler: Any, context: SimulatedContext) -> None:
        try:
            reply = await handler(self.call.method.request.FromString(self._message), context)
        except StatusError as refusal:
            self._reply(server, None, refusal, context)
        else:
            self._reply(server, reply.SerializeToString(), None, context)

    def _reply(
        self, server: Server, message: bytes | None, refusal: StatusError | None, context: SimulatedContext | None
    ) -> None:
        network, loop = self.network, self.network.loop
        if network.happens(network.weather.loss):
            self._lose("reply lost")
            return

        def arrive() -> None:
            if network.is_cut(server.host, self._host):
                self._trace("reply vanishes")
            elif refusal is not None:
                copy = error(refusal.status, str(refusal.strerror), refusal.filename, refusal.detail)
                self._fail(f"refused {refusal.status.name}", copy)
            elif not self.answer.done:
                self._trace("answered")
                self._deliver(context)
                self.answer.resolve(self.call.method.reply.FromString(message or b""))

        loop.call_at(loop.time + network.delay(), arrive)

    def _deliver(self, context: SimulatedContext | None) -> None:
        if context is None or context.filled is None:
            return
        for position, data in context.filled.pieces():
            done = 0
            for view in parts(self.call.target, position, len(data)):
                view[:] = data[done : done + len(view)]
                done += len(view)

    def _lose(self, what: str) -> None:
        self._trace(what)
        if self.network.happens(self.network.weather.breaks):
            self._break("the connection broke")

    def _break(self, why: str) -> None:
        network, loop = self.network, self.network.loop
        failure = error(Status.MAYBE_COMMITTED, f"{self.call.method.name} at {self.call.address}: {why}")
        network.disconnect(self._host, self.call.address)
        loop.call_at(loop.time + network.delay(), lambda: self._fail("broken", failure))

    def _too_late(self) -> None:
        if not self.answer.done:
            self.network.disconnect(self._host, self.call.address)
            call = self.call
            late = f"{call.method.name} at {call.address}: no answer within {call.timeout:g} s"
            self._fail("too late", error(Status.DEADLINE, late))

    def reset(self) -> None:
        """The server's process is gone; its kernel says so."""
        self._break("the server was killed")

    def abandon(self) -> None:
        """The caller gave up."""
        self._fail("abandoned", error(Status.CANCELLED, "the caller gave up"))

    def _fail(self, what: str, failure: StatusError) -> None:
        if not self.answer.done:
            self._trace(what)
            for context in self._contexts:
                context.cancelled = True
            self.answer.fail(failure)

    def _trace(self, what: str) -> None:
        self.network.loop.trace(f"{self._name}: {what}")
