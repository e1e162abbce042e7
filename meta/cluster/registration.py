"""What a registration changes: pure functions from a node's own words to a draft of the routing.

A node and its targets are recognised by what they remember (their number) or, if they crashed before they could write that
down, by the random incarnation of a target. Every target is a member of one chain; a new one becomes a chain of its own, and the
chains that are new with this registration are appended to the chain table of files as one new version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    LOCAL_STATE_ONLINE,
    LOCAL_STATE_UNSPECIFIED,
    NODE_KIND_STORAGE,
    NODE_KIND_UNSPECIFIED,
    ChainTable,
    Node,
    Target,
)
from .chain import Report, new_chain, next_chain
from .routing import Book, Draft, Kind

TABLE_OF_FILES = 1  # the chain table that files are laid out over
TARGETS_PER_NODE_MAX = 256
ADDRESSES_MAX = 16
TEXT_BYTES_MAX = 4096  # of an address, a name, a path
SCHEMES = ("unix:", "tcp:", "local:")


def register(book: Book, node: Node, targets: Sequence[Target]) -> tuple[Draft, int]:
    """The change that this registration makes (none if it says what is known), and the node's number. Raises INVALID for what cannot
    be, NOT_FOUND for a number that this cluster never gave out."""
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
    _put_targets(book, draft, node_id, targets, restarted)
    return draft, node_id


def drain(book: Book, node_id: int, *, draining: bool) -> Draft:
    """The change that marks a node as one to be emptied, or as one like any other again. Raises NOT_FOUND."""
    known = book.nodes.get(node_id)
    if known is None or known.kind != NODE_KIND_STORAGE:
        raise error(Status.NOT_FOUND, f"there is no storage node {node_id}")
    named = Node()
    named.CopyFrom(known)
    named.draining = draining
    draft = Draft(book)
    draft.put(Kind.NODE, named, node_id)
    return draft


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


def _put_targets(book: Book, draft: Draft, node_id: int, targets: Sequence[Target], restarted: bool) -> None:
    reports: dict[int, Report] = {}
    added: list[int] = []
    for target in targets:
        is_new = not target.id
        state = LOCAL_STATE_ONLINE if target.state == LOCAL_STATE_UNSPECIFIED else target.state
        target_id = draft.new_id(Kind.TARGET) if is_new else target.id
        draft.put(Kind.TARGET, _changed(target, id=target_id, node=node_id, state=state), target_id)
        if is_new:
            chain = new_chain(draft.new_id(Kind.CHAIN), target_id, node_id, target.incarnation)
            draft.put(Kind.CHAIN, chain, chain.id)
            added.append(chain.id)
        else:
            reports[target_id] = Report(state, target.incarnation, restarted)
    for missing in book.targets.values():
        if missing.node == node_id and missing.id not in reports:
            draft.put(Kind.TARGET, _changed(missing, state=LOCAL_STATE_OFFLINE), missing.id)
            reports[missing.id] = Report(LOCAL_STATE_OFFLINE, missing.incarnation)
    move_chains(book, draft, reports, dict.fromkeys((t.id for t in targets if t.id), node_id))
    if added:
        append_to_table(book, draft, added)


def move_chains(book: Book, draft: Draft, reports: dict[int, Report], nodes: dict[int, int] | None = None) -> None:
    """Put the next state of every chain that these reports are about."""
    chains = {chain.id: chain for target in reports if (chain := book.chain_of(target))}
    for chain in chains.values():
        draft.put(Kind.CHAIN, next_chain(chain, reports, nodes), chain.id)


def append_to_table(book: Book, draft: Draft, chains: Sequence[int]) -> None:
    """A new version of the chain table of files, with more chains at its end; old versions stay for the files laid out by them."""
    newest = book.tables.get(TABLE_OF_FILES)
    version = newest.version + 1 if newest else 1
    entries = [*(newest.chains if newest else ()), *chains]
    draft.put(Kind.TABLE, ChainTable(id=TABLE_OF_FILES, version=version, chains=entries), TABLE_OF_FILES, version)
