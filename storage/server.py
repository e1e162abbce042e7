"""The storage server: `python -m emberfs.storage.server --data DIR --meta ADDRESS [--target DIR …] [--listen ADDRESS …]`.

Start: open the targets, find the cluster, listen, register, report readiness. Then it serves until SIGTERM: a last checkpoint, an offline
heartbeat, exit code 0. A manager that is away is waited for at the start and missed later; chains of one go on without it. A target
whose disk fails does not stop the others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from prometheus_client import Gauge

from ..proto.datadir import DataDirectory, open_data_directory
from ..proto.drivers.aio import AioEnvironment
from ..proto.errors import Status, StatusError, error
from ..proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, NODE_KIND_STORAGE
from ..proto.hello import PROCESS, SOFTWARE
from ..proto.ids import boot_id
from ..proto.process import Process, parser, run
from ..proto.routing import Change, RoutingTable
from ..proto.server import Server
from ..proto.settings import read_secret
from .engine.recovery import Opened
from .engine.target import open_target
from .lease import Lease
from .membership import Membership, Reported
from .peers import Peers
from .repair import Repairer
from .resyncer import Resyncer
from .scrub import Scrubber
from .service import StorageService
from .target import Blocking, Target

FORMAT = 1  # of the data directory
THREADS_PER_TARGET = 4  # for blocking I/O: a slow disk does not take the threads of another
CAPACITY_PART = 0.9  # of the disk's free space, where --capacity does not say
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
    options.add_argument("--direct", action="store_true", help="go around the page cache")
    options.add_argument("--spare", action="store_true", help="new targets get no chain before 'emberfs chain apply'")
    options.add_argument(
        "--rack", metavar="NAME", default="", help="what this machine fails together with, for placement"
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
    targets: list[Target] = []
    services: list[StorageService] = []

    def changed(change: Change) -> None:
        for service in services:
            service.routing_changed(change)

    lease = Lease()
    membership = Membership(env, options.meta, routing, changed, process.log, lease=lease, taken=process.fail)
    membership.spare = options.spare
    try:
        cluster = await _unless_stopped(process, membership.discover())
        if cluster is None:
            return
        directory.remember(cluster=cluster)
        paths = options.target or [str(directory.path / "target-1")]
        targets += await open_all(process, paths, cluster, env, lease)
        service = StorageService(routing, targets, env, process.log, lease)
        services.append(service)
        server = Server([service], cluster=cluster, node=directory.facts.get("node", 0), secret=secret)
        try:
            await _join(process, directory, server, membership, targets, env, routing)
            await process.stopped()
        finally:
            await server.stop()
    finally:
        await process.end_workers()
        await _leave(membership, targets)
        for target in targets:
            await target.close()
        await env.close()


async def _join(
    process: Process,
    directory: DataDirectory,
    server: Server,
    membership: Membership,
    targets: Sequence[Target],
    env: AioEnvironment,
    routing: RoutingTable,
) -> None:
    """Listen, register, start the background workers, report readiness."""
    options = process.options
    listen = options.listen or [f"unix:{directory.path / 'storage.sock'}"]
    addresses = [await server.listen(address) for address in listen]
    node = membership.node
    node.id = directory.facts.get("node", 0)
    node.kind = NODE_KIND_STORAGE
    node.addresses.extend(addresses)
    node.host, node.name, node.process, node.software = boot_id(), options.name, PROCESS, SOFTWARE
    node.rack = options.rack
    membership.targets = lambda: [Reported(target.entry(), target.replica.chain) for target in targets]
    if await _unless_stopped(process, membership.register()) is None:
        return
    if node.id != directory.facts.get("node"):
        directory.remember(node=node.id)
    server.settings = replace(server.settings, node=node.id)
    process.spawn(membership.heartbeats(), "heartbeats")
    process.spawn(_watch(env, membership, routing), "routing")
    peers = Peers(env, routing, node.host)
    for target in targets:
        _keep(process, target, targets, peers, env, membership)
    _add_metrics(process, targets)
    process.ready(node=node.id, addresses=addresses, cluster=server.settings.cluster)


def _keep(
    process: Process,
    target: Target,
    targets: Sequence[Target],
    peers: Peers,
    env: AioEnvironment,
    membership: Membership,
) -> None:
    """Start what a target needs in the background."""

    def load() -> tuple[int, int]:
        all_counters = [each.counters for each in targets]
        moved = sum(counters.bytes_read + counters.bytes_written for counters in all_counters)
        return moved, sum(counters.reads + counters.writes for counters in all_counters)

    repairer = Repairer(target, peers, env, process.log)
    Resyncer(target, peers, env, process.log, load).routing_changed()  # registered already: our place may be known
    scrubber = Scrubber(target, process.options.scrub_rate, membership.living, repairer)
    process.spawn(target.keep_retrying(), f"retries of {target.path}")
    process.spawn(target.keep_checkpointing(), f"checkpoints of {target.path}")
    process.spawn(scrubber.run(), f"scrubber of {target.path}")


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


async def open_all(
    process: Process, paths: Sequence[str], cluster: str, env: AioEnvironment, lease: Lease
) -> list[Target]:
    """Open the targets. One whose disk fails is left out, loudly, as long as another one opens; what the operator has to put right (a
    foreign or newer format, a directory in use) is raised."""
    targets = []
    failure: StatusError | None = None
    for path in paths:
        try:
            targets.append(await open_one(process, path, cluster, env, lease))
        except StatusError as failed:
            if failed.status is not Status.IO_ERROR:
                raise
            failure = failed
            process.log.error("target left out", path=path, error=failed.strerror)
    if failure is not None and not targets:
        raise failure
    return targets


async def open_one(process: Process, path: str, cluster: str, env: AioEnvironment, lease: Lease) -> Target:
    """Open (or format) a target, in a thread: recovery reads. Raises BAD_FORMAT, WRONG_CLUSTER, BUSY_RESOURCE, INVALID, IO_ERROR."""
    options = process.options
    pool = ThreadPoolExecutor(THREADS_PER_TARGET, thread_name_prefix=f"emberfs-{os.path.basename(path)}")
    loop = asyncio.get_running_loop()

    def blocking(work: Callable[..., Any], *arguments: Any) -> Any:
        return loop.run_in_executor(pool, work, *arguments)

    def opened() -> Any:
        os.makedirs(path, mode=0o700, exist_ok=True)
        return open_target(path, cluster=cluster, capacity=capacity_of(path, options.capacity), direct=options.direct)

    try:
        engine, found = await blocking(opened)
    except StatusError:
        raise
    except OSError as failed:
        raise error(Status.IO_ERROR, f"target {path} cannot be opened: {failed.strerror or failed}") from failed
    if engine.found.opened is Opened.POWER_LOSS:
        process.log.warning("power was lost", path=path, fell_back=len(engine.found.fell_back))
    process.log.info("target opened", path=path, how=engine.found.opened.value, chunks=engine.found.chunks)
    return Target(engine, path, found.incarnation, blocking, env, process.log, lease)


def capacity_of(path: str, wanted: int) -> int:
    """Bytes that the target may take: what was asked for; else 0 for a formatted target (as it was formatted), else a part of
    what the disk has free."""
    if wanted or os.path.exists(os.path.join(path, "format.json")):
        return wanted
    return int(shutil.disk_usage(path).free * CAPACITY_PART) // 4096 * 4096


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


async def _leave(membership: Membership, targets: Sequence[Target]) -> None:
    """Tell the manager that our targets are going, if it is there."""
    if not membership.node.id:
        return

    def offline() -> list[Reported]:
        entries = [target.entry() for target in targets]
        for entry in entries:
            entry.state = LOCAL_STATE_OFFLINE
        return [Reported(entry) for entry in entries]

    membership.targets = offline
    try:
        async with asyncio.timeout(LEAVE_SECONDS_MAX):
            await membership.heartbeat()
    except (TimeoutError, StatusError):
        pass  # it will notice the silence


def _add_metrics(process: Process, targets: Sequence[Target]) -> None:
    values: dict[tuple[str, str], Callable[[Target], float]] = {
        ("bytes_used", "Bytes in slots"): lambda t: t.engine.space_info().used,
        ("bytes_capacity", "Bytes that the target may take"): lambda t: t.engine.space_info().capacity,
        ("chunks", "Chunks"): lambda t: t.engine.space_info().chunks,
        ("online", "1 unless the disk has taken the target out"): lambda t: not t.engine.failed,
        ("read_only", "1 after a write to the disk failed"): lambda t: bool(t.read_only),
        ("bytes_read", "Served to clients since the start"): lambda t: t.counters.bytes_read,
        ("bytes_written", "Taken from clients since the start"): lambda t: t.counters.bytes_written,
        ("reads", "Read operations since the start"): lambda t: t.counters.reads,
        ("reads_missed", "Read operations that had to wait for the disk"): lambda t: t.counters.reads_missed,
        ("writes", "Updates since the start"): lambda t: t.counters.writes,
        ("checksum_errors", "Damaged chunks met since the start"): lambda t: t.counters.checksum_errors,
        ("io_errors", "Errors of the disk since the start"): lambda t: t.counters.io_errors,
    }
    for (name, text), read in values.items():
        gauge = Gauge(f"emberfs_target_{name}", text, ["target"], registry=process.metrics.registry)
        for target in targets:
            gauge.labels(target=str(target.id)).set_function(partial(read, target))


__all__ = ["Blocking", "main", "serve"]

if __name__ == "__main__":
    raise SystemExit(main())
