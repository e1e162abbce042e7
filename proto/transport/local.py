"""Servers in the same process: a call is a call of the handler. For tests, the simulator and embedding.

Messages are serialized and parsed as they would be on the wire, so that both sides never share one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from ..env import Call, drive
from ..errors import Status, StatusError, error
from ..hello import Credentials
from ..region import parts
from ..rpc import MESSAGE_BYTES_MAX, Identity, PeerInfo, Service, served
from .buffers import Buffers
from .tcp import Scratch

_Handlers = dict[int, Any]


class LocalContext:
    """The Context of a call in the same process. Bulk goes through a buffer of the call's own, so that a handler that outlives its
    caller's patience touches nothing of the caller's."""

    def __init__(self, call: Call, peer: PeerInfo, buffers: Buffers) -> None:
        self.peer = peer
        self.cancelled = False
        self.stopping = False
        self.listening = False
        self._call = call
        self._buffers = buffers
        self._sink: Scratch | None = None
        self._deadline = time.monotonic() + call.timeout

    def remaining(self) -> float:
        return self._deadline - time.monotonic()

    def sink(self, length: int) -> Scratch:
        offered = sum([slice_.length for slice_ in self._call.target])
        if offered < length:
            raise error(
                Status.INVALID, f"the reply has {length} bytes of bulk, the client offered memory for {offered}"
            )
        self._sink = Scratch(length, self._buffers)
        return self._sink

    async def pull(self) -> memoryview:
        return memoryview(b"".join([slice_.view for slice_ in self._call.source]))

    def lent(self) -> Sequence[memoryview] | None:
        return [slice_.view[:] for slice_ in self._call.source]

    def subscribe(self, subscription: int, topic: str) -> Any:
        raise error(Status.UNSUPPORTED, "there are no subscriptions on local: addresses")

    def too_late(self) -> StatusError:
        """The caller's patience is over."""
        self.cancelled = True
        call = self._call
        return error(Status.DEADLINE, f"{call.method.name} at {call.address}: no answer within {call.timeout:g} s")

    def deliver(self) -> None:
        """The caller still waits: what the handler filled goes where it belongs."""
        if self._sink is None:
            return
        for position, data in self._sink.pieces():
            done = 0
            for view in parts(self._call.target, position, len(data)):
                view[:] = data[done : done + len(view)]
                done += len(view)


class LocalNetwork:
    """Names and the services behind them. Give one to environments as `local=` and call "local:name".

    Handlers that wait need a loop: the caller's own under asyncio; for blocking callers the one given as `loop`, which must run in
    another thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._servers: dict[str, _Handlers] = {}
        self._peers: dict[bytes, PeerInfo] = {}
        self._buffers = Buffers()

    def serve(self, name: str, services: Sequence[Service]) -> str:
        """Returns the address, "local:name"."""
        self._servers[name] = {method.number: handler for service in services for method, handler in served(service)}
        return f"local:{name}"

    def stop(self, name: str) -> None:
        """From now on it cannot be reached."""
        self._servers.pop(name, None)

    def peer(self, credentials: Credentials) -> PeerInfo:
        found = self._peers.get(credentials.client)
        if found is None:
            identity = Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()), trusted=True)
            found = self._peers[credentials.client] = PeerInfo(credentials.client, identity, "local", "this process")
        return found

    async def _run(self, call: Call, context: LocalContext) -> Any:
        """Run the handler. Raises what it raises; anything that is no StatusError is INTERNAL, as over the wire."""
        handlers = self._servers.get(call.address.removeprefix("local:"))
        if handlers is None:
            raise error(Status.UNAVAILABLE, f"{call.address} cannot be reached: nobody serves it")
        handler = handlers.get(call.method.number)
        if handler is None:
            raise error(Status.UNSUPPORTED, f"{call.address} has no method {call.method.service}.{call.method.name}")
        data = call.request.SerializeToString()
        if len(data) > MESSAGE_BYTES_MAX:
            raise error(
                Status.TOO_LARGE, f"a message of {len(data)} bytes: at most {MESSAGE_BYTES_MAX}; send less at once"
            )
        request = call.method.request.FromString(data)
        try:
            reply = await handler(request, context)
        except StatusError:
            raise
        except Exception as bug:
            raise error(Status.INTERNAL, f"{type(bug).__name__} in {call.method.name}: {bug}") from bug
        return call.method.reply.FromString(reply.SerializeToString())

    def call(self, call: Call, credentials: Credentials) -> Any:
        """For blocking callers."""
        context = LocalContext(call, self.peer(credentials), self._buffers)
        if self._loop is None:
            reply = drive(self._run(call, context))
            context.deliver()
            return reply
        future = asyncio.run_coroutine_threadsafe(self._run(call, context), self._loop)
        try:
            reply = future.result(call.timeout)
        except TimeoutError as late:
            if isinstance(late, StatusError):
                raise
            raise context.too_late() from late
        context.deliver()
        return reply

    async def call_aio(self, call: Call, credentials: Credentials) -> Any:
        """For asyncio callers."""
        context = LocalContext(call, self.peer(credentials), self._buffers)
        task = asyncio.ensure_future(self._run(call, context))
        try:
            reply = await asyncio.wait_for(asyncio.shield(task), call.timeout)
        except asyncio.CancelledError:
            context.cancelled = True
            raise
        except TimeoutError as late:
            if isinstance(late, StatusError):
                raise
            raise context.too_late() from late
        context.deliver()
        return reply
