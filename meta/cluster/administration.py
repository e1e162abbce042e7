"""What an administrator changes: new chains, members of chains, what becomes of targets and nodes. Pure plans, like a registration.

A member that serves does not lose its place from one version to the next: it may not have heard of the change, and would go on to answer
reads while the others acknowledge newer writes. So it becomes SYNCING first, where it serves nothing but still receives every write:
until it has learned that, no write is acknowledged. When it reports under that version, or its lease is over, it goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    NODE_KIND_STORAGE,
    ChainMembers,
    ChangeChainRequest,
    Node,
    Target,
)
from ...proto.gen.common_pb2 import (
    TARGET_STATE_LASTSRV,
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    TARGET_STATE_WAITING,
    Chain,
    ChainMember,
    TargetState,
)
from .chain import Lease, with_members
from .nodes import Nodes, state_of
from .routing import Book, Draft, Kind, table_of
from .table import TABLES, append_to_table

CHAINS_MAX = 10_000  # made at once
MEMBERS_MAX = 16  # of one chain
LAST_WORDS = {TARGET_STATE_SERVING: "serves", TARGET_STATE_LASTSRV: "could revive it"}


def create_chains(
    book: Book, nodes: Nodes, wanted: Sequence[ChainMembers], now: float, table: int = TABLE_OF_FILES
) -> tuple[Draft, list[int]]:
    """New chains over empty targets that no chain has and that are meant for this chain table; they serve from the start. Their ids.
    Raises INVALID, TOO_LARGE, NOT_FOUND, BUSY_RESOURCE (a chain has it), NOT_EMPTY, UNAVAILABLE (its server is silent, or it is out of
    service)."""
    if table not in TABLES:
        raise error(Status.INVALID, f"there is no chain table {table}")
    if not wanted or any(not chain.targets for chain in wanted):
        raise error(Status.INVALID, "a chain needs at least one target")
    if len(wanted) > CHAINS_MAX or any(len(chain.targets) > MEMBERS_MAX for chain in wanted):
        raise error(Status.TOO_LARGE, f"at most {CHAINS_MAX} chains at once, of {MEMBERS_MAX} members each")
    all_targets = [target for chain in wanted for target in chain.targets]
    if len(set(all_targets)) < len(all_targets):
        raise error(Status.INVALID, "a target can be a member of one chain only, and once")
    draft = Draft(book)
    made = []
    for entry in wanted:
        records = [_spare(book, nodes, target, now, table) for target in entry.targets]
        _require_apart([record.node for record in records])
        for record in records:
            said = nodes.entry(record.id)
            if said is None or said.chunks:
                raise error(
                    Status.NOT_EMPTY, f"target {record.id} holds chunks: drop it and add an empty one in its place"
                )
        chain = Chain(
            id=draft.new_id(Kind.CHAIN), version=1, members=[_member(r, TARGET_STATE_SERVING) for r in records]
        )
        draft.put(Kind.CHAIN, chain, chain.id)
        made.append(chain.id)
    append_to_table(book, draft, made, max(len(chain.targets) for chain in wanted), table)
    return draft, made


def _spare(book: Book, nodes: Nodes, target: int, now: float, table: int) -> Target:
    """A target that can become a member. Raises NOT_FOUND, INVALID (it is for another kind of chains), BUSY_RESOURCE, UNAVAILABLE."""
    record = book.targets.get(target)
    if record is None:
        raise error(Status.NOT_FOUND, f"there is no target {target}")
    if table_of(record) != table:
        what = "KV blocks" if table_of(record) == TABLE_OF_BLOCKS else "files"
        raise error(Status.INVALID, f"target {target} is for {what}, and the chain is not")
    if chain := book.chain_of(target):
        raise error(Status.BUSY_RESOURCE, f"target {target} is a member of chain {chain.id}")
    _require_there(nodes, record, now)
    return record


def _require_there(nodes: Nodes, record: Target, now: float) -> Target:
    said = nodes.entry(record.id)
    silent = said is None or nodes.lease(record.node, now) is Lease.OVER
    if said is None or silent or record.disabled or state_of(said) == LOCAL_STATE_OFFLINE:
        why = "its server is silent" if silent else "it is disabled" if record.disabled else "its disk has failed"
        raise error(Status.UNAVAILABLE, f"target {record.id} is out of service: {why}")
    return said


def _require_apart(nodes: Sequence[int]) -> None:
    if len(set(nodes)) < len(nodes):
        raise error(
            Status.INVALID, "two members of a chain must not be in one storage process: they would fail together"
        )


def _member(record: Target, state: TargetState) -> ChainMember:
    return ChainMember(
        target=record.id,
        node=record.node,
        state=state,
        incarnation=record.incarnation,
        power_losses=record.power_losses,
    )


def change_chain(book: Book, nodes: Nodes, request: ChangeChainRequest, now: float) -> tuple[Draft, bool]:
    """One step of what the request asks for, and whether that is all. What is so already is no change. Raises NOT_FOUND, INVALID,
    STALE_CHAIN_VERSION with the newer entry, BUSY_RESOURCE, UNAVAILABLE."""
    chain = book.chains.get(request.chain)
    if chain is None:
        raise error(Status.NOT_FOUND, f"there is no chain {request.chain}")
    if sum(map(bool, (request.add, request.remove, request.revive))) != 1:
        raise error(Status.INVALID, "name one member to add, to remove or to revive")
    target = request.add or request.remove or request.revive
    members = {member.target: member for member in chain.members}
    draft = Draft(book)
    if request.revive and target not in members:
        raise error(Status.NOT_FOUND, f"target {target} is no member of chain {chain.id}")
    if bool(request.add) == (target in members) and not request.revive:
        return draft, True
    begun = request.remove and members[target].state == TARGET_STATE_SYNCING and request.version + 1 == chain.version
    if request.version and request.version != chain.version and not begun:
        text = f"chain {chain.id} has version {chain.version}, not {request.version} any more; look at it again"
        raise error(Status.STALE_CHAIN_VERSION, text, detail=chain)
    if request.add:
        after, done = _added(book, nodes, chain, target, now), True
    elif request.remove:
        after, done = _removed(nodes, chain, members[target], now, disposable=_is_disposable(book, chain))
    else:
        after, done = _revived(book, nodes, chain, members[target], now), True
    if after is not chain:
        draft.put(Kind.CHAIN, after, chain.id)
    return draft, done


def _added(book: Book, nodes: Nodes, chain: Chain, target: int, now: float) -> Chain:
    record = _spare(book, nodes, target, now, book.table_of_chain(chain))
    if len(chain.members) >= MEMBERS_MAX:
        raise error(Status.TOO_LARGE, f"chain {chain.id} has {MEMBERS_MAX} members, which is the most")
    _require_apart([*(member.node for member in chain.members), record.node])
    return with_members(chain, [*chain.members, _member(record, TARGET_STATE_WAITING)])


def _is_disposable(book: Book, chain: Chain) -> bool:
    """Whether a chain may lose its last member, and be empty for ever: one of blocks, which are a cache's, that has left the table. Or that
    cannot leave it, being the last one with members there."""
    if book.table_of_chain(chain) != TABLE_OF_BLOCKS:
        return False
    newest = book.tables.get(TABLE_OF_BLOCKS)
    placed = {number for number in newest.chains if book.chains[number].members} if newest is not None else set()
    return chain.id not in placed or placed == {chain.id}


def _removed(
    nodes: Nodes, chain: Chain, member: ChainMember, now: float, *, disposable: bool = False
) -> tuple[Chain, bool]:
    rest = [other for other in chain.members if other.target != member.target]
    if disposable and not rest:
        return with_members(chain, ()), True
    if member.state in LAST_WORDS and not any(other.state == member.state for other in rest):
        word = LAST_WORDS[member.state]
        raise error(Status.BUSY_RESOURCE, f"target {member.target} is the last member of chain {chain.id} that {word}")
    if member.state == TARGET_STATE_SERVING:
        if any(o.state == TARGET_STATE_SYNCING and not nodes.has_stopped(o.node, chain, now) for o in rest):
            return (
                chain,
                False,
            )  # perhaps it is to go as well, and has not heard yet: until then every write goes through it
        others = [_in_state(o, TARGET_STATE_WAITING) if o.state == TARGET_STATE_SYNCING else o for o in rest]
        return with_members(chain, [*others, _in_state(member, TARGET_STATE_SYNCING)]), False
    if member.state == TARGET_STATE_SYNCING and not nodes.has_stopped(member.node, chain, now):
        return chain, False
    return with_members(chain, rest), True


def _in_state(member: ChainMember, state: TargetState) -> ChainMember:
    copy = ChainMember()
    copy.CopyFrom(member)
    copy.state = state
    return copy


def _revived(book: Book, nodes: Nodes, chain: Chain, member: ChainMember, now: float) -> Chain:
    if any(other.state == TARGET_STATE_SERVING for other in chain.members):
        raise error(Status.BUSY_RESOURCE, f"chain {chain.id} is being served: there is nothing to revive")
    record = book.targets.get(member.target)
    if record is None:
        raise error(Status.NOT_FOUND, f"there is no target {member.target} any more")
    said = _require_there(nodes, record, now)
    revived = _in_state(member, TARGET_STATE_SERVING)
    revived.incarnation, revived.power_losses = said.incarnation or member.incarnation, said.power_losses
    others = [o for o in chain.members if o.target != member.target]
    lost = [_in_state(o, TARGET_STATE_OFFLINE) if o.state == TARGET_STATE_LASTSRV else o for o in others]
    waiting = [_in_state(o, TARGET_STATE_WAITING) if o.state == TARGET_STATE_SYNCING else o for o in lost]
    after = with_members(chain, [revived, *waiting])
    after.losses += 1  # whatever it has
    return after


def set_target(book: Book, target: int, *, disabled: bool) -> Draft:
    """Take a target out of service, or back. Its server stops serving it when it hears that, says so, and only then loses its place.
    Raises NOT_FOUND."""
    known = book.targets.get(target)
    if known is None:
        raise error(Status.NOT_FOUND, f"there is no target {target}")
    record = Target()
    record.CopyFrom(known)
    record.disabled = disabled
    draft = Draft(book)
    draft.put(Kind.TARGET, record, target)
    return draft


def remove_node(book: Book, node: int) -> Draft:
    """Forget a node and its targets. Raises NOT_FOUND, BUSY_RESOURCE while a chain has one of them."""
    if node not in book.nodes:
        raise error(Status.NOT_FOUND, f"there is no node {node}")
    draft = Draft(book)
    for target in [target for target in book.targets.values() if target.node == node]:
        refusal = forget_target(book, draft, target.id)
        if refusal is not None:
            raise refusal
    draft.remove(Kind.NODE, node)
    return draft


def forget_target(book: Book, draft: Draft, target: int) -> StatusError | None:
    """Remove a target's record, or say why that cannot be."""
    if chain := book.chain_of(target):
        return error(
            Status.BUSY_RESOURCE,
            f"target {target} is a member of chain {chain.id}: move its place to another one first",
        )
    draft.remove(Kind.TARGET, target)
    return None


def drain(book: Book, node: int, *, draining: bool) -> Draft:
    """The change that marks a node as one to be emptied, or as one like any other again. Raises NOT_FOUND."""
    known = book.nodes.get(node)
    if known is None or known.kind != NODE_KIND_STORAGE:
        raise error(Status.NOT_FOUND, f"there is no storage node {node}")
    named = Node()
    named.CopyFrom(known)
    named.draining = draining
    draft = Draft(book)
    draft.put(Kind.NODE, named, node)
    return draft
