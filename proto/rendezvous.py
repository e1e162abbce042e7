"""Where the clients of one inode meet: rendezvous hashing over metadata servers.

Requests about locks, append tokens and the like of one inode go to its owner, so that one server sees all of them: nothing conflicts,
and who waits is woken from memory. Any other server answers them correctly too; clients that disagree for a while about who the owner
is lose speed and nothing else. When a server goes, only the inodes that it owned move.
"""

from __future__ import annotations

from collections.abc import Iterable

_MASK = (1 << 64) - 1


def mixed(number: int) -> int:
    """A hash of 64 bits."""
    # The finalizer of splitmix64: every bit of the number touches every bit of the result.
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)


def owner_of(inode: int, nodes: Iterable[int]) -> int:
    """The node that owns an inode, the same for everybody who knows the same nodes. Raises ValueError without nodes."""
    return max(nodes, key=lambda node: (mixed(mixed(node & _MASK) ^ inode), node))
