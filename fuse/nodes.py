"""What the kernel knows: which inodes, how often it looked each up, and which version of each it was told. Pure.

    LOOKUP, CREATE, READDIRPLUS…  ->  looked_up(inode, change)      the kernel holds one reference more
    GETATTR, SETATTR              ->  tell(inode, change)
    OPEN                          ->  opened(inode)                 from now on the kernel may hold pages
    FORGET                        ->  forget(inode, count)          at zero, the inode is not known any more

`change` is the version of an inode's content and attributes. `told(inode) == change` says that *all* that the kernel holds of a regular
file — its size, and its pages where it may have some — is of this version. Attributes of a new version do not drop old pages
(Init.EXPLICIT_INVAL_DATA), so with pages about, what the kernel holds is then a mixture: told is 0, unknown, until the pages
were invalidated. Zero is always safe: the next OPEN invalidates.

A million inodes is a `find` away, so each is one integer in one dictionary (about 110 bytes): change, a bit for pages, lookups.
"""

from __future__ import annotations

LOOKUP_BITS = 40
_ONE_LOOKUP = 1
_LOOKUPS = (1 << LOOKUP_BITS) - 1
_PAGES = 1 << LOOKUP_BITS
_CHANGE_SHIFT = LOOKUP_BITS + 1
FIRST_CHANGE = 1  # of a file that was made and never changed: there are no older pages of it
SHRINK_MIN = 4096  # inodes; a smaller table is not worth making anew


class Nodes:
    """The inodes that the kernel holds, by number."""

    def __init__(self, *, inherited: bool = False) -> None:
        """`inherited`: the kernel had this connection before, so that it may hold pages of inodes that are not known here."""
        self._unseen = _PAGES if inherited else 0
        self._known: dict[int, int] = {}
        self._most = 0  # entries since the table was made: a dictionary never shrinks by itself

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, inode: int) -> bool:
        return inode in self._known

    def lookups(self, inode: int) -> int:
        """How many FORGETs would be needed."""
        return self._known.get(inode, 0) & _LOOKUPS

    def told(self, inode: int) -> int:
        """The version of all that the kernel holds of an inode; 0: unknown, or a mixture."""
        return self._known.get(inode, 0) >> _CHANGE_SHIFT

    def has_pages(self, inode: int) -> bool:
        """Whether the kernel may hold pages of an inode."""
        return bool(self._known.get(inode, 0) & _PAGES)

    def looked_up(self, inode: int, change: int) -> None:
        """A reply gave the kernel an entry with attributes: one lookup more."""
        known = self._known.get(inode)
        if known is None:
            known = self._unseen if change != FIRST_CHANGE else 0
        self._known[inode] = _with_attributes(known, change) + _ONE_LOOKUP

    def tell(self, inode: int, change: int) -> None:
        """A reply gave the kernel attributes of an inode that it knows."""
        known = self._known.get(inode)
        if known is not None:
            self._known[inode] = _with_attributes(known, change)

    def opened(self, inode: int) -> None:
        """The kernel may hold pages of it from now on, of the version that it was told."""
        known = self._known.get(inode)
        if known is not None:
            self._known[inode] = known | _PAGES

    def inherited(self, inode: int) -> None:
        """It was open under a process before this one: the kernel knows it, and may hold pages of any version."""
        self._known.setdefault(inode, _PAGES)

    def invalidated(self, inode: int, change: int) -> None:
        """The kernel has dropped attributes and pages; what it asks for now is at least of this version, or of a newer one that it was told
        meanwhile."""
        known = self._known.get(inode)
        if known is not None and known >> _CHANGE_SHIFT < change:
            self._known[inode] = change << _CHANGE_SHIFT | (known & (_LOOKUPS | _PAGES))

    def advanced(self, inode: int, change: int) -> None:
        """A change of our own, which the kernel knows of, has led to this version. Only from the one right before it: otherwise somebody
        else wrote in between, and what the kernel holds is unknown."""
        known = self._known.get(inode)
        if known is None:
            return
        before = known >> _CHANGE_SHIFT
        if before and before == change - 1:
            self._known[inode] = change << _CHANGE_SHIFT | (known & (_LOOKUPS | _PAGES))
        elif before != change:
            self._known[inode] = known & (_LOOKUPS | _PAGES)

    def followed(self, inode: int, since: int, change: int) -> None:
        """As `advanced`, of several changes: from version `since` on all up to this one were ours. Where the kernel is at an older version
        it stays there: the steps between may yet turn out to be ours as well, when their replies come."""
        known = self._known.get(inode)
        if known is None:
            return
        before = known >> _CHANGE_SHIFT
        if before and since <= before:
            self._known[inode] = max(before, change) << _CHANGE_SHIFT | (known & (_LOOKUPS | _PAGES))

    def unknown(self, inode: int) -> None:
        """Nobody knows any more what the kernel holds of it: the next OPEN invalidates."""
        known = self._known.get(inode)
        if known is not None:
            self._known[inode] = known & (_LOOKUPS | _PAGES)

    def forget(self, inode: int, count: int) -> None:
        """The kernel has dropped so many references. More than it had is as many."""
        known = self._known.get(inode)
        if known is None:
            return
        if known & _LOOKUPS > count:
            self._known[inode] = known - count
            return
        self._most = max(self._most, len(self._known))
        del self._known[inode]
        if self._most > SHRINK_MIN and len(self._known) < self._most // 4:
            self._known = dict(self._known)
            self._most = len(self._known)


def _with_attributes(known: int, change: int) -> int:
    """What is known of an inode whose attributes the kernel has got as of this version: over older pages that is a mixture."""
    if known >> _CHANGE_SHIFT == change:
        return known
    if known & _PAGES:
        return known & (_LOOKUPS | _PAGES)
    return change << _CHANGE_SHIFT | (known & _LOOKUPS)
