"""The cluster of this machine: up, down, status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...proto.errors import StatusError
from .output import Failed, console, human, parse_size, say, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from ..local import LocalCluster

WATCH_SECONDS = 1.0

_DATA_HELP = "Data directory. Default: $EMBERFS_DATA, else ~/.local/share/emberfs."
_PORT_HELP = "Serve TCP on this port too (0: any free one). Default: Unix sockets only."
_CAPACITY_HELP = "What each storage target may hold, as 500G. Default: its part of the disk."
_NODES_HELP = "Storage processes. More than before: new ones join. Default: as many as there are, or as replicas."
_REPLICAS_HELP = "Copies of each chunk, each on another node. Default: 1. Cannot change later."
_TARGETS_HELP = "Targets that a node begins with. Default: as many as replicas."

_Data = Annotated[str, typer.Option("--data", help=_DATA_HELP, show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]


def up(
    data: _Data = "",
    mount: Annotated[str, typer.Option(help="Mount it there too.", show_default=False)] = "",
    nodes: Annotated[int | None, typer.Option(help=_NODES_HELP, show_default=False)] = None,
    replicas: Annotated[int | None, typer.Option(help=_REPLICAS_HELP, show_default=False)] = None,
    targets: Annotated[int | None, typer.Option(help=_TARGETS_HELP, show_default=False)] = None,
    port: Annotated[int, typer.Option(help=_PORT_HELP, show_default=False)] = -1,
    host: Annotated[str, typer.Option(help="Address to serve TCP on. Default: 127.0.0.1.", show_default=False)] = "",
    capacity: Annotated[str, typer.Option(help=_CAPACITY_HELP, show_default=False)] = "",
    direct: Annotated[
        bool | None, typer.Option(help="Bypass the page cache on the servers' side.", show_default=False)
    ] = None,
    grpc: Annotated[str, typer.Option(help="Serve gRPC for other tools on HOST:PORT.", show_default=False)] = "",
    log_level: Annotated[str, typer.Option(help="Of the servers' logs: debug, info, warning or error.")] = "info",
    as_json: _Json = False,
) -> None:
    """Start a cluster on this machine in the background, or what of it does not run.

    Options are remembered: a later 'emberfs up' brings the same cluster back, after a kill or a reboot too.
    """
    if mount:
        raise Failed(
            "--mount: mounting is not there yet; use the commands here, ember:// URLs or emberfs.connect() meanwhile"
        )
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
        log_level=log_level,
    )
    begin = time.monotonic()
    started = cluster.start()
    status = cluster.status()
    if as_json:
        write_json({"started": started, "url": cluster.url, **status})
        return
    pids = ", ".join(f"{server['name']} {server['pid']}" for server in status["servers"])
    what = f"started in {time.monotonic() - begin:.1f} s" if started else "is running already"
    say(f"Cluster {status['cluster']} {what} ({pids}). Data and logs: {status['data']}")
    _say_how_to_go_on(cluster, status)


def _say_how_to_go_on(cluster: LocalCluster, status: dict[str, Any]) -> None:
    from ...proto.settings import default_data_dir

    default = default_data_dir().absolute() == cluster.data
    command = "emberfs" if default else f"emberfs --data {cluster.data}"
    url = "ember://" if default else cluster.url.rstrip("/")
    for line, meaning in (
        (f"{command} put -r FOLDER /", "copy a folder in"),
        (f"{command} ls -l /", "look at it"),
        (f"{command} status", "servers, targets, space"),
        (f"{command} down", "stop it; 'up' brings it back"),
        (f"pandas.read_parquet('{url}/FILE')", "in Python, as everything that speaks fsspec"),
        (f"emberfs.connect({'' if default else repr(cluster.url)})", "in Python, a client"),
    ):
        say(f"  {line:<40} {meaning}")
    tcp = [address for address in status["servers"][0]["addresses"] if address.startswith("tcp:")]
    if tcp:
        say(
            f"  ember://{tcp[0].removeprefix('tcp:')}/        from other programs, with EMBERFS_SECRET_FILE={cluster.data}/secret"
        )


def down(data: _Data = "") -> None:
    """Stop the cluster of this machine. Its data stays."""
    cluster = _existing(data)
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


def status(
    data: _Data = "",
    as_json: _Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show servers, targets, chains and space. Exit code 3 unless all of it runs."""
    if watch and not as_json:
        _watch(data)
        return
    found = collect(data)
    if as_json:
        write_json(found)
    else:
        for table in tables(found):
            console().print(table)
        if found["error"]:
            say(f"\n{found['error']}")
    if not found["running"]:
        raise Failed("" if as_json else "not all servers run: 'emberfs up' starts what is missing", 3)


def _existing(data: str) -> LocalCluster:
    """The cluster of a data directory; that there is none is exit code 3."""
    from ..local import LocalCluster

    cluster = LocalCluster(data or None)
    try:
        cluster.record  # noqa: B018 -- raises where no cluster is
    except FileNotFoundError as missing:
        raise Failed(str(missing.strerror), 3) from missing
    return cluster


