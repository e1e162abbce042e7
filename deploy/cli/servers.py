"""The cluster of this machine: up, down."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Failed, counted, parse_duration, parse_level, parse_size, say, write_json

if TYPE_CHECKING:
    from ..local import LocalCluster

_DATA_HELP = "Data directory. Default: $EMBERFS_DATA, else ~/.local/share/emberfs."
_PORT_HELP = "Serve TCP on this port too (0: any free one). Default: Unix sockets only."
_CAPACITY_HELP = "What each storage target may hold, as 500G. Default: its part of the disk."
_NODES_HELP = "Storage processes. More than before: new ones join. Default: as many as there are, or as replicas."
_REPLICAS_HELP = "Copies of each chunk, each on another node. Default: 1. Cannot change later."
_TARGETS_HELP = "Targets that a node begins with. Default: as many as replicas."

_KV_CAPACITY_HELP = "What each target for KV blocks may hold, as 500G; 0: none. Default: a quarter of what the node's other targets may."
_KV_REPLICAS_HELP = "Copies of each KV block. Default: 1, also where files have several."
_KV_MEMORY_HELP = "Memory for KV blocks, of all storage nodes, as 64G. Default: a quarter of this machine's."
_METAS_HELP = "Metadata servers; more than one needs a --kv that they can share. Default: as many as there are, or one."
_KV_HELP = (
    "Where the metadata lie. Default: in the data directory (RocksDB). Several servers share postgresql://user@host/database "
    "(PostgreSQL, CockroachDB, YugabyteDB; the password in PGPASSFILE) or fdb:///path/of/fdb.cluster (experimental)."
)

_Data = Annotated[str, typer.Option("--data", help=_DATA_HELP, show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]


def up(
    ctx: typer.Context,
    data: _Data = "",
    mount: Annotated[
        str, typer.Option(help="Mount it on this directory too, now and with each later 'up'.", show_default=False)
    ] = "",
    nodes: Annotated[int | None, typer.Option(help=_NODES_HELP, show_default=False)] = None,
    replicas: Annotated[int | None, typer.Option(help=_REPLICAS_HELP, show_default=False)] = None,
    targets: Annotated[int | None, typer.Option(help=_TARGETS_HELP, show_default=False)] = None,
    kv_capacity: Annotated[str, typer.Option(help=_KV_CAPACITY_HELP, show_default=False)] = "",
    kv_replicas: Annotated[int | None, typer.Option(help=_KV_REPLICAS_HELP, show_default=False)] = None,
    kv_memory: Annotated[str, typer.Option(help=_KV_MEMORY_HELP, show_default=False)] = "",
    metas: Annotated[int | None, typer.Option(help=_METAS_HELP, show_default=False)] = None,
    kv: Annotated[str, typer.Option(help=_KV_HELP, metavar="URL", show_default=False)] = "",
    port: Annotated[int, typer.Option(help=_PORT_HELP, show_default=False)] = -1,
    host: Annotated[str, typer.Option(help="Address to serve TCP on. Default: 127.0.0.1.", show_default=False)] = "",
    capacity: Annotated[str, typer.Option(help=_CAPACITY_HELP, show_default=False)] = "",
    direct: Annotated[
        bool | None, typer.Option(help="Bypass the page cache on the servers' side.", show_default=False)
    ] = None,
    trash: Annotated[
        str,
        typer.Option(help="How long removed files are kept, as 12h or 7d; 'off'. Default: a day.", show_default=False),
    ] = "",
    grpc: Annotated[str, typer.Option(help="Serve gRPC for other tools on HOST:PORT.", show_default=False)] = "",
    log_level: Annotated[str, typer.Option(help="Of the servers' logs: debug, info, warning or error.")] = "info",
    as_json: _Json = False,
) -> None:
    """Start a cluster on this machine in the background, or what of it does not run.

    Options are remembered: a later 'emberfs up' brings the same cluster back, after a kill or a reboot too.

    With --replicas R every chunk lies on R nodes, and any of them may fail: 'emberfs up --replicas 3' starts three storage
    processes, 'emberfs up --nodes 5' adds two later, and 'emberfs chain apply' moves their share to them.
    """
    from .. import mounts
    from ..local import LocalCluster

    cluster = LocalCluster(
        data or None,
        port=None if port == -1 else port,
        host=host or None,
        capacity=parse_size(capacity) if capacity else None,
        direct=direct,
        grpc=grpc or None,
        nodes=nodes,
        replicas=replicas,
        targets=targets,
        kv_capacity=parse_size(kv_capacity) if kv_capacity else None,
        kv_replicas=kv_replicas,
        kv_memory=parse_size(kv_memory) if kv_memory else None,
        trash=parse_duration(trash) if trash else None,
        metas=metas,
        kv=kv or None,
        log_level=parse_level(log_level),
    )
    begin = time.monotonic()
    if mount:
        mounts.check(mount, cluster.url)  # before there is a cluster that nobody can reach that way
    started = cluster.start()
    if mount:
        mounts.remember(cluster, mount)
    places, trouble = mounts.start_remembered(cluster)
    status = cluster.status()
    if as_json:
        write_json({"started": started, "url": cluster.url, "mounts": places, **status})
        if trouble is not None:
            raise trouble
        return
    pids = ", ".join(f"{server['name']} {server['pid']}" for server in status["servers"])
    what = f"started in {time.monotonic() - begin:.1f} s" if started else "is running already"
    say(f"Cluster {status['cluster']} {what} ({pids}). Data and logs: {status['data']}")
    options = cluster.record["options"]
    if len(cluster.nodes) > 1:
        copies = "one copy" if options["replicas"] == 1 else f"{options['replicas']} copies"
        say(f"{counted(len(cluster.nodes), 'storage node')}, {copies} of each chunk, each on another node.")
    for place in places:
        say(f"It is mounted on {place}.")
    _say_how_to_go_on(ctx, cluster, status)
    if trouble is not None:
        raise trouble


def _say_how_to_go_on(ctx: typer.Context, cluster: LocalCluster, status: dict[str, Any]) -> None:
    from ...proto.settings import default_data_dir

    # 'emberfs --data DIR up' has set $EMBERFS_DATA for this process alone.
    named = ctx.find_root().params.get("data")
    default = not named and default_data_dir().absolute() == cluster.data
    command = "emberfs" if default else f"emberfs --data {shlex.quote(str(cluster.data))}"
    url = "ember://" if default else cluster.url.rstrip("/")
    ways = (
        (f"{command} put -r FOLDER /", "copy a folder in"),
        (f"{command} ls -l /", "look at it"),
        (f"{command} mount DIRECTORY", "for every program that knows only paths"),
        (f"{command} status", "servers, targets, chains, space"),
        (f"{command} kv stats", "the cache of inference workers' KV blocks"),
        (f"{command} down", "stop it; 'up' brings it back"),
        (f"pandas.read_parquet('{url}/FILE')", "in Python, as everything that speaks fsspec"),
        (f"emberfs.connect({'' if default else repr(cluster.url)})", "in Python, a client"),
    )
    width = max(len(line) for line, _ in ways)
    for line, meaning in ways:
        say(f"  {line:<{width}}  {meaning}")
    tcp = [address for address in status["servers"][0]["addresses"] if address.startswith("tcp:")]
    if tcp:
        say(
            f"  ember://{tcp[0].removeprefix('tcp:')}/        from other programs, with EMBERFS_SECRET_FILE={cluster.data}/secret"
        )


def down(data: _Data = "") -> None:
    """Stop the cluster of this machine. Its data stays."""
    cluster = existing(data)
    running = [server.name for server in cluster.servers.values() if server.pid()]
    killed = cluster.stop()
    if not running:
        say("It was not running.")
    elif killed:
        say(
            f"Stopped; {' and '.join(killed)} did not stop in time and had to be killed (nothing acknowledged is lost)."
        )
    else:
        say(f"Stopped. 'emberfs up' brings it back; its data is in {cluster.data}.")


def existing(data: str) -> LocalCluster:
    """The cluster of a data directory; that there is none is exit code 3."""
    from ..local import LocalCluster

    cluster = LocalCluster(data or None)
    try:
        cluster.record  # noqa: B018 -- raises where no cluster is
    except FileNotFoundError as missing:
        raise Failed(str(missing.strerror), 3) from missing
    return cluster
