"""The manager's side of routing: every record with the version in which it changed last.

Records stand in the order of their last change, so a delta is the end of that list: it costs what changed, however large the
cluster is, and needs no log of past versions. Only removals would be forgotten; they stay as tombstones, at most REMOVED_MAX of them,
and whoever asks for a delta from before the oldest dropped one gets everything. Pure: the store makes a change durable first.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from google.protobuf.message import Message

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ...proto.capability import VALID_EPOCHS
from ...proto.gen.cluster_pb2 import ChainTable, KvNamespace, Node, Routing, Target, TenantQuota
from ...proto.gen.common_pb2 import Chain

REMOVED_MAX = 1024  # tombstones kept


class Kind(enum.Enum):
    """The kinds of records; the value is its letter in the key space (store.py)."""

    NODE = "n"
    TARGET = "t"
    CHAIN = "c"
    TABLE = "b"  # one version of a chain table
    ENDED = "e"  # a client whose lease is over; no message
    NAMESPACE = "k"  # of the KV cache
    QUOTA = "q"  # of a tenant of the KV cache; named by the tenant


MESSAGES: dict[Kind, type[Message]] = {
    Kind.NODE: Node,
    Kind.TARGET: Target,
    Kind.CHAIN: Chain,
    Kind.TABLE: ChainTable,
    Kind.NAMESPACE: KvNamespace,
    Kind.QUOTA: TenantQuota,
}

# Kinds whose records can go; chains and tables are for ever.
REMOVED = (Kind.NODE, Kind.TARGET, Kind.NAMESPACE, Kind.QUOTA)

Key = tuple[Kind, bytes]  # the id as it stands in the key space


def number_key(kind: Kind, *numbers: int) -> Key:
    """The key of a record that is named by 32-bit numbers."""
    return kind, b"".join(n.to_bytes(4, "big") for n in numbers)


def table_of(target: Target) -> int:
    """The chain table that a target's chain belongs to."""
    return target.table or TABLE_OF_FILES


class Row(NamedTuple):
    version: int  # of the routing, when it changed last
    message: Message | None  # None: a tombstone, or an ended client
    epoch: int = 0  # of an ended client: the capability epoch in which it ended


@dataclass(frozen=True, slots=True)
class State:
    """What there is once per cluster."""

    cluster: str
    capability_key: bytes
    capability_epoch: int = 1
    version: int = 1  # of the routing
    floor: int = 0  # deltas since an older version are not possible
    next_ids: Mapping[str, int] = field(default_factory=dict)  # by letter of the kind


class News(NamedTuple):
    """What another server has changed, one or several changes together."""

    state: State
    rows: dict[Key, Row]
    dropped: set[Key]


