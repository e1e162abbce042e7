"""`emberfs status`: servers, nodes, targets, chains and space; once, live, or as JSON."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...proto.blocks import TABLE_OF_FILES
from ...proto.errors import StatusError
from . import transports
from .moving import KINDS
from .output import Failed, console, counted, human, painted, write_json
from .servers import existing

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ...proto.gen.cluster_pb2 import StatusReply, Target

WATCH_SECONDS = 1.0
CHAINS_SHOWN_MAX = 40  # rows of the table, those that lack something first; --json has all
WELL = "well"
HEALTH = {WELL: "green", "copying": "yellow", "short of a member": "yellow", "not served": "red"}
COLOURS = {"SERVING": "green", "SYNCING": "yellow", "WAITING": "yellow", "LASTSRV": "magenta", "OFFLINE": "red"}


def status(
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Data directory. Default: $EMBERFS_DATA, else ~/.local/share/emberfs.", show_default=False
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C; with --json a document a line.")
    ] = False,
) -> None:
    """Show servers, targets, chains and space. Exit code 3 unless all servers run.

    A chain is well when all its members are SERVING. SYNCING: the member is copied to, and takes all writes already; WAITING: it is
    next; OFFLINE: it is not there; LASTSRV: it was the last to serve, and the chain waits for it.
    """
    if watch:
        _watch(data, as_json)
        return
    found = collect(data)
    if as_json:
        write_json(found)
    else:
        for table in tables(found):
            console().print(table)
    if not found["running"]:
        reason = found["error"] or "not all servers run: 'emberfs up' starts what is missing"
        raise Failed("" if as_json else reason, 3)


def collect(data: str = "") -> dict[str, Any]:
    """All that is known: the processes of a local cluster (if it is one), and what the cluster manager says (if it answers)."""
    from .. import mounts

    found: dict[str, Any] = {"running": False, "error": "", "servers": [], "nodes": [], "targets": [], "chains": []}
    found["transports"] = []
    found["mounts"] = mounts.listed()
    url = _remote_url() if not data else ""
    if not url:
        local = existing(data)
        found.update(local.status())
        url = local.url
        if not any(server["pid"] for server in found["servers"] if server["name"] in local.metas):
            return found
    try:
        found.update(_ask(url))
        found["running"] = found.get("running", True) or bool(_remote_url())
    except (Failed, StatusError) as failed:
        found["running"] = False
        found["error"] = str(failed.strerror if isinstance(failed, StatusError) else failed)
    return found


def _remote_url() -> str:
    """The cluster that $EMBERFS_URL names, if it is not one of this machine's directories."""
    url = os.environ.get("EMBERFS_URL", "")
    return url if url.startswith("ember://") and not url.lower().startswith("ember://%2f") else ""


def _ask(url: str) -> dict[str, Any]:
    """The cluster manager's view, as plain values."""
    from .paths import connected

    with connected(url) as client:
        reply, space = client.status(), client.statfs()
        spoken = transports.collect(client, reply.routing)
    return {
        "cluster": client.cluster_id,
        "primary": reply.primary,
        "routing_version": reply.routing.version,
        "nodes": nodes_of(reply),
        "targets": targets_of(reply),
        "chains": chains_of(reply),
        "transports": spoken,
        "clients": reply.clients,
        "inodes": reply.inodes,
        "gc_pending": reply.gc_pending,
        "space": {"total": space.total, "used": space.used, "free": space.free},
    }


def nodes_of(reply: StatusReply) -> list[dict[str, Any]]:
    """Servers as the manager knows them."""
    from ...proto.gen.cluster_pb2 import NODE_KIND_META, NODE_KIND_STORAGE, NodeKind

    silent = set(reply.silent_nodes)
    several = sum(node.kind == NODE_KIND_META for node in reply.routing.nodes) > 1
    return [
        {
            "node": node.id,
            "kind": NodeKind.Name(node.kind).removeprefix("NODE_KIND_").lower(),
            "name": node.name,
            "state": "silent"
            if node.id in silent and node.kind == NODE_KIND_STORAGE
            else "draining"
            if node.draining
            else "leads"
            if several and reply.primary.endswith(f"(node {node.id})")
            else "up",
            "software": node.software,
            "host": node.host,
            "rack": node.rack,
            "addresses": list(node.addresses),
        }
        for node in reply.routing.nodes
    ]