def collect(data: str = "") -> dict[str, Any]:
    """All that is known: the processes of a local cluster (if it is one), and what the cluster manager says (if it answers)."""
    found: dict[str, Any] = {"running": False, "error": "", "servers": [], "targets": [], "chains": []}
    url = _remote_url() if not data else ""
    if not url:
        local = _existing(data)
        found.update(local.status())
        url = local.url
        if not found["servers"][0]["pid"]:
            return found
    try:
        found.update(_ask(url))
        found["running"] = found.get("running", True) or bool(_remote_url())
    except (Failed, StatusError) as failed:
        found["running"] = False
        found["error"] = str(failed.strerror if isinstance(failed, StatusError) else failed)
    return found


def _remote_url() -> str:
    import os

    url = os.environ.get("EMBERFS_URL", "")
    return url if url.startswith("ember://") and not url.lower().startswith("ember://%2f") else ""


def _ask(url: str) -> dict[str, Any]:
    """The cluster manager's view, as plain values."""
    from ...proto.gen import cluster_pb2, common_pb2
    from .paths import connected

    with connected(url) as client:
        reply, space = client.status(), client.statfs()
    routing = reply.routing
    nodes = [
        {
            "node": node.id,
            "kind": cluster_pb2.NodeKind.Name(node.kind).removeprefix("NODE_KIND_").lower(),
            "name": node.name,
            "software": node.software,
            "addresses": list(node.addresses),
        }
        for node in routing.nodes
    ]
    targets = [
        {
            "target": target.id,
            "node": target.node,
            "state": cluster_pb2.LocalState.Name(target.state).removeprefix("LOCAL_STATE_"),
            "capacity": target.capacity,
            "used": target.used,
            "path": target.path,
        }
        for target in routing.targets
    ]
    chains = [
        {
            "chain": chain.id,
            "version": chain.version,
            "members": [
                {
                    "target": member.target,
                    "state": common_pb2.TargetState.Name(member.state).removeprefix("TARGET_STATE_"),
                }
                for member in chain.members
            ],
        }
        for chain in routing.chains
    ]
    return {
        "cluster": client.cluster_id,
        "routing_version": routing.version,
        "nodes": nodes,
        "targets": targets,
        "chains": chains,
        "clients": reply.clients,
        "inodes": reply.inodes,
        "gc_pending": reply.gc_pending,
        "space": {"total": space.total, "used": space.used, "free": space.free},
    }


def tables(found: dict[str, Any]) -> list[Table | str]:
    """What `collect` found, for people."""
    from rich.table import Column, Table

    shown: list[Table | str] = []
    head = f"cluster {found.get('cluster', '?')}" + (f"  in {found['data']}" if found.get("data") else "")
    if space := found.get("space"):
        head += f"\n{found['inodes']} inodes, {found['clients']} clients, {human(space['used'])} used of {human(space['total'])}"
        if found["gc_pending"]:
            head += f", {found['gc_pending']} removed files still being freed"
    shown.append(head)
    if found["servers"]:
        table = Table("server", "pid", "memory", "up for", Column("addresses", overflow="fold"), box=None)
        for server in found["servers"]:
            alive = bool(server["pid"])
            memory = human(server["resident_bytes"]) if alive else ""
            duration = _duration(server["uptime_s"]) if alive else ""
            pid = str(server["pid"]) if alive else "[red]down[/]"
            table.add_row(server["name"], pid, memory, duration, "\n".join(server["addresses"]))
        shown.append(table)
    if found["targets"]:
        on_chain = {member["target"]: (chain, member) for chain in found["chains"] for member in chain["members"]}
        table = Table(
            "target", "node", "disk", "chain", "state", "used", "capacity", Column("path", overflow="fold"), box=None
        )
        for target in found["targets"]:
            chain, member = on_chain.get(target["target"], ({}, {}))
            version = f"{chain['chain']}, version {chain['version']}" if chain else "-"
            state = member.get("state", "-")
            shown_state = state if state == "SERVING" else f"[red]{state}[/]"
            sizes = (human(target["used"]), human(target["capacity"]))
            table.add_row(
                str(target["target"]),
                str(target["node"]),
                target["state"],
                version,
                shown_state,
                *sizes,
                target["path"],
            )
        shown.append(table)
    return shown


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    large = [f"{value}{unit}" for value, unit in parts if value]
    return " ".join(large[:2]) or "0s"


def _watch(data: str) -> None:
    from rich.console import Group
    from rich.live import Live

    with Live(console=console(), auto_refresh=False, screen=console().is_terminal) as live:
        while True:
            try:
                found = collect(data)
                shown: list[Any] = [*tables(found), *([found["error"]] if found["error"] else [])]
            except StatusError as failed:
                shown = [str(failed.strerror)]
            live.update(Group(*shown), refresh=True)
            time.sleep(WATCH_SECONDS)