class Book:
    """All records as of `state.version`."""

    def __init__(self, state: State, rows: Mapping[Key, Row] | None = None) -> None:
        self.state = state
        self.nodes: dict[int, Node] = {}
        self.targets: dict[int, Target] = {}
        self.chains: dict[int, Chain] = {}
        self.tables: dict[int, ChainTable] = {}  # the newest version of each
        self.block_tables: dict[int, Sequence[int]] = {}  # every version of the table of blocks -> chains
        self.ended: dict[bytes, int] = {}  # ended client -> capability epoch in which it ended
        self.last_end = 0  # version in which a client ended last
        self._chain_of: dict[int, int] = {}  # target -> chain
        self._targets_of: dict[int, dict[int, None]] = {}  # node -> targets
        self.disabled: set[int] = set()  # targets
        self.namespaces: dict[int, KvNamespace] = {}
        self.quotas: dict[str, TenantQuota] = {}  # by tenant
        self._rows: OrderedDict[Key, Row] = OrderedDict()  # least recently changed first
        for key, row in sorted((rows or {}).items(), key=lambda item: item[1].version):
            self._take(key, row)

    def _take(self, key: Key, row: Row) -> None:
        self._rows[key] = row
        self._rows.move_to_end(key)
        message = row.message
        if isinstance(message, Node):
            self.nodes[message.id] = message
        elif isinstance(message, Target):
            self._drop_target(message.id)
            self.targets[message.id] = message
            self._targets_of.setdefault(message.node, {})[message.id] = None
            if message.disabled:
                self.disabled.add(message.id)
        elif isinstance(message, Chain):
            before = self.chains.get(message.id)
            for member in before.members if before else ():
                self._chain_of.pop(member.target, None)
            self.chains[message.id] = message
            self._chain_of.update((member.target, message.id) for member in message.members)
        elif isinstance(message, ChainTable):
            if message.id == TABLE_OF_BLOCKS:
                self.block_tables[message.version] = message.chains
            newest = self.tables.get(message.id)
            if newest is None or newest.version < message.version:
                self.tables[message.id] = message
        elif isinstance(message, KvNamespace):
            self.namespaces[message.id] = message
        elif isinstance(message, TenantQuota):
            self.quotas[message.tenant] = message
        elif key[0] is Kind.ENDED:
            self.ended[key[1]] = row.epoch
            self.last_end = max(self.last_end, row.version)
        else:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        """What a tombstone says."""
        kind, name = key
        if kind is Kind.QUOTA:
            self.quotas.pop(name.decode(), None)
            return
        number = int.from_bytes(name, "big")
        if kind is Kind.NODE:
            self.nodes.pop(number, None)
        elif kind is Kind.TARGET:
            self._drop_target(number)
        elif kind is Kind.NAMESPACE:
            self.namespaces.pop(number, None)

    def _drop_target(self, number: int) -> None:
        known = self.targets.pop(number, None)
        if known is not None:
            del self._targets_of[known.node][number]
            self.disabled.discard(number)

    def get(self, key: Key) -> Message | None:
        row = self._rows.get(key)
        return row.message if row else None

    def chain_of(self, target_id: int) -> Chain | None:
        """The chain that a target is a member of."""
        return self.chains.get(self._chain_of.get(target_id, 0))

    def table_of_chain(self, chain: Chain) -> int:
        """The chain table that a chain belongs to; 0 of one without members, which belongs to none any more."""
        targets = (self.targets.get(member.target) for member in chain.members)
        return next((table_of(target) for target in targets if target is not None), 0)

    def targets_of(self, node: int) -> list[int]:
        return list(self._targets_of.get(node, ()))

    def chains_of(self, nodes: Iterable[int]) -> list[Chain]:
        """The chains that have a member in one of these nodes."""
        targets = (target for node in nodes for target in self._targets_of.get(node, ()))
        numbers = dict.fromkeys(self._chain_of[target] for target in targets if target in self._chain_of)
        return [self.chains[number] for number in numbers]

    def tombstones(self) -> list[tuple[int, Key]]:
        """Records that were removed, with the versions in which they were, oldest first."""
        return [(row.version, key) for key, row in self._rows.items() if key[0] in REMOVED and row.message is None]

    def apply(self, draft: Draft | News) -> None:
        """Take over a change that is durable now."""
        self.state = draft.state
        for key, row in draft.rows.items():
            self._take(key, row)
        for key in draft.dropped:
            self._rows.pop(key, None)
            if key[0] is Kind.ENDED:
                self.ended.pop(key[1], None)

    def routing(self, since: int = 0, *, server: bool = False) -> Routing | None:
        """What changed after version `since`, everything when that is 0 or not known any more, None when nothing did. Only servers
        get the capability key."""
        state = self.state
        if since == state.version:
            return None
        delta = state.floor <= since < state.version and since > 0
        routing = Routing(version=state.version, since=since if delta else 0, cluster=state.cluster)
        routing.capability_epoch = state.capability_epoch
        if server:
            routing.capability_key = state.capability_key
        for key, row in reversed(self._rows.items()):
            if delta and row.version <= since:
                break
            self._add(routing, key, row, delta)
        return routing

    @staticmethod
    def _add(routing: Routing, key: Key, row: Row, delta: bool) -> None:
        message = row.message
        if isinstance(message, Node):
            routing.nodes.append(message)
        elif isinstance(message, Target):
            routing.targets.append(message)
        elif isinstance(message, Chain):
            routing.chains.append(message)
        elif isinstance(message, ChainTable):
            routing.tables.append(message)
        elif isinstance(message, KvNamespace):
            routing.namespaces.append(message)
        elif isinstance(message, TenantQuota):
            routing.quotas.append(message)
        elif key[0] is Kind.ENDED:
            routing.ended_clients.append(key[1])
        elif delta and key[0] is Kind.NODE:
            routing.removed_nodes.append(int.from_bytes(key[1], "big"))
        elif delta and key[0] is Kind.TARGET:
            routing.removed_targets.append(int.from_bytes(key[1], "big"))
        elif delta and key[0] is Kind.NAMESPACE:
            routing.removed_namespaces.append(int.from_bytes(key[1], "big"))
        elif delta and key[0] is Kind.QUOTA:
            routing.quotas.append(TenantQuota(tenant=key[1].decode()))


