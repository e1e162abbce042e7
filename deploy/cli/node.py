"""`emberfs node`: storage processes come, are emptied, and go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from .moving import (
    AT_ONCE,
    AtOnce,
    DomainOption,
    Rate,
    Yes,
    administration,
    confirm,
    domain_of,
    limit_of,
    look,
    look_everywhere,
    move,
    node_named,
)
from .output import Failed, console, human, painted, say, write_json

if TYPE_CHECKING:
    from ...proto.settings import Location
    from ..administration import Administration
    from ..local import LocalCluster
    from ..placement.view import ClusterView, NodeView

node = typer.Typer(
    name="node",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Names = Annotated[list[str], typer.Argument(help="Names or numbers, as 'emberfs node list' shows them.")]


@node.callback()
def _group() -> None:
    """Storage nodes: the processes that hold targets.

    A new one begins with empty targets; 'emberfs chain apply' moves members of chains there. One that is to go is drained first: its
    members move to the others while clients work. Both may be interrupted and repeated at any time.
    """


@node.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False) -> None:
    """Show the storage nodes: where they are, whether they are there, what they hold."""
    with administration() as connection:
        view, blocks = look_everywhere(connection)
    found = [_described(view, blocks, entry) for entry in view.nodes.values()]
    if as_json:
        write_json(found)
        return
    from rich.table import Table

    columns = ("node", "name", "state", "targets", "members", "used", "capacity", "KV used", "host", "rack")
    table = Table(*columns, box=None)
    for row in found:
        colour = {"up": "green", "draining": "yellow"}.get(str(row["state"]), "red")
        sizes = [human(int(row[name])) for name in ("used", "capacity", "kv_used")]
        host = str(row["host"])[:8]
        counts = (str(row["targets"]), str(row["members"]))
        state = painted(str(row["state"]), colour)
        table.add_row(str(row["node"]), str(row["name"]), state, *counts, *sizes, host, str(row["rack"]))
    console().print(table)


def _described(view: ClusterView, blocks: ClusterView, entry: NodeView) -> dict[str, str | int]:
    targets = [target for target in view.targets.values() if target.node == entry.id]
    for_blocks = [target for target in blocks.targets.values() if target.node == entry.id]
    members = view.members()
    return {
        "node": entry.id,
        "name": entry.name,
        "state": "silent" if not entry.up else "draining" if entry.draining else "up",
        "targets": len(targets),
        "members": sum(target.id in members for target in targets),
        "used": sum(target.used for target in targets),
        "capacity": sum(target.capacity for target in targets),
        "kv_targets": len(for_blocks),
        "kv_used": sum(target.used for target in for_blocks),
        "kv_capacity": sum(target.capacity for target in for_blocks),
        "host": entry.host,
        "rack": entry.rack,
    }


@node.command("add")
def add(
    count: Annotated[int, typer.Option(help="How many.", min=1)] = 1,
    data: Annotated[str, typer.Option("--data", help="Data directory of the cluster.", show_default=False)] = "",
) -> None:
    """Start more storage processes in the cluster of this machine (as 'emberfs up --nodes' does).

    On another machine, start one by hand; it finds its place by itself:

        python -m emberfs.storage.server --data DIR --meta tcp:HOST:PORT --listen tcp:HOST:0 --secret-file FILE --spare

    With --kv-target DIR it has a part of the KV cache, too.
    """
    from ..local import LocalCluster

    local = LocalCluster(data or None)
    before = set(local.record["servers"])
    grown = LocalCluster(local.data, nodes=len(local.nodes) + count)
    grown.start()
    added = [name for name in grown.nodes if name not in before]
    say(f"Started {', '.join(added)}. 'emberfs chain apply' moves their share of the chains there.")


@node.command("drain")
def drain(names: _Names, at_once: AtOnce = AT_ONCE, rate: Rate = "", domain: DomainOption = "") -> None:
    """Move everything off these nodes while clients work, and delete it there. They get nothing new.

    KV blocks that have one copy are not moved: within a minute or so no key goes to these nodes any more, and what they held is gone.

    The mark stays until 'emberfs node undrain'. Interrupted, repeat it: it goes on from what is there.
    """
    from ..placement.moves import Wish

    wish = Wish(domain=domain_of(domain))  # wrong usage is told before a node is marked
    limit_of(rate)
    with administration() as connection:
        view = look(connection)
        found = [node_named(view, name) for name in names]
        for entry in found:
            connection.set_node(entry.id, draining=True)
        for table in (TABLE_OF_FILES, TABLE_OF_BLOCKS):
            move(connection, wish, at_once, rate, table)
        empty = ", ".join(entry.name or str(entry.id) for entry in found)
        say(
            f"{empty}: empty. 'emberfs node remove' takes it out of the cluster, 'emberfs node undrain' into use again."
        )


@node.command("undrain")
def undrain(names: _Names) -> None:
    """Use drained nodes again: 'emberfs chain apply' moves members there as to new ones."""
    from ..chains import begin_blocks

    with administration() as connection:
        view, blocks = look_everywhere(connection)
        for entry in [node_named(view, name) for name in names]:
            connection.set_node(entry.id, draining=False)
            if not any(target.node == entry.id for target in view.targets.values()):
                connection.add_target(entry.id)
            if blocks.chains and not any(target.node == entry.id for target in blocks.targets.values()):
                begin_blocks(connection, blocks, entry.id)
            say(f"{entry.name or entry.id}: in use again.")


@node.command("remove")
def remove(name: str, yes: Yes = False, at_once: AtOnce = AT_ONCE, rate: Rate = "") -> None:
    """Forget a node. One that is gone for good: what it held is first copied from the other members to other nodes.

    One that is there must have been drained. In the cluster of this machine its process ends and its directory is deleted.
    """
    from ..placement.moves import Wish

    with administration() as connection:
        view, blocks = look_everywhere(connection)
        entry = node_named(view, name)
        held, held_blocks = (_held(each, entry) for each in (view, blocks))
        local = _local_name(entry)
        if entry.up:
            if held or held_blocks:
                count = len(held) + len(held_blocks)
                raise Failed(f"{name} holds {count} members of chains: 'emberfs node drain {name}' first")
            if not local:
                raise Failed(f"{name} is running: stop it first, or it comes back at once")
        elif held:
            confirm(
                f"{name} is silent and holds {len(held)} members of chains. Copy them from the others and give it up?",
                yes,
            )
            move(connection, Wish(lost=held), at_once, rate)
        if held_blocks and not entry.up:
            move(connection, Wish(lost=held_blocks), at_once, rate, TABLE_OF_BLOCKS)
        if local:
            _stop(local, entry)
        _forget(connection, entry)
        if local:
            local.forget(entry.name)
    say(f"{name}: removed.")


def _held(view: ClusterView, entry: NodeView) -> frozenset[int]:
    """The targets of a node that are in chains."""
    members = view.members()
    return frozenset(t.id for t in view.targets.values() if t.node == entry.id and t.id in members)


def _local_name(entry: NodeView) -> LocalCluster | None:
    """The cluster of this machine, if the node is one of its processes."""
    from ...proto.errors import StatusError
    from ...proto.settings import parse_url
    from ..local import LocalCluster

    try:
        local = LocalCluster()
        known: Location = parse_url("ember:///")
        mine = local.record
    except StatusError:
        return None
    same = known.cluster == mine["cluster"] and mine["servers"].get(entry.name, {}).get("node") == entry.id
    return local if same and Path(local.data).is_dir() else None


def _stop(local: LocalCluster, entry: NodeView) -> None:
    local.servers[entry.name].stop()


def _forget(connection: Administration, entry: NodeView) -> None:
    connection.remove_node(entry.id)
