"""The storage server: `python -m emberfs.storage.server --data DIR --meta ADDRESS [--target DIR …] [--listen ADDRESS …]`.

Start: open the targets, find the cluster, listen, register, report readiness. Then it serves until SIGTERM: a last checkpoint, an offline
heartbeat, exit code 0. A manager that is away is waited for at the start and missed later; chains of one go on without it. A target
whose disk fails does not stop the others.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..proto.datadir import DataDirectory, open_data_directory
from ..proto.drivers.aio import AioEnvironment
from ..proto.errors import Status, StatusError
from ..proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, NODE_KIND_STORAGE
from ..proto.hello import PROCESS, SOFTWARE
from ..proto.ids import boot_id
from ..proto.process import Process, parser, run
from ..proto.routing import Change, RoutingTable
from ..proto.server import Server
from ..proto.settings import default_kv_memory, own_rack, read_secret
from .blocks.metrics import BlockMetrics
from .blocks.service import KvCacheService
from .hosting import Hosting
from .lease import Lease
from .membership import Membership, Reported
from .service import StorageService

FORMAT = 1  # of the data directory
ROUTING_TOPIC = "routing"
LEAVE_SECONDS_MAX = 2.0  # for the offline heartbeat


def options_parser() -> argparse.ArgumentParser:
    options = parser("emberfs.storage.server", "Serve the chunks of one or more targets.")
    options.add_argument(
        "--meta", metavar="ADDRESS", action="append", default=[], help="a metadata server; may be repeated"
    )
    options.add_argument(
        "--target",
        metavar="DIR",
        action="append",
        default=[],
        help="a target's directory, formatted when empty; may be repeated (default: target-1 in the data directory)",
    )
    options.add_argument("--capacity", metavar="BYTES", type=int, default=0, help="that each target may take")
    options.add_argument(
        "--kv-target",
        metavar="DIR",
        action="append",
        default=[],
        help="a target for KV blocks, formatted when empty; may be repeated (default: none)",
    )
    options.add_argument(
        "--kv-capacity",
        metavar="BYTES",
        type=int,
        default=0,
        help="that each target for KV blocks may take (default: a quarter of one for files)",
    )
    options.add_argument(
        "--kv-memory",
        metavar="BYTES",
        type=int,
        default=default_kv_memory(),
        help="of the page cache that KV blocks may take (default: a quarter of this machine's memory)",
    )
    options.add_argument(
        "--kv-spare",
        action="store_true",
        help="new targets for KV blocks get no chain before 'emberfs chain create --kv'",
    )
    options.add_argument("--direct", action="store_true", help="go around the page cache")
    options.add_argument("--spare", action="store_true", help="new targets get no chain before 'emberfs chain apply'")
    options.add_argument(
        "--rack",
        metavar="NAME",
        default=own_rack(),
        help="what this machine fails together with (default: $EMBERFS_RACK)",
    )
    options.add_argument("--scrub-rate", metavar="BYTES", type=int, default=0, help="verified a second and target")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    return run("storage", options_parser().parse_args(arguments), serve)


async def serve(process: Process) -> None:
    """The life of the process."""
    directory = open_data_directory(process.options.data, "storage", FORMAT, SOFTWARE)
    try:
        await _serve(process, directory)
    finally:
        directory.close()


async def _serve(process: Process, directory: DataDirectory) -> None:
    options = process.options
    secret = read_secret(options.secret_file or "")
    env = AioEnvironment(cluster=directory.facts.get("cluster", ""), secret=secret, acts_for_others=True)
    routing = RoutingTable()
    services: list[StorageService] = []

    def changed(change: Change) -> None:
        for service in services:
            service.routing_changed(change)

    lease = Lease()
    process.metrics.gauge(
        "emberfs_lease_seconds",
        "Left of the lease on places in replicated chains, by our own count; 0: nothing of them is served",
        lambda: max(0.0, lease.until - env.now()),
    )
    membership = Membership(env, options.meta, routing, changed, process.log, lease=lease, taken=process.fail)
    membership.spare, membership.spare_blocks = options.spare, options.kv_spare
    hosting = Hosting(process, directory, env, routing, membership, lease)
    membership.targets = hosting.reported
    try:
        cluster = await _unless_stopped(process, membership.discover())
        if cluster is None:
            return
        directory.remember(cluster=cluster)
        await hosting.open(cluster)
        service = hosting.service = StorageService(routing, hosting.targets, env, process.log, lease)
        services.append(service)
        blocks = KvCacheService(routing, service, env, process.log, membership.heartbeat, options.kv_memory)
        BlockMetrics(blocks, process.metrics.registry)
        server = Server(
            [service, blocks], cluster=cluster, node=directory.facts.get("node", 0), secret=secret, pool=env.pool
        )
        try:
            if await _joined(process, directory, server, membership):
                process.spawn(membership.heartbeats(), "heartbeats")
                process.spawn(_watch(env, membership, routing), "routing")
                hosting.keep_all()
                service.keeper = hosting
                process.ready(node=membership.node.id, addresses=server.addresses, cluster=cluster)
                await process.stopped()
        finally:
            await server.stop()
    finally:
        await process.end_workers()
        await _leave(membership, hosting)
        await hosting.close()
        await env.close()


async def _joined(process: Process, directory: DataDirectory, server: Server, membership: Membership) -> bool:
    """Listen and register. False when the process is asked to stop before."""
    options = process.options
    for address in options.listen or [f"unix:{directory.path / 'storage.sock'}"]:
        await server.listen(address)
    node = membership.node
    node.id = directory.facts.get("node", 0)
    node.kind = NODE_KIND_STORAGE
    node.addresses.extend(server.addresses)
    node.host, node.name, node.process, node.software = boot_id(), options.name, PROCESS, SOFTWARE
    node.rack = options.rack
    if await _unless_stopped(process, membership.register()) is None:
        return False
    if node.id != directory.facts.get("node"):
        directory.remember(node=node.id)
    server.settings = replace(server.settings, node=node.id)
    return True


async def _unless_stopped(process: Process, work: Any) -> Any:
    """The result of `work`, or None when the process is asked to stop first. `work` returning None counts as True."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(process.stopped())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
        return None
    result = task.result()
    return True if result is None else result


async def _watch(env: AioEnvironment, membership: Membership, routing: RoutingTable) -> None:
    """Background: fetch routing changes as soon as the manager speaks of them, not with the next heartbeat."""
    while True:
        try:
            subscriber = await env.subscribe(membership.manager, ROUTING_TOPIC, routing.version)
            while True:
                await subscriber.next()
                await membership.heartbeat()
        except StatusError as failed:
            if failed.status is Status.FENCED:
                return  # the membership has ended this process
        await env.sleep(membership.heartbeat_seconds)


async def _leave(membership: Membership, hosting: Hosting) -> None:
    """Tell the manager that our targets are going, if it is there."""
    if not membership.node.id:
        return

    def offline() -> list[Reported]:
        entries = [reported.entry for reported in hosting.reported()]
        for entry in entries:
            entry.state = LOCAL_STATE_OFFLINE
        return [Reported(entry) for entry in entries]

    membership.targets = offline
    try:
        async with asyncio.timeout(LEAVE_SECONDS_MAX):
            await membership.heartbeat()
    except (TimeoutError, StatusError):
        pass  # it will notice the silence


__all__ = ["main", "serve"]

if __name__ == "__main__":
    raise SystemExit(main())