class Draft:
    """A change in the making: reads see it, nobody else does until `Book.apply`."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.state = replace(book.state, version=book.state.version + 1)
        self.rows: dict[Key, Row] = {}
        self.dropped: set[Key] = set()  # rows to forget without a trace: everybody has dropped them by their own rules
        self.ended_leases: set[bytes] = set()  # lease records of clients that end with this change

    def __bool__(self) -> bool:
        return bool(self.rows or self.dropped) or self.state != replace(
            self._book.state, version=self._book.state.version + 1
        )

    def put(self, kind: Kind, message: Message, *numbers: int) -> None:
        """A new or changed record; one that is equal to what is there is no change."""
        self.put_named(number_key(kind, *numbers), message)

    def put_named(self, key: Key, message: Message) -> None:
        """The same, of a record that is not named by numbers."""
        if self._book.get(key) != message:
            self.rows[key] = Row(self.state.version, message)
        else:
            self.rows.pop(key, None)

    def end_client(self, client: bytes) -> None:
        """The client's lease is over: from this version on storage servers refuse its writes."""
        self.rows[Kind.ENDED, client] = Row(self.state.version, None, self.state.capability_epoch)
        self.ended_leases.add(client)

    def remove(self, kind: Kind, number: int) -> None:
        """Remove a record of a kind of `REMOVED`, leaving a tombstone. The oldest ones go when there are too many, and with them the
        deltas from before them."""
        self.remove_named(number_key(kind, number))

    def remove_named(self, key: Key) -> None:
        """The same, of a record that is not named by a number."""
        self.rows[key] = Row(self.state.version, None)
        made = sum(row.message is None and key[0] in REMOVED for key, row in self.rows.items())
        tombs = self._book.tombstones()
        for version, oldest in tombs[: max(0, len(tombs) + made - REMOVED_MAX)]:
            self.dropped.add(oldest)
            self.state = replace(self.state, floor=max(self.state.floor, version))

    def new_id(self, kind: Kind) -> int:
        """The next number of this kind; numbers are never used again."""
        number = self.state.next_ids.get(kind.value, 1)
        self.state = replace(self.state, next_ids={**self.state.next_ids, kind.value: number + 1})
        return number

    def next_epoch(self) -> None:
        """A new capability epoch; clients that ended so long ago that none of their capabilities is good any more are forgotten."""
        epoch = self.state.capability_epoch + 1
        self.state = replace(self.state, capability_epoch=epoch)
        self.dropped |= {
            (Kind.ENDED, client) for client, ended in self._book.ended.items() if ended + VALID_EPOCHS < epoch
        }
