"""What a book of the cluster's records tells the namespace: its seams Layouts and Capabilities. The same in every metadata server."""

from __future__ import annotations

from ...proto.blocks import TABLE_OF_FILES
from ...proto.capability import EPOCH_SECONDS, Grant, issue, verify
from ...proto.errors import Status, error
from ..owners import Owners
from .routing import Book


class Grants:
    """Inherited by whoever has a book."""

    def __init__(self, time_scale: float) -> None:
        # A capability issued now is good for the whole next epoch at least.
        self.valid_ms = int(EPOCH_SECONDS * time_scale * 1000)
        self.owners = Owners()  # of clients' ids

    @property
    def book(self) -> Book:
        """The newest records that are known here."""
        raise NotImplementedError

    def table(self) -> tuple[int, int, int]:
        """(table, version, chains) that new files are laid out over. Raises UNAVAILABLE without a chain."""
        newest = self.book.tables.get(TABLE_OF_FILES)
        if newest is None:
            raise error(Status.UNAVAILABLE, "no storage server has registered yet; start one")
        return TABLE_OF_FILES, newest.version, len(newest.chains)

    def issue(self, client: bytes, inode: int, rights: int) -> bytes:
        """A capability under the current key and epoch."""
        state = self.book.state
        return issue(state.capability_key, client=client, inode=inode, rights=rights, epoch=state.capability_epoch)

    def verify(self, client: bytes, capability: bytes) -> Grant:
        """What a capability grants, or granted until it expired. Raises PERMISSION_DENIED for one that is not this client's."""
        return verify(self.book.state.capability_key, capability, client=client)
