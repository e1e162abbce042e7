"""What a cluster's records need before a copy of them, which others have outlived, may be used (meta/backup.py).

Since the copy was made, versions and numbers went on and were told to storage servers. None of them may come a second time with
another meaning: so all of them leap, far beyond what can have been given out. And nobody knows who has had to leave a chain
meanwhile: so in a chain of several members nobody serves at first, each counts as one that served last, and the one that has the
newest chunks comes first. It may lack what was acknowledged and not synced: that the number of losses has leapt, too, tells whoever wrote
before the copy was taken up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...proto.errors import Status, error
from ...proto.gen.common_pb2 import Chain, ChainMember
from .. import keys
from ..kv import retry
from ..kv.engine import Engine, Transaction
from .chain import LASTSRV, OFFLINE, SERVING, with_members
from .routing import Book, Draft, Kind
from .store import Store

VERSIONS = 1 << 20  # versions that may have passed since the copy: of the routing, and of any chain
EPOCHS = 1 << 10  # of capabilities
LOSSES = 1 << 10  # of any chain
INODES = 1 << 40  # given out since the copy
IDS = 1 << 10  # of nodes, targets and chains


async def take_up(engine: Engine, newest: Mapping[int, int] | None = None) -> None:
    """Make a restored engine one that can be served. `newest` says how new the chunks of targets are, as far as that is known:
    incarnation -> the highest chain version under which one was written. Raises NOT_FOUND where there is no cluster."""
    store = Store(engine)
    found = await store.load()
    if found is None:
        raise error(Status.NOT_FOUND, "the copy holds no cluster")
    book = Book(*found)
    draft = Draft(book)
    version = book.state.version + VERSIONS
    draft.state = replace(
        draft.state,
        version=version,
        floor=version,
        capability_epoch=book.state.capability_epoch + EPOCHS,
        next_ids={kind: number + IDS for kind, number in book.state.next_ids.items()},
    )
    for chain in book.chains.values():
        changed = _changed(chain, newest or {})
        draft.put(Kind.CHAIN, changed, changed.id)
    await store.save(draft)

    async def work(txn: Transaction) -> None:
        txn.add(keys.NEXT_INODE, INODES)

    await retry.run(engine, work, durable=True)


def _changed(chain: Chain, newest: Mapping[int, int]) -> Chain:
    members = list(chain.members)
    if len(members) > 1:
        members = sorted(
            (_member(m, LASTSRV if m.state in (SERVING, LASTSRV) else OFFLINE) for m in members),
            key=lambda member: -newest.get(member.incarnation, 0),
        )
    after = with_members(chain, members)
    after.version, after.losses = chain.version + VERSIONS, chain.losses + LOSSES
    return after


def _member(member: ChainMember, state: int) -> ChainMember:
    changed = ChainMember()
    changed.CopyFrom(member)
    changed.state = state  # type: ignore[assignment]
    return changed
