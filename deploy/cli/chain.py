"""`chain plan`: what chains a set of disks gives, or which members move when disks come and go. It changes nothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Failed, console, human, say, write_json

if TYPE_CHECKING:
    from ..placement import Chain, Disk, Plan, Request

ROWS_SHOWN_DEFAULT = 16

chain = typer.Typer(
    name="chain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@chain.callback()
def _group() -> None:
    """Chains: which targets hold the same chunks."""


@chain.command("plan")
def plan(
    description: Annotated[
        str,
        typer.Argument(
            help="TOML or JSON with nodes, disks and chains. Default: the running cluster.", show_default=False
        ),
    ] = "",
    replicas: Annotated[
        int, typer.Option(help="Members of each chain. Default: as described, or as they are.", show_default=False)
    ] = 0,
    domain: Annotated[
        str, typer.Option(help="What members may not share: node, host or rack. Default: host.", show_default=False)
    ] = "",
    seats: Annotated[
        int, typer.Option(help="Members that a disk of average size takes. Default: 6.", show_default=False)
    ] = 0,
    drain: Annotated[
        list[str] | None, typer.Option(help="A node or disk to empty. Repeatable.", show_default=False)
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="A node or disk that is gone for good. Repeatable.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Plan as if there were no chains yet.")] = False,
    seconds: Annotated[float, typer.Option(help="For improving new chains; 0: the first answer.", min=0)] = 10.0,
    rows: Annotated[
        int, typer.Option(help="Show at most so many chains and moves (0: all).", min=0)
    ] = ROWS_SHOWN_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines: everything.")] = False,
) -> None:
    """Show which chains to make, or which members have to move. Nothing is changed.

    Recovery is spread as evenly as can be: the pair load is the number of chains that two hosts share.
    """
    from ..placement import plan as make
    from ..placement import replan

    try:
        document = _read(description) if description else _running()
        document |= {
            key: value
            for key, value in (("replicas", replicas), ("domain", domain), ("seats_per_disk", seats))
            if value
        }
        request, chains = _request(document, drain or [], remove or [])
        found = replan(request, chains) if chains and not fresh else make(request, seconds)
    except ValueError as wrong:
        raise Failed(str(wrong), 2 if not _is_infeasible(wrong) else 1) from wrong
    if as_json:
        write_json(_plain(found))
    else:
        _show(request, found, rows)


def _is_infeasible(wrong: ValueError) -> bool:
    from ..placement import InfeasibleError

    return isinstance(wrong, InfeasibleError)


def _read(path: str) -> dict[str, Any]:
    import json
    import tomllib
    from pathlib import Path

    text = Path(path).read_text(encoding="utf-8")
    try:
        document = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except ValueError as wrong:
        raise ValueError(f"{path}: {wrong}") from wrong
    assert isinstance(document, dict)  # neither format has another outermost value that begins so
    return document


def _running() -> dict[str, Any]:
    """The description of the running cluster: each target takes one member; an offline one without a chain takes none."""
    from ...proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, NODE_KIND_STORAGE
    from .paths import connected

    with connected() as client:
        routing = client.status().routing
    names = {target.id: f"{_node_name(routing, target.node)}/{target.id}" for target in routing.targets}
    members = {member.target for chain in routing.chains for member in chain.members}
    used = {target.id: target.used for target in routing.targets}
    nodes = []
    for node in routing.nodes:
        if node.kind != NODE_KIND_STORAGE:
            continue
        disks = [
            {"name": names[target.id], "capacity": target.capacity, "seats_max": 1}
            for target in routing.targets
            if target.node == node.id and (target.id in members or target.state != LOCAL_STATE_OFFLINE)
        ]
        if disks:
            nodes.append({"name": _node_name(routing, node.id), "host": node.host, "disk": disks})
    chains = [
        {
            "id": chain.id,
            "members": [names[member.target] for member in chain.members if member.target in names],
            "size": max((used.get(member.target, 0) for member in chain.members), default=0),
        }
        for chain in routing.chains
    ]
    longest = max((len(chain["members"]) for chain in chains), default=1)
    return {"replicas": longest, "node": nodes, "chain": chains}


def _node_name(routing: Any, node_id: int) -> str:
    return next((node.name for node in routing.nodes if node.id == node_id and node.name), f"node-{node_id}")


def _request(document: dict[str, Any], drain: list[str], remove: list[str]) -> tuple[Request, list[Chain]]:
    from ..placement import read_description
    from ..placement.model import Standing

    request, chains = read_description(document)
    disks: list[Disk] = list(request.disks)
    for names, standing in ((drain, Standing.DRAINING), (remove, Standing.GONE)):
        for name in names:
            if not any(name in (disk.name, disk.node) for disk in disks):
                raise ValueError(f"no node and no disk is called {name!r}")
            disks = [replace(disk, standing=standing) if name in (disk.name, disk.node) else disk for disk in disks]
    return (replace(request, disks=disks) if drain or remove else request), chains


def _plain(found: Plan) -> dict[str, Any]:
    return {
        "method": found.method,
        "figures": asdict(found.figures),
        "notes": list(found.notes),
        "moves": [asdict(move) for move in found.moves],
        "chains": [
            {"id": chain.id or number + 1, "members": list(chain.members)} for number, chain in enumerate(found.chains)
        ],
    }


def _show(request: Request, found: Plan, rows: int) -> None:
    from rich.table import Table

    figures = found.figures
    say(f"   chains: {figures.chains} of {request.replicas} over {figures.points} {_points(request)}")
    say(
        f"  members: {_span(figures.seats_min, figures.seats_max)} on a disk, which leads at most {figures.heads_max} chains"
    )
    proof = "the least there can be" if figures.is_optimal else f"no plan has less than {figures.pair_load_bound}"
    say(f"pair load: {figures.pair_load_max} at most ({proof}), {figures.disk_pair_load_max} between two disks")
    say(f"    space: {human(figures.usable)} of files in {human(figures.raw)} of disks")
    if found.method == "replan":
        say(f"    moves: {figures.moves} (at least {figures.moves_bound}), {human(figures.bytes_to_move)} to copy")
    for note in found.notes:
        say(f"     note: {note}")
    moves, chains = found.moves[: rows or None], found.chains[: rows or None]
    if found.method == "replan":
        table = Table("chain", "from", "to", "bytes", box=None)
        for move in moves:
            table.add_row(str(move.chain), move.source or "-", move.target, human(move.size))
        if moves:
            console().print(table)
    else:
        table = Table("chain", "members, head first", box=None)
        for number, entry in enumerate(chains):
            table.add_row(str(number + 1), "  ".join(entry.members))
        console().print(table)
    hidden = len(found.moves) - len(moves) if found.method == "replan" else len(found.chains) - len(chains)
    if hidden:
        say(f"... and {hidden} more (--rows 0 shows all)")
    say("Nothing was changed.")


def _points(request: Request) -> str:
    from ..placement import Domain

    return "nodes" if request.domain is Domain.NODE else "hosts"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
