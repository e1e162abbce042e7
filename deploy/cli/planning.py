"""What `chain plan` shows: chains for disks that are described, or the moves that a running cluster needs. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ...proto.blocks import TABLE_OF_FILES
from .output import Failed, console, human, say, write_json

if TYPE_CHECKING:
    from ..placement import Chain, Disk, Domain, Plan, Request
    from ..placement.moves import Wish
    from ..placement.view import ClusterView


def show_new(
    description: str,
    changes: dict[str, int | str],
    drain: list[str],
    remove: list[str],
    *,
    fresh: bool,
    seconds: float,
    rows: int,
    as_json: bool,
) -> None:
    """New chains, or moves, of a description ("": the running cluster); what is not empty in `changes` overrides it."""
    from ..placement import plan as make
    from ..placement import replan

    try:
        document = _read(description) if description else _running()
        document |= {key: value for key, value in changes.items() if value}
        request, chains = _request(document, drain, remove)
        found = replan(request, chains) if chains and not fresh else make(request, seconds)
    except ValueError as wrong:
        raise Failed(str(wrong), 2 if not _is_infeasible(wrong) else 1) from wrong
    if as_json:
        write_json(_plain(found))
    else:
        _show(request.replicas, request.domain, found, rows, space=True)
        say("Nothing was changed.")


def show_moves(view: ClusterView, wish: Wish, rows: int, as_json: bool) -> None:
    """What `apply` would do now."""
    from ..placement.moves import decide, plan_of

    def name(disk: str) -> str:
        return disk_name(view, disk)

    decision, found = decide(view, wish), plan_of(view, wish)
    if as_json:
        document = _plain(found, name) if found else {"moves": [], "chains": _members(view)}
        write_json(document | {"blocked": decision.blocked})
        return
    if found:
        _show(view.replicas, wish.domain or view.widest_domain(), found, rows, name)
    for sentence in decision.blocked:
        say(f"  waiting: {sentence}")
    for number in decision.retiring:
        say(f"chain {number} goes: the manager takes it out of the table first")
    for moving in decision.moving:
        say(f"under way: target {moving.target} is copied to in chain {moving.chain}")
    if decision.is_done:
        say(settled([view]))
    elif decision.moves or decision.retiring or decision.finish:
        say("'emberfs chain apply' does it. Nothing was changed.")


def settled(views: Sequence[ClusterView]) -> str:
    """What to say where nothing is left to move. A member that is away may come back, so its place is not given to another by itself."""
    short = [
        str(chain.id)
        for view in views
        if not view.is_cache
        for chain in view.chains
        if chain.serving < len(chain.members)
    ]
    if not short:
        return "All members are where they should be."
    which = (
        f"chain {short[0]} lacks one that is" if len(short) == 1 else f"chains {', '.join(short)} lack some that are"
    )
    return (
        f"All members are where they should be, but {which} away: start the node, or give the place to another "
        "('emberfs target replace', or 'emberfs chain apply --keep')."
    )


def _members(view: ClusterView) -> list[dict[str, Any]]:
    return [{"id": entry.id, "members": [str(m.target) for m in entry.members]} for entry in view.chains]


def disk_name(view: ClusterView, name: str) -> str:
    """A disk of a plan for people: its node, and its folder where the node has several."""
    number, _, folder = name.partition(":")
    if not number.isdigit():
        return name
    entry = view.nodes[int(number)]
    folders = {target.folder for target in view.targets.values() if target.node == entry.id}
    return (entry.name or f"node {entry.id}") + (f":{folder}" if len(folders) > 1 else "")


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
    targets = [target for target in routing.targets if (target.table or TABLE_OF_FILES) == TABLE_OF_FILES]
    names = {target.id: f"{_node_name(routing, target.node)}/{target.id}" for target in targets}
    members = {member.target for chain in routing.chains for member in chain.members}
    used = {target.id: target.used for target in targets}
    nodes = []
    for node in routing.nodes:
        if node.kind != NODE_KIND_STORAGE:
            continue
        disks = [
            {"name": names[target.id], "capacity": target.capacity, "seats_max": 1}
            for target in targets
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
        if any(member.target in names for member in chain.members)
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


def _plain(found: Plan, name: Callable[[str], str] = str) -> dict[str, Any]:
    return {
        "method": found.method,
        "figures": asdict(found.figures),
        "notes": list(found.notes),
        "moves": [asdict(move) | {"source": name(move.source), "target": name(move.target)} for move in found.moves],
        "chains": [
            {"id": chain.id or number + 1, "members": [name(member) for member in chain.members]}
            for number, chain in enumerate(found.chains)
        ],
    }


def _show(
    replicas: int, domain: Domain, found: Plan, rows: int, name: Callable[[str], str] = str, *, space: bool = False
) -> None:
    from rich.table import Table

    figures = found.figures
    say(f"   chains: {figures.chains} of {replicas} over {figures.points} {_points(domain)}")
    say(
        f"  members: {_span(figures.seats_min, figures.seats_max)} on a disk, which leads at most {figures.heads_max} chains"
    )
    proof = "the least there can be" if figures.is_optimal else f"no plan has less than {figures.pair_load_bound}"
    say(f"pair load: {figures.pair_load_max} at most ({proof}), {figures.disk_pair_load_max} between two disks")
    if space:
        say(f"    space: {human(figures.usable)} of files in {human(figures.raw)} of disks")
    if found.method == "replan":
        say(f"    moves: {figures.moves} (at least {figures.moves_bound}), {human(figures.bytes_to_move)} to copy")
    for note in found.notes:
        say(f"     note: {note}")
    moves, chains = found.moves[: rows or None], found.chains[: rows or None]
    if found.method == "replan":
        table = Table("chain", "from", "to", "bytes", box=None)
        for entry in moves:
            table.add_row(str(entry.chain), name(entry.source) or "-", name(entry.target), human(entry.size))
        if moves:
            console().print(table)
    else:
        table = Table("chain", "members, head first", box=None)
        for number, made in enumerate(chains):
            table.add_row(str(number + 1), "  ".join(made.members))
        console().print(table)
    hidden = len(found.moves) - len(moves) if found.method == "replan" else len(found.chains) - len(chains)
    if hidden:
        say(f"... and {hidden} more (--rows 0 shows all)")


def _points(domain: Domain) -> str:
    from ..placement import Domain

    return "nodes" if domain is Domain.NODE else "hosts"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
