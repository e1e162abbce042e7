"""What a registration changes: pure functions from a node's own words to a draft of the routing.

A node and its targets are recognised by what they remember (their number) or, if they crashed before they could write that
down, by the random incarnation of a target. A new target becomes a chain of its own, and the chains that are new with this
registration are appended to the chain table of their kind (files or KV blocks) as one new version; a spare one waits for an
administrator to give it a place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    NODE_KIND_STORAGE,
    NODE_KIND_UNSPECIFIED,
    LocalState,
    Node,
    Target,
)
from ...proto.gen.common_pb2 import Chain
from .administration import forget_target
from .chain import Report, new_chain, next_chain
from .nodes import is_full, state_of
from .routing import Book, Draft, Kind, table_of
from .table import TABLES, append_to_table

TARGETS_PER_NODE_MAX = 256
ADDRESSES_MAX = 16
TEXT_BYTES_MAX = 4096  # of an address, a name, a path
SCHEMES = ("unix:", "tcp:", "local:")

Others = Callable[[Iterable[Chain]], Mapping[int, Report]]


class Registered(NamedTuple):
    """A registration as a change (none if it says what is known)."""

    draft: Draft
    node: int
    targets: list[Target]  # as they stand in the draft, with their numbers


def register(
    book: Book,
    node: Node,
    targets: Sequence[Target],
    *,
    spare: Collection[int] = (),
    dropped: Iterable[int] = (),
    others: Others = lambda _: {},
) -> Registered:
    """The change that this registration makes. `spare`: new targets for these chain tables get no chain. `dropped`: targets that the
    node has deleted. `others`: what is known about the other members of chains. Raises INVALID for what cannot be, NOT_FOUND for a
    number that this cluster never gave out, BUSY_RESOURCE for a dropped target that a chain has."""
    _check(node, targets)
    draft = Draft(book)
    numbers = {known.incarnation: known.id for known in book.targets.values()}
    targets = [_recognised(book, target, numbers) for target in targets]
    node_id = node.id or _node_of(book, node, targets) or draft.new_id(Kind.NODE)
    known = book.nodes.get(node_id)
    if node.id and (known is None or known.kind != node.kind):
        raise error(
            Status.NOT_FOUND,
            f"node {node.id} ({node.name}) is not known to this cluster; format its data directory anew",
        )
    named = Node()
    named.CopyFrom(node)
    named.id = node_id
    named.draining = known is not None and known.draining
    draft.put(Kind.NODE, named, node_id)
    restarted = known is None or known.process != node.process
    owned = _put_targets(book, draft, node_id, targets, restarted, spare=spare, others=others)
    for target in {*dropped}.difference(owner.id for owner in owned):
        if target in book.targets and book.targets[target].node == node_id:
            refusal = forget_target(book, draft, target)
            if refusal is not None:
                raise refusal
    return Registered(draft, node_id, owned)


def _check(node: Node, targets: Sequence[Target]) -> None:
    if node.kind == NODE_KIND_UNSPECIFIED or not node.process:
        raise error(Status.INVALID, f"registration of {node.name!r}: without kind or process number")
    if targets and node.kind != NODE_KIND_STORAGE:
        raise error(Status.INVALID, f"registration of {node.name!r}: only storage servers have targets")
    if len(targets) > TARGETS_PER_NODE_MAX or len(node.addresses) > ADDRESSES_MAX:
        raise error(
            Status.TOO_LARGE,
            f"registration of {node.name!r}: at most {TARGETS_PER_NODE_MAX} targets and {ADDRESSES_MAX} addresses",
        )
    if bad := [a for a in node.addresses if not a.startswith(SCHEMES)]:
        raise error(Status.INVALID, f"registration of {node.name!r}: {bad[0]!r} is no address")
    texts = [node.name, node.software, node.host, *node.addresses, *(t.path for t in targets)]
    if any(len(text.encode()) > TEXT_BYTES_MAX for text in texts):
        raise error(
            Status.TOO_LARGE, f"registration of node {node.id}: a name, path or address is over {TEXT_BYTES_MAX} bytes"
        )
    if bad_table := [t.table for t in targets if table_of(t) not in TABLES]:
        raise error(
            Status.INVALID,
            f"registration of {node.name!r}: a target is for chain table {bad_table[0]}, and there is none",
        )
    incarnations = {t.incarnation for t in targets}
    if 0 in incarnations or len(incarnations) < len(targets):
        raise error(
            Status.INVALID,
            f"registration of {node.name!r}: two targets are copies of one another, or one is not formatted",
        )


def _recognised(book: Book, target: Target, numbers: Mapping[int, int]) -> Target:
    """The target with its number, 0 if it is new. Raises NOT_FOUND for a number that was never given out."""
    if target.id:
        if target.id not in book.targets:
            raise error(
                Status.NOT_FOUND,
                f"target {target.id} in {target.path} is not known to this cluster; it belongs to another one, or format it anew",
            )
        return target
    return _changed(target, id=numbers.get(target.incarnation, 0))


def _node_of(book: Book, node: Node, targets: Iterable[Target]) -> int:
    """The number of a node that forgot its own but still has its targets; 0 for a new node."""
    if node.kind != NODE_KIND_STORAGE:
        return 0
    owners = {book.targets[target.id].node for target in targets if target.id}
    return owners.pop() if len(owners) == 1 else 0


def _changed(target: Target, **fields: int) -> Target:
    copy = Target()
    copy.CopyFrom(target)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def _put_targets(
    book: Book,
    draft: Draft,
    node_id: int,
    targets: Sequence[Target],
    restarted: bool,
    *,
    spare: Collection[int],
    others: Others,
) -> list[Target]:
    reports: dict[int, Report] = {}
    added: defaultdict[int, list[int]] = defaultdict(list)  # by chain table
    owned = []
    for target in targets:
        known = book.targets.get(target.id)
        target_id = target.id or draft.new_id(Kind.TARGET)
        fresh = restarted or (known is not None and known.node != node_id)
        state, full = _state(target, known, fresh), _full(target, known)
        record = _changed(target, id=target_id, node=node_id, state=state, full=full)
        if known is not None:  # the manager's, whatever a registration says
            record.disabled, record.table = known.disabled, known.table
        else:
            record.disabled = False
        owned.append(record)
        draft.put(Kind.TARGET, record, target_id)
        if known is not None:
            reports[target_id] = Report(
                state, target.incarnation, fresh, opened_clean=not target.damaged, power_losses=target.power_losses
            )
        elif (table := table_of(target)) not in spare:
            made = draft.new_id(Kind.CHAIN)
            chain = new_chain(made, target_id, node_id, target.incarnation, target.power_losses)
            draft.put(Kind.CHAIN, chain, chain.id)
            added[table].append(chain.id)
    for missing in book.targets.values():
        if missing.node == node_id and missing.id not in reports:
            draft.put(Kind.TARGET, _changed(missing, state=LOCAL_STATE_OFFLINE), missing.id)
            reports[missing.id] = Report(LOCAL_STATE_OFFLINE, missing.incarnation)
    move_chains(book, draft, reports, dict.fromkeys((t.id for t in targets if t.id), node_id), others)
    for table, chains in added.items():
        append_to_table(book, draft, chains, table=table)
    return owned


def _state(target: Target, known: Target | None, fresh: bool) -> LocalState:
    """What it says. What is disabled shall not begin to serve (it is `fresh`), but where it may serve, its server must say itself that it
    has stopped."""
    if known is not None and known.disabled and fresh:
        return LOCAL_STATE_OFFLINE
    return state_of(target)


def _full(target: Target, known: Target | None) -> bool:
    return is_full(target, known is not None and known.full)


def move_chains(
    book: Book, draft: Draft, reports: Mapping[int, Report], nodes: Mapping[int, int], others: Others
) -> None:
    """Put the next state of every chain that these reports are about."""
    chains = {chain.id: chain for target in reports if (chain := book.chain_of(target))}
    heard = {**others(chains.values()), **reports}
    for chain in chains.values():
        after = next_chain(chain, heard, nodes)
        if after is not chain:
            draft.put(Kind.CHAIN, after, chain.id)