def targets_of(reply: StatusReply) -> list[dict[str, Any]]:
    """Targets as their servers last reported them. One for KV blocks makes room itself, and is never marked as full."""
    from ...proto.gen.cluster_pb2 import LocalState

    names = {node.id: node.name for node in reply.routing.nodes}
    marks = {"files": ("disabled", "full", "damaged"), "kv": ("disabled", "damaged")}
    return [
        {
            "target": target.id,
            "node": target.node,
            "name": names.get(target.node, ""),
            "for": _kind(target),
            "state": LocalState.Name(target.state).removeprefix("LOCAL_STATE_"),
            "marks": [mark for mark in marks[_kind(target)] if getattr(target, mark)],
            "capacity": target.capacity,
            "used": target.used,
            "chunks": target.chunks,
            "path": target.path,
        }
        for target in reply.routing.targets
    ]


def _kind(target: Target) -> str:
    return KINDS[target.table or TABLE_OF_FILES]


def chains_of(reply: StatusReply) -> list[dict[str, Any]]:
    """Chains with their members, head first; `sync` is how far a member that is copied to has come, 0 to 1. Without those that have lost
    their last member for ever."""
    from ...proto.gen.common_pb2 import TargetState
    from ..placement.view import view_of

    wanted = {kind: view_of(reply, table).replicas for table, kind in KINDS.items()}
    names = {node.id: node.name for node in reply.routing.nodes}
    targets = {target.id: target for target in reply.routing.targets}
    found = []
    for chain in reply.routing.chains:
        if not chain.members:
            continue
        members: list[dict[str, Any]] = []
        for member in chain.members:
            state = TargetState.Name(member.state).removeprefix("TARGET_STATE_")
            row = {"target": member.target, "node": member.node, "name": names.get(member.node, ""), "state": state}
            before = targets.get(int(members[-1]["target"])) if members else None
            if state == "SYNCING" and before is not None and before.sync_total:
                row["sync"] = round(before.sync_done / before.sync_total, 4)  # told by the one that copies to it
            members.append(row)
        kind = next((_kind(targets[m.target]) for m in chain.members if m.target in targets), KINDS[TABLE_OF_FILES])
        row = {"chain": chain.id, "version": chain.version, "for": kind, "wanted": wanted[kind], "members": members}
        found.append(row)
    return found


def tables(found: dict[str, Any]) -> list[Table | Text]:
    """What `collect` found, for people."""
    shown: list[Table | Text] = [_head(found)]
    if found["servers"]:
        shown.append(_server_table(found["servers"]))
    if found["mounts"]:
        shown.append(mount_table(found["mounts"]))
    remote = [node for node in found["nodes"] if node["kind"] == "storage"]
    if remote and not found["servers"]:
        shown.append(_node_table(remote))
    if found["targets"]:
        shown.append(_target_table(found))
    if any(len(chain["members"]) > 1 for chain in found["chains"]):
        shown.append(chain_table(found["chains"]))
    if any(row["transport"] != "shm" for row in found["transports"]):
        shown.append(transports.table(found["transports"]))
    return shown


def _head(found: dict[str, Any]) -> Text:
    from rich.text import Text

    head = Text(f"cluster {found.get('cluster', '?')}" + (f"  in {found['data']}" if found.get("data") else ""))
    if space := found.get("space"):
        head.append(f"\n{counted(found['inodes'], 'inode')}, {counted(found['clients'], 'client')}, ")
        head.append(f"{human(space['used'])} used of {human(space['total'])}")
        if found["gc_pending"]:
            head.append(f", {found['gc_pending']} removed files and ended clients still being cleaned up")
    for kind, title in (("files", "files"), ("kv", "KV blocks")):
        if chains := [chain for chain in found["chains"] if chain["for"] == kind]:
            head.append(f"\n{title}: ").append_text(_health(chains))
    silent = [node["name"] or str(node["node"]) for node in found["nodes"] if node["state"] == "silent"]
    draining = [node["name"] or str(node["node"]) for node in found["nodes"] if node["state"] == "draining"]
    if silent:
        head.append(f"\nsilent: {', '.join(silent)}", "red")
    if draining:
        head.append(f"\ndraining: {', '.join(draining)}", "yellow")
    return head


def _health(chains: list[dict[str, Any]]) -> Text:
    """How many chains there are, and what they lack."""
    from rich.text import Text

    counts = Counter(health_of(chain) for chain in chains)
    parts = [painted(f"{counts[word]} {word}", colour) for word, colour in HEALTH.items() if counts[word]]
    return Text(f"{counted(len(chains), 'chain')}: ").append_text(Text(", ").join(parts))


