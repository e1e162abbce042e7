"""Capabilities: what the metadata server grants a client at open, and what a storage server checks before it serves a chunk.

A capability is 32 bytes: version u8 | rights u8 | reserved u16 | epoch u32 | inode u64 | MAC 16. The MAC is keyed BLAKE2b-128
over the client's id and the first 16 bytes; the key is made once per cluster by the manager and reaches only metadata and storage
servers. A client id is never used again after its lease ended, so it names the session too: a storage server refuses the clients that
routing calls ended.

Time: there is no wall clock in it. The manager counts capability epochs (one an hour of its own uptime, pushed with routing); a
capability of epoch e is good in the epochs e … e + VALID_EPOCHS, which is one hour at the very least. A storage server that is cut
off from the manager stays in its epoch, and there is no newer writer that it could hurt without a routing change.
"""

from __future__ import annotations

import enum
import hmac
import struct
from hashlib import blake2b
from typing import NamedTuple

from .errors import Status, error

KEY_BYTES = 32
CLIENT_BYTES = 16
CAPABILITY_BYTES = 32
EPOCH_SECONDS = 3600.0  # how long the manager stays in one capability epoch, at least
VALID_EPOCHS = 1  # epochs after its own in which a capability is still good
VERSION = 1

_HEAD = struct.Struct(">BBHIQ")
_MAC_BYTES = CAPABILITY_BYTES - _HEAD.size
_PERSON = b"emberfs-cap"


class Rights(enum.IntFlag):
    """What a capability allows with the chunks of its inode."""

    READ = 1
    WRITE = 2


class Grant(NamedTuple):
    """A capability whose MAC was found good: remember it per connection and ask it for every operation."""

    inode: int
    rights: int
    epoch: int

    def check(self, inode: int, rights: int, epoch: int) -> None:
        """Raise PERMISSION_DENIED for another inode or more rights, CAPABILITY_EXPIRED when the cluster's epoch has moved on."""
        if self.inode != inode or self.rights & rights != rights:
            raise error(
                Status.PERMISSION_DENIED,
                f"the capability is for inode {self.inode:x} with rights {self.rights}, not for {rights} on inode {inode:x}",
            )
        if epoch > self.epoch + VALID_EPOCHS:
            raise error(Status.CAPABILITY_EXPIRED, f"the capability for inode {inode:x} has expired; open it again")


def _mac(key: bytes, client: bytes, head: bytes) -> bytes:
    return blake2b(client + head, digest_size=_MAC_BYTES, key=key, person=_PERSON).digest()


def issue(key: bytes, *, client: bytes, inode: int, rights: int, epoch: int) -> bytes:
    """A capability for this client: `rights` on the chunks of `inode`, counted from capability epoch `epoch`."""
    if len(key) != KEY_BYTES or len(client) != CLIENT_BYTES:
        raise error(
            Status.INTERNAL, f"capability key of {len(key)} bytes, client id of {len(client)}: must be 32 and 16"
        )
    head = _HEAD.pack(VERSION, rights, 0, epoch, inode)
    return head + _mac(key, client, head)


def verify(key: bytes, capability: bytes, *, client: bytes) -> Grant:
    """What a capability grants, after its MAC was checked. Raises PERMISSION_DENIED for one that is forged, damaged, made for
    another client or of another cluster, and UNAVAILABLE when the key has not arrived yet."""
    if not key:
        raise error(Status.UNAVAILABLE, "the capability key has not arrived from the manager yet; try again")
    if len(capability) != CAPABILITY_BYTES:
        raise error(Status.PERMISSION_DENIED, f"a capability has {CAPABILITY_BYTES} bytes, this has {len(capability)}")
    head, mac = capability[: _HEAD.size], capability[_HEAD.size :]
    version, rights, _, epoch, inode = _HEAD.unpack(head)
    if version != VERSION or not hmac.compare_digest(mac, _mac(key, client, head)):
        raise error(Status.PERMISSION_DENIED, "the capability was not issued to this client by this cluster")
    return Grant(inode, rights, epoch)


def check(key: bytes, capability: bytes, *, client: bytes, inode: int, rights: int, epoch: int) -> Grant:
    """`verify` and `Grant.check` in one step, for whoever keeps no grants."""
    grant = verify(key, capability, client=client)
    grant.check(inode, rights, epoch)
    return grant


__all__ = [
    "CAPABILITY_BYTES",
    "CLIENT_BYTES",
    "EPOCH_SECONDS",
    "KEY_BYTES",
    "VALID_EPOCHS",
    "Grant",
    "Rights",
    "check",
    "issue",
    "verify",
]
