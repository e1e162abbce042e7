"""`emberfs target`: single targets out of service, back, or replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .moving import AT_ONCE, KINDS, AtOnce, Rate, Yes, administration, confirm, look_everywhere, move
from .output import Failed, console, human, painted, say, write_json

if TYPE_CHECKING:
    from ..administration import Administration
    from ..placement.view import ClusterView, TargetView

target = typer.Typer(
    name="target",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Number = Annotated[int, typer.Argument(help="As 'emberfs target list' shows it.")]


@target.callback()
def _group() -> None:
    """Targets: the directories on disks that hold chunks. Each is a member of at most one chain."""


@target.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False) -> None:
    """Show the targets: on which node, in which chain, how full."""
    with administration() as connection:
        views = look_everywhere(connection)
    found = [_described(view, entry) for view in views for entry in view.targets.values()]
    if as_json:
        write_json(found)
        return
    from rich.table import Table

    table = Table("target", "node", "for", "chain", "state", "chunks", "used", "capacity", "folder", box=None)
    for row in found:
        colour = {"SERVING": "green", "spare": "cyan", "SYNCING": "yellow", "WAITING": "yellow"}.get(
            str(row["state"]), "red"
        )
        sizes = (human(int(row["used"])), human(int(row["capacity"])))
        state = painted(str(row["state"]), colour)
        chain = str(row["chain"] or "-")
        table.add_row(
            str(row["target"]),
            str(row["node"]),
            str(row["for"]),
            chain,
            state,
            str(row["chunks"]),
            *sizes,
            str(row["folder"]),
        )
    console().print(table)


def _described(view: ClusterView, entry: TargetView) -> dict[str, str | int]:
    return {
        "target": entry.id,
        "node": view.node_of(entry.id).name or str(entry.node),
        "for": KINDS[view.table],
        "chain": found.id if (found := view.chain_of(entry.id)) else 0,
        "state": state_of(view, entry),
        "chunks": entry.chunks,
        "used": entry.used,
        "capacity": entry.capacity,
        "folder": entry.folder,
    }


def state_of(view: ClusterView, entry: TargetView) -> str:
    """For people: what it is in its chain, or why it is in none."""
    from ...proto.gen.common_pb2 import TargetState

    if entry.disabled:
        return "disabled"
    if not entry.up:
        return "silent" if not view.node_of(entry.id).up else "failed"
    chain = view.chain_of(entry.id)
    if chain is None:
        return "spare" if entry.takes else "full or damaged"
    state = next(member.state for member in chain.members if member.target == entry.id)
    return TargetState.Name(state).removeprefix("TARGET_STATE_")


@target.command("offline")
def offline(number: _Number, yes: Yes = False) -> None:
    """Take a target out of service: for work on its disk, say. It keeps what it holds, and misses what is written meanwhile.

    When it is online again, the chain copies to it what it missed. To give it up for good, use 'emberfs target replace'.
    """
    with administration() as connection:
        view = _known(connection, number)
        chain = view.chain_of(number)
        if chain and [m.target for m in chain.members if m.serves] == [number]:
            confirm(
                f"Target {number} is the last one that serves chain {chain.id}: its chunks cannot be read without it. Go on?",
                yes,
            )
        connection.set_target(number, disabled=True)
    say(f"target {number}: out of service. 'emberfs target online {number}' brings it back.")


@target.command("online")
def online(number: _Number) -> None:
    """Put a target back into service."""
    with administration() as connection:
        _known(connection, number)
        connection.set_target(number, disabled=False)
    say(f"target {number}: in service. Its chain copies to it what it missed (see 'emberfs status --watch').")


@target.command("replace")
def replace(number: _Number, at_once: AtOnce = AT_ONCE, rate: Rate = "", yes: Yes = False) -> None:
    """Give a target up: its place in the chain goes to another one, on the same node if need be, and it is deleted.

    Its chain copies to the other one while clients work. As long as it serves it goes only when the other one does.

    One for KV blocks that have one copy goes with them, as soon as no key goes to it any more; a new one begins empty.
    """
    from ..chains import begin_blocks
    from ..placement.moves import Wish

    with administration() as connection:
        view = _known(connection, number)
        confirm(f"Give up target {number}, and delete what it holds?", yes)
        if view.is_cache:
            connection.set_target(number, disabled=True)
        move(connection, Wish(lost=frozenset({number})), at_once, rate, view.table)
        if view.is_cache and (node := view.node_of(number)).up and not node.draining:
            begin_blocks(connection, view, node.id)
    say(f"target {number}: replaced.")


def _known(connection: Administration, number: int) -> ClusterView:
    """The cluster as it is, with all targets of the kind of this one. Raises Failed where there is none."""
    for view in look_everywhere(connection):
        if number in view.targets:
            return view
    raise Failed(f"there is no target {number} (see: emberfs target list)")
