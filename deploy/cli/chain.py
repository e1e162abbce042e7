"""`emberfs chain`: which targets hold the same chunks, and which should. `plan` changes nothing, `apply` carries it out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from .moving import (
    AT_ONCE,
    KINDS,
    AtOnce,
    BlocksOption,
    DomainOption,
    Rate,
    Yes,
    administration,
    confirm,
    domain_of,
    look,
    look_everywhere,
    move,
    node_named,
    watched,
)
from .output import Failed, console, say, write_json

if TYPE_CHECKING:
    from ..administration import Administration
    from ..placement.moves import Wish
    from ..placement.view import ClusterView

ROWS_SHOWN_DEFAULT = 16
HEAL_SECONDS = 600.0  # a silent node may be rebooting; scaled
FAILED_SECONDS = 60.0  # a failed disk does not come back by itself; scaled

chain = typer.Typer(
    name="chain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@chain.callback()
def _group() -> None:
    """Chains: which targets hold the same chunks.

    Every chunk lies on all members of one chain; its head takes the writes, any member that serves answers reads. 'plan' shows
    which members should move, 'apply' moves them, one at a time in each chain, while clients work.
    """


@chain.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False) -> None:
    """Show the chains with their members, head first, and what each member is."""
    from .status import chain_table, chains_of

    with administration() as connection:
        reply = connection.status()
    found = chains_of(reply)
    if as_json:
        write_json(found)
    else:
        console().print(chain_table(found))


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
    blocks: BlocksOption = False,
    seconds: Annotated[float, typer.Option(help="For improving new chains; 0: the first answer.", min=0)] = 10.0,
    rows: Annotated[
        int, typer.Option(help="Show at most so many chains and moves (0: all).", min=0)
    ] = ROWS_SHOWN_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines: everything.")] = False,
) -> None:
    """Show which chains to make, or which members have to move. Nothing is changed.

    Without a description: what 'chain apply' would do now in the running cluster, with these nodes drained or gone.

    Recovery is spread as evenly as can be: the pair load is the number of chains that two hosts share.
    """
    from . import planning

    if not (description or fresh or replicas or seats):
        with administration() as connection:
            view = look(connection, _table(blocks))
        planning.show_moves(*_wish(view, domain, drain or [], remove or []), rows, as_json)
        return
    planning.show_new(
        description,
        {"replicas": replicas, "domain": domain, "seats_per_disk": seats},
        drain or [],
        remove or [],
        fresh=fresh,
        seconds=seconds,
        rows=rows,
        as_json=as_json,
    )


@chain.command("apply")
def apply(
    at_once: AtOnce = AT_ONCE,
    rate: Rate = "",
    domain: DomainOption = "",
    balance: Annotated[
        bool, typer.Option(help="Level how many members each disk has, too, not only what is drained or lost.")
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Go on for ever: whatever comes, goes or breaks.")] = False,
    heal_after: Annotated[
        float, typer.Option(help="With --keep: seconds after which a silent node is given up.", min=0)
    ] = HEAL_SECONDS,
) -> None:
    """Move members as 'chain plan' shows, while clients work.

    A member moves in four steps: a target is made where it moves to (unless an empty one is there), it joins the chain and is
    copied to, the old one leaves, and is deleted. It may be interrupted and repeated at any time, and run twice.

    With --keep it stays and watches: members on disks that failed (after a minute) and on nodes that are silent (after ten) are copied
    to others, new nodes get their share.

    Members of chains of files move to targets for files, those of KV blocks to targets for KV blocks.
    """
    from ..placement.moves import Wish
    from . import planning

    with administration() as connection:
        if keep:
            _keep(connection, domain, balance, at_once, rate, heal_after)
        for table in KINDS:
            decision = move(connection, Wish(balance=balance, domain=domain_of(domain)), at_once, rate, table)
            assert not decision.blocked
        say(planning.settled(look_everywhere(connection)))


def _keep(
    connection: Administration, domain: str, balance: bool, at_once: int, rate: str, heal_after: float
) -> NoReturn:
    """`chain apply --keep`: until Ctrl-C. What stands in the way is said once, and tried again."""
    from ...proto.settings import time_scale
    from ..mover import Absences
    from ..placement.moves import Wish

    scale = time_scale()
    patience = (heal_after * scale, min(FAILED_SECONDS, heal_after) * scale)
    absences = {table: Absences(*patience) for table in KINDS}

    def wish(view: ClusterView) -> Wish:
        # A target with the only copy of KV blocks is not given up: keys go around it by the manager's hand until it is back.
        lost = frozenset() if view.is_cache else absences[view.table].lost(view, connection.now())
        return Wish(lost, balance, domain_of(domain))

    told: list[str] = []
    with watched(connection, at_once, rate) as mover:
        while True:
            looks = [mover.look(wish, table) for table in KINDS]
            blocked = [sentence for _, decision, _ in looks for sentence in decision.blocked]
            if blocked != told:
                told = blocked
                for sentence in told:
                    say(f"waiting: {sentence}")
            mover.rest(any(moved for _, _, moved in looks))


@chain.command("create")
def create(
    replicas: Annotated[
        int, typer.Option(help="Members of each. Default: as the other chains.", show_default=False, min=0)
    ] = 0,
    count: Annotated[int, typer.Option(help="How many. Default: as many as there can be.", show_default=False)] = 0,
    domain: DomainOption = "",
    blocks: BlocksOption = False,
) -> None:
    """Make new chains over targets that are in none. New files are laid out over them too; old ones stay where they are."""
    from ..chains import plan_new_chains, spare_targets

    with administration() as connection:
        routing = connection.status().routing
        view = look(connection, _table(blocks))
        members = replicas or view.replicas
        chosen = domain_of(domain) or view.widest_domain()
        drained = {entry.id for entry in view.nodes.values() if entry.draining}
        spare = [
            entry for entry in spare_targets(routing, view.table) if entry.node not in drained and not entry.chunks
        ]
        made = connection.create_chains(plan_new_chains(routing, spare, members, chosen, count), view.table)
    say(f"Made {len(made)} {'chain' if len(made) == 1 else 'chains'} of {members}: {', '.join(map(str, made))}.")


@chain.command("revive")
def revive(
    number: Annotated[int, typer.Argument(metavar="CHAIN", help="As 'emberfs chain list' shows it.")],
    target: Annotated[int, typer.Argument(help="The member that shall serve with what it has.")],
    yes: Yes = False,
) -> None:
    """Let a member serve a chain whose last serving members will never come back. What only those had is lost.

    A chain waits for any of the members that served last (LASTSRV), because each of them holds every acknowledged write. Only when
    all of those are gone for good is another member, which missed writes, better than nothing.
    """
    from ...proto.gen.common_pb2 import TARGET_STATE_LASTSRV

    with administration() as connection:
        views = look_everywhere(connection)
        view, entry = next(((v, chain) for v in views for chain in v.chains if chain.id == number), (views[0], None))
        if entry is None:
            raise Failed(f"there is no chain {number} (see: emberfs chain list)")
        if entry.serving:
            raise Failed(f"chain {number} is being served: there is nothing to revive")
        waiting = [_member_text(view, m.target) for m in entry.members if m.state == TARGET_STATE_LASTSRV]
        chosen = next((m for m in entry.members if m.target == target), None)
        if chosen is not None and chosen.state != TARGET_STATE_LASTSRV and waiting:
            confirm(
                f"Every acknowledged write of chain {number} is on {' and on '.join(waiting)}. Target {target} lacks what was written "
                "since it was away: that is lost for good. Go on?",
                yes,
            )
        after = connection.change_chain(number, entry.version, revive=target)
    say(f"chain {number}: served by target {target} from version {after.version} on.")


def _table(blocks: bool) -> int:
    return TABLE_OF_BLOCKS if blocks else TABLE_OF_FILES


def _member_text(view: ClusterView, target: int) -> str:
    entry = view.targets.get(target)
    return f"target {target} ({view.node_of(target).name or f'node {entry.node}'})" if entry else f"target {target}"


def _wish(view: ClusterView, domain: str, drain: list[str], remove: list[str]) -> tuple[ClusterView, Wish]:
    """What the options ask for, and the cluster with the nodes to drain marked as such."""
    from ..placement.moves import Wish

    nodes = dict(view.nodes)
    for name in drain:
        entry = node_named(view, name)
        nodes[entry.id] = replace(entry, draining=True)
    gone = {node_named(view, name).id for name in remove}
    lost = frozenset(target.id for target in view.targets.values() if target.node in gone)
    return replace(view, nodes=nodes), Wish(lost, balance=True, domain=domain_of(domain))