def health_of(chain: dict[str, Any]) -> str:
    """A key of `HEALTH`."""
    states = [member["state"] for member in chain["members"]]
    if all(state == "SERVING" for state in states) and len(states) >= chain["wanted"]:
        return WELL
    if "SERVING" not in states:
        return "not served"
    return "copying" if "SYNCING" in states else "short of a member"


def _server_table(servers: list[dict[str, Any]]) -> Table:
    from rich.table import Column, Table

    table = Table("server", "pid", "memory", "up for", Column("addresses", overflow="fold"), box=None)
    for server in servers:
        alive = bool(server["pid"])
        memory = human(server["resident_bytes"]) if alive else ""
        duration = _duration(server["uptime_s"]) if alive else ""
        pid = str(server["pid"]) if alive else painted("down", "red")
        table.add_row(server["name"], pid, memory, duration, "\n".join(server["addresses"]))
    return table


def mount_table(mounts: list[dict[str, Any]]) -> Table:
    """What is mounted on this machine, of whatever cluster."""
    from rich.table import Column, Table

    columns = (Column("mounted on", overflow="fold"), Column("source", overflow="fold"), "options")
    table = Table(*columns, "pid", box=None)
    for row in mounts:
        table.add_row(row["path"], row["source"], row["options"], str(row["pid"] or "?"))
    return table


def _node_table(nodes: list[dict[str, Any]]) -> Table:
    from rich.table import Column, Table

    table = Table("node", "name", "state", "rack", Column("addresses", overflow="fold"), box=None)
    for node in nodes:
        colour = {"up": "green", "leads": "green", "draining": "yellow"}.get(node["state"], "red")
        state = painted(node["state"], colour)
        table.add_row(str(node["node"]), node["name"], state, node["rack"], "\n".join(node["addresses"]))
    return table


def _target_table(found: dict[str, Any]) -> Table:
    from rich.table import Column, Table

    on_chain = {member["target"]: (chain, member) for chain in found["chains"] for member in chain["members"]}
    names = ("target", "node", "for", "chain", "state", "chunks", "used")
    columns = [Column(name, no_wrap=True) for name in names]
    table = Table(*columns, Column("path", overflow="fold"), box=None)
    for target in found["targets"]:
        chain, member = on_chain.get(target["target"], ({}, {}))
        state = _state_text(member) if member else painted("spare", "cyan")
        if marks := [*target["marks"], *(["offline"] if target["state"] == "OFFLINE" else [])]:
            state.append(f" {' '.join(marks)}", "red")
        sizes = (str(target["chunks"]), f"{human(target['used'])} of {human(target['capacity'])}")
        name = target["name"] or str(target["node"])
        path = target["path"].removeprefix(f"{found['data']}/{name}/" if found.get("data") else "")
        table.add_row(str(target["target"]), name, target["for"], str(chain.get("chain", "-")), state, *sizes, path)
    return table


def chain_table(chains: list[dict[str, Any]]) -> Table:
    """Chains with their members as node/target, those that lack something first."""
    from rich.table import Table
    from rich.text import Text

    table = Table("chain", "for", "version", "state", "members, head first", box=None)
    rows = sorted(chains, key=lambda chain: (health_of(chain) == WELL, chain["chain"]))
    for chain in rows[:CHAINS_SHOWN_MAX]:
        members = Text("  ").join(_member_text(member) for member in chain["members"])
        word = health_of(chain)
        table.add_row(str(chain["chain"]), chain["for"], str(chain["version"]), painted(word, HEALTH[word]), members)
    if len(chains) > CHAINS_SHOWN_MAX:
        table.add_row("...", "", "", "", f"and {len(chains) - CHAINS_SHOWN_MAX} more (--json shows all)")
    return table


def _member_text(member: dict[str, Any]) -> Text:
    from rich.text import Text

    text = Text(f"{member['name'] or member['node']}/{member['target']}")
    return text if member["state"] == "SERVING" else text.append(" ").append_text(_state_text(member))


def _state_text(member: dict[str, Any]) -> Text:
    state = str(member["state"])
    progress = f" {member['sync']:.0%}" if "sync" in member else ""
    return painted(state + progress, COLOURS.get(state, "red"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    large = [f"{value}{unit}" for value, unit in parts if value]
    return " ".join(large[:2]) or "0s"


def _watch(data: str, as_json: bool) -> None:
    """Until Ctrl-C; as JSON a document a line."""
    if as_json:
        while True:
            write_json(collect(data), lines=True)
            time.sleep(WATCH_SECONDS)
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
