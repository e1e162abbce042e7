"""The chain table that files are laid out over. A version of it never changes, and old ones stay for the files laid out by them, so a new
version is all it takes to lay new files around chains that are full or dead. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ...proto.blocks import TABLE_OF_FILES
from ...proto.gen.cluster_pb2 import ChainTable
from ...proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain
from .chain import Lease
from .nodes import Nodes
from .routing import Book, Draft, Kind

DEAD_SECONDS = 60.0  # that nobody serves a chain, before new files are laid out around it; scaled
TABLE_SECONDS = 60.0  # between two versions made around what is full or dead, as they stay for ever; scaled


def append_to_table(book: Book, draft: Draft, chains: Sequence[int], replicas: int = 1) -> None:
    """A new version with more chains at its end, of so many members each."""
    newest = book.tables.get(TABLE_OF_FILES)
    _put(book, draft, [*(newest.chains if newest else ()), *chains], replicas)


def _put(book: Book, draft: Draft, chains: Sequence[int], replicas: int) -> None:
    newest = book.tables.get(TABLE_OF_FILES)
    version = newest.version + 1 if newest else 1
    table = ChainTable(id=TABLE_OF_FILES, version=version, chains=chains, replicas=replicas)
    draft.put(Kind.TABLE, table, TABLE_OF_FILES, version)


class TableKeeper:
    """Which chains new files are laid out over, and since when the others have been dead. To be asked every few seconds."""

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale
        self._dead_since: dict[int, float] = {}
        self._next = float("-inf")  # when another version may be made

    def plan(self, book: Book, nodes: Nodes, now: float) -> Draft:
        """The next version of the table, where another one is due: without full and dead chains, with those that have recovered. Where
        no chain is any good the newest version stays as it is."""
        draft = Draft(book)
        newest = book.tables.get(TABLE_OF_FILES)
        good = [number for number in sorted(book.chains) if self._is_good(book, book.chains[number], nodes, now)]
        if newest is not None and good and now >= self._next and good != sorted(newest.chains):
            kept = set(good)
            stay = [number for number in newest.chains if number in kept]
            _put(book, draft, [*stay, *sorted(kept.difference(stay))], newest.replicas)
            self._next = now + TABLE_SECONDS * self._scale
        return draft

    def _is_good(self, book: Book, chain: Chain, nodes: Nodes, now: float) -> bool:
        if any(m.state == TARGET_STATE_SERVING and nodes.lease(m.node, now) is not Lease.OVER for m in chain.members):
            self._dead_since.pop(chain.id, None)
        elif now - self._dead_since.setdefault(chain.id, now) >= DEAD_SECONDS * self._scale:
            return False
        return not any(m.target in book.targets and book.targets[m.target].full for m in chain.members)
