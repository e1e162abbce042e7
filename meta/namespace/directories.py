"""What a server remembers about directories between transactions.

Every transaction reads DIRV (keys.py). All positive facts about directories - this name in that directory is this directory, its
owner, mode, parent and defaults are these - hold for as long as DIRV has one value, so they are remembered per value: a `View`. A
transaction uses the view of the value that it read, and because DIRV is in its read set, it commits only if the view still holds. What
does not exist is never remembered: making a directory need not tell anybody.
"""

from __future__ import annotations

from typing import NamedTuple

from .access import Credentials
from .acl import Acl
from .quota import Quotas

FACTS_MAX = 200_000  # of each kind; then a view starts anew (about 60 MB at the most)
WALK_BYTES_MAX = 256  # longer ways are walked each time: their text would be most of the memory


class Directory(NamedTuple):
    """What path resolution and creation need of a directory. It satisfies `access.Owned`."""

    id: int
    mode: int
    uid: int
    gid: int
    parent: int
    chunk_size: int  # default of its new files; 0: the cluster's
    stripe: int
    acl: Acl | None = None
    default_acl: Acl | None = None  # what its new entries get
    extended: bool = False  # has extended attributes or ACLs, which go with it
    trash: int = 0
    project: int = 0


class View:
    """The facts under one value of DIRV. A transaction that itself changes directories uses a view of its own."""

    __slots__ = ("attached", "children", "directories", "quotas", "version", "walks")

    def __init__(self, version: int) -> None:
        self.version = version
        self.quotas: Quotas | None = None  # not read yet
        self.directories: dict[int, Directory] = {}
        self.children: dict[tuple[int, bytes], int] = {}  # (directory, name) -> directory
        self.walks: dict[
            tuple[Credentials, int, bytes], int
        ] = {}  # (for whom, from where, path without symlinks) -> directory
        self.attached: set[int] = set()  # directories from which the root can be reached

    def trim(self) -> None:
        """Forget everything when there is too much. Before each fact that is added."""
        if max(len(self.directories), len(self.children), len(self.walks)) >= FACTS_MAX:
            self.directories.clear()
            self.children.clear()
            self.walks.clear()
            self.attached.clear()


class Memory:
    """The view that this server's transactions share at the moment."""

    def __init__(self) -> None:
        self._newest = View(-1)

    def view(self, version: int) -> View:
        """The view for a transaction that read this value of DIRV. One that began before the newest change gets an empty one."""
        newest = self._newest
        if newest.version == version:
            return newest
        view = View(version)
        if version > newest.version:
            self._newest = view
        return view
