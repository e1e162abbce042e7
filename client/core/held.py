"""What a client holds open for reading, as its keeper reports it.

An unlinked file stays until every client has said what it holds. The metadata server gives the keeper *marks*: places in its queue of
unlinked files. A list may be sent with a mark as `reported` when no file is missing in it that was unlinked before the mark and is open
here; so it is drawn up after the mark was learned, and no open that began before that may still be on its way.

What is opened and closed between two reports is not worth a record at the server. Usually a list has what was open at the last one
too, and goes with the mark of that time; when the server asks for everything, all that is open goes with the newest mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .inode import Inode


class Report(NamedTuple):
    inodes: list[int]
    mark: bytes


class Opening:
    """Opens under way, and what else is read without a handle."""

    __slots__ = ("inodes", "mark")

    def __init__(self, mark: bytes, inodes: frozenset[int]) -> None:
        self.mark: bytes | None = mark  # the newest when it began; None: `inodes` has all that it opened
        self.inodes = inodes

    def opened(self, inodes: Iterable[int]) -> None:
        """All opens have their answers."""
        self.inodes = frozenset(inodes)
        self.mark = None


class Held:
    """Of one identity of a client. Threads open while the keeper reports: each step here is safe by its order alone."""

    def __init__(self, inodes: dict[int, Inode]) -> None:
        self.mark = b""  # the newest that the server told
        self._inodes = inodes
        self._openings: dict[int, Opening] = {}
        self._known: set[int] = set()  # reported in any case, while open
        self._last: set[int] = set()  # what was open at the last report,
        self._last_mark = b""  # and the mark that covers it

    @contextmanager
    def opening(self, number: int = 0) -> Iterator[Opening]:
        """Around opens, until what they opened is in the table of inodes. `number`: of an inode that is opened for reading by it, and
        may have lost its name before."""
        opening = Opening(self.mark, frozenset((number,) if number else ()))
        self._openings[id(opening)] = opening
        if number:
            self._known.add(number)
        try:
            yield opening
        finally:
            del self._openings[id(opening)]

    def report(self, *, everything: bool) -> Report:
        """The list, and the mark that it covers."""
        known = set(self._known)
        openings = list(self._openings.values())  # before the inodes: an open goes from here to there
        mark = next((found for opening in openings if (found := opening.mark) is not None), self.mark)
        now = {inode.id for inode in list(self._inodes.values()) if inode.readers}
        now.update(*(opening.inodes for opening in openings))
        self._known -= known - now
        listed, covered = (now, mark) if everything else (now & (self._last | known), self._last_mark)
        self._last, self._last_mark = now, mark
        return Report(sorted(listed), covered)
