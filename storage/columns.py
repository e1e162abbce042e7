"""Requests are columns, operation i in row i of each: what is checked of all of them, and how they are told apart by chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..proto.errors import Status, error
from ..proto.ids import CHUNK_INDEX_MAX, chunk_key
from ..proto.rpc import Context

OPERATIONS_MAX = 4096  # of one request

Group = tuple[int, int, Sequence[int]]  # chain, chain version, operations


def check_columns(count: int, *columns: Any) -> None:
    """Raises TOO_LARGE, INVALID."""
    if count > OPERATIONS_MAX:
        raise error(Status.TOO_LARGE, f"{count} operations: at most {OPERATIONS_MAX} in one request")
    for column in columns:
        if len(column) != count:
            raise error(Status.INVALID, f"columns of different lengths: {len(column)} and {count}")


def need_trust(context: Context) -> None:
    """Raises PERMISSION_DENIED."""
    if not context.peer.identity.trusted:
        raise error(
            Status.PERMISSION_DENIED,
            f"{context.peer.name} is no server of this cluster, and only these cut, remove, count and exchange chunks",
        )


def grouped(chains: Sequence[int], versions: Sequence[int], refused: dict[int, Status]) -> list[Group]:
    """The operations that were not refused, by chain and chain version."""
    count = len(chains)
    if not refused and count and chains.count(chains[0]) == count == versions.count(versions[0]):
        return [(chains[0], versions[0], range(count))]
    groups: dict[tuple[int, int], list[int]] = {}
    for i, key in enumerate(zip(chains, versions, strict=True)):
        if i not in refused:
            groups.setdefault(key, []).append(i)
    return [(chain, version, places) for (chain, version), places in groups.items()]


def end_key(inode: int, last: int, tenant: int) -> bytes:
    """The key behind the chunks [.., last) of a file; `last` may be one more than the largest index."""
    if last > CHUNK_INDEX_MAX:
        return chunk_key(inode, CHUNK_INDEX_MAX, tenant) + b"\0"
    return chunk_key(inode, last, tenant)
