"""Which inodes have neither extended attributes nor ACLs, as far as the kernel was told lately. Pure.

The kernel asks for the ACLs of an inode each time after it has got fresh attributes, and these say whether there are any. So the
question can be answered from the reply before it, for as long as the kernel may believe that reply.
"""

from __future__ import annotations

BARE_MAX = 4096  # inodes; at the limit all are forgotten, and asked for


class Bare:
    """By inode, until when (seconds, any clock) it is known to be bare."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: for how long the kernel may believe attributes."""
        self._seconds = seconds
        self._until: dict[int, float] = {}
        # Given attributes by this mount: of a reply that was under way nobody knows what it says about them.
        self._dressed: set[int] = set()

    def told(self, inode: int, now: float, *, extended: bool) -> None:
        """A reply gave the kernel attributes, which say whether there is something beside them."""
        if extended:
            self._until.pop(inode, None)
            return
        if len(self._until) >= BARE_MAX:
            self._until.clear()
        self._until[inode] = now + self._seconds

    def dress(self, inode: int) -> None:
        """This mount gives it an attribute or ACL."""
        if len(self._dressed) >= BARE_MAX:
            self._dressed.clear()
            self._until.clear()
        self._dressed.add(inode)

    def known(self, inode: int, now: float) -> bool:
        """Whether it certainly has none."""
        return self._until.get(inode, 0.0) > now and inode not in self._dressed
