"""Which transport is spoken with each server, from here and between the servers, and why: part of `status` and `doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .output import painted

if TYPE_CHECKING:
    from rich.table import Table

    from ...client.blocking import Client
    from ...proto.gen.cluster_pb2 import Routing

ASK_SECONDS = 3.0  # for a server to say with whom it speaks; scaled by EMBERFS_TIME_SCALE
ROWS_SHOWN_MAX = 60  # --json has all
COLOURS = {"rdma": "green", "shm": "green", "tcp": "cyan"}


def collect(client: Client, routing: Routing) -> list[dict[str, Any]]:
    """One row for each two that speak: from (a node's name, or "here"), to, address, transport, why. Asks every storage server that can be
    reached; those that do not answer are left out."""
    from ...proto.env import Call, drive
    from ...proto.gen.cluster_pb2 import NODE_KIND_STORAGE
    from ...proto.gen.storage_pb2 import SpaceReply, SpaceRequest
    from ...proto.ids import boot_id
    from ...proto.rpc import STORAGE
    from ...proto.settings import time_scale

    host = boot_id()
    names = {address: node.name or str(node.id) for node in routing.nodes for address in node.addresses}
    calls, asked = [], []
    for node in routing.nodes:
        usable = [address for address in node.addresses if node.host == host or not address.startswith("unix:")]
        if node.kind == NODE_KIND_STORAGE and usable:
            calls.append(Call(usable[0], STORAGE.Space, SpaceRequest(), ASK_SECONDS * time_scale()))
            asked.append(node.name or str(node.id))
    env = client.core.env
    replies = drive(env.call_many(calls))
    rows = [_row("here", names, address, spoken.transport, spoken.reason) for address, spoken in env.spoken().items()]
    for name, reply in zip(asked, replies, strict=True):
        if isinstance(reply, SpaceReply):
            columns = zip(reply.peer, reply.peer_transport, reply.peer_reason, strict=True)
            rows += [_row(name, names, *column) for column in columns]
    return rows


def _row(source: str, names: dict[str, str], address: str, transport: str, reason: str) -> dict[str, Any]:
    return {
        "from": source,
        "to": names.get(address, address),
        "address": address,
        "transport": transport,
        "reason": reason,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Column, Table

    made = Table(
        "from", "to", Column("address", overflow="fold"), "transport", Column("why", overflow="fold"), box=None
    )
    for row in rows[:ROWS_SHOWN_MAX]:
        transport = painted(row["transport"], COLOURS.get(row["transport"], "red"))
        made.add_row(row["from"], row["to"], row["address"], transport, row["reason"])
    if len(rows) > ROWS_SHOWN_MAX:
        made.add_row("...", "", "", "", f"and {len(rows) - ROWS_SHOWN_MAX} more (--json shows all)")
    return made


def devices() -> Iterator[tuple[str, bool, str, str]]:
    """(check, whether it is well, what was found, what to do) for RDMA on this machine; nothing where it has no device."""
    from ...proto.errors import StatusError
    from ...proto.transport import choice
    from ...proto.transport.rdma.devices import survey

    try:
        reason = choice.why_not_here()
        found = survey()
    except StatusError as wrong:
        yield "rdma", False, wrong.strerror or "", "correct the variable"
        return
    if not found:
        return
    if reason:
        yield "rdma", True, f"not used: {reason}", ""
        return
    for one in found:
        if one.port is None:
            yield f"rdma {one.name}", False, one.reason, "deploy/rdma.md, 'The fabric'"
        else:
            kind = "InfiniBand" if one.port.infiniband else f"RoCE v2 on {one.port.interface}"
            yield f"rdma {one.name}", True, f"{kind}, {one.port.rate}, GID {one.port.gid_index} {one.port.gid_text}", ""
    yield from _usable()


def _usable() -> Iterator[tuple[str, bool, str, str]]:
    """Whether a queue pair can be made on a port of this machine, by this user."""
    from ...proto.errors import StatusError
    from ...proto.transport.rdma.devices import ports
    from ...proto.transport.rdma.endpoint import Endpoint

    for port in ports():
        try:
            Endpoint(port, serves=False).close()
        except StatusError as failed:
            yield f"rdma {port.name}", False, failed.strerror or "", "deploy/rdma.md, 'Install'"
        else:
            yield f"rdma {port.name}", True, "a queue pair can be made, and memory registered", ""
