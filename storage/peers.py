"""Calls to the storage process that owns a target, over whichever of its addresses answers."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from ..proto.env import Call, Environment
from ..proto.errors import Status, StatusError, error
from ..proto.routing import RoutingTable
from ..proto.rpc import Method


class Peers:
    """`host` is this machine's boot id: processes on it are reached through their Unix sockets."""

    def __init__(self, env: Environment, routing: RoutingTable, host: str) -> None:
        self._env = env
        self._routing = routing
        self._host = host

    def addresses(self, target: int) -> tuple[str, ...]:
        """Best first. Raises STALE_ROUTING for an unknown target or node."""
        entry = self._routing.targets.get(target)
        if entry is None:
            raise error(Status.STALE_ROUTING, f"target {target} is not in routing version {self._routing.version}")
        return self._routing.node_addresses(entry.node, self._host)

    def shares_memory(self, target: int) -> bool:
        """Whether slices of our pool reach it without passing through a socket."""
        try:
            addresses = self.addresses(target)
        except StatusError:
            return False
        return bool(addresses) and self._env.shares_memory(addresses[0])

    async def call(self, target: int, method: Method, request: Message, seconds: float, /, **bulk: Any) -> Any:
        """The reply. Addresses are tried in turn as long as nothing was sent. Raises as `Environment.call` does, STALE_ROUTING."""
        last: StatusError | None = None
        for address in self.addresses(target):
            try:
                return await self._env.call(Call(address, method, request, seconds, **bulk))
            except StatusError as failed:
                if failed.status is not Status.UNAVAILABLE:
                    raise
                last = failed
        raise last or error(Status.UNAVAILABLE, f"target {target} cannot be reached from this machine")
