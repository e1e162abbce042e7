"""The short way to read: one range within one chunk, one request, one checksum. Everything unusual is a `Fetch`'s."""

from __future__ import annotations

from collections.abc import Callable

from ...proto.env import Call, Ticket
from ...proto.errors import Status, StatusError
from ...proto.gen.storage_pb2 import ReadReply, ReadRequest
from ...proto.region import Slice
from ...proto.routing import Replica
from ...proto.rpc import STORAGE
from .cluster import Cluster
from .columns import columns_of
from .inode import Inode
from .reads import Fetch
from .retry import Patience
from .verify import matches


async def read_piece(
    file: Inode, offset: int, length: int, deliver: Callable[[memoryview], object], patience: Patience
) -> Fetch | None:
    """The short way for a range within one chunk: one request, one checksum; None when it was delivered, as a view that is valid
    until `deliver` returns. If anything is unusual, a `Fetch` that knows what to do: it is to be completed."""
    cluster = file.cluster
    index, start = divmod(offset, file.chunk_size)
    chain = file.chains[index % len(file.chains)]
    slice_: Slice | None = None
    try:
        route = cluster.table.route(chain)
        serving = route.serving
        if start + length > file.chunk_size or not serving:
            return Fetch(cluster, columns_of(file, offset, length))
        several = route.several
        replica = cluster.replicas.choose(serving, index) if several else serving[0]
        slice_ = cluster.env.pool.take(length)
        request = ReadRequest(
            chain=(chain,),
            chain_version=(route.version,),
            inode=(file.id,),
            index=(index,),
            offset=(start,),
            length=(length,),
            capabilities=(file.capability_read,),
        )
        call = Call(cluster.node_address(replica.node), STORAGE.Read, request, patience.attempt(), target=(slice_,))
        if not several:
            reply = await cluster.env.call(call)
        else:
            began = cluster.env.now()
            ticket, reply = await _ask_one(cluster, call, replica, began)
            if reply is None:
                late, slice_ = slice_, None
                fetch = Fetch(cluster, columns_of(file, offset, length))
                return fetch.adopt(ticket, late, replica, route.version, began)
        if reply.status != [0] or reply.returned != [length]:
            fetch = Fetch(cluster, columns_of(file, offset, length))
            return fetch.from_tail(0) if reply.status == [Status.NOT_COMMITTED] else fetch
        view = slice_.view
        if not matches(view, reply.checksum, reply.unit[0] if reply.unit else 0, start):
            return Fetch(cluster, columns_of(file, offset, length)).doubt(0, replica.target)
        deliver(view)
        return None
    except StatusError:
        return Fetch(cluster, columns_of(file, offset, length))
    finally:
        if slice_ is not None:
            cluster.env.pool.give(slice_)


async def _ask_one(cluster: Cluster, call: Call, replica: Replica, began: float) -> tuple[Ticket, ReadReply | None]:
    """The reply of one replica of several; None if it takes longer than usual. Raises StatusError."""
    env, replicas = cluster.env, cluster.replicas
    call.connect = replicas.connect_seconds
    ticket = env.start(call)
    replicas.sent(replica.node, ticket)
    try:
        if await env.collect_any((ticket,), replicas.hedge_seconds(replica)) is None:
            return ticket, None
        reply: ReadReply = await env.collect(ticket)
    except StatusError as failure:
        cluster.note(failure, replica.node)
        cluster.refresh_soon([failure])
        replicas.failed(replica, failure.status)
        raise
    except BaseException:
        env.abandon(ticket)
        raise
    finally:
        replicas.ended(replica.node, ticket)
    replicas.answered(replica.node, env.now() - began)
    return ticket, reply
