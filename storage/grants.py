"""Which operations a peer may do: capabilities are checked once per connection and remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..proto.capability import Grant, verify
from ..proto.errors import Status, StatusError, error
from ..proto.routing import RoutingTable
from ..proto.rpc import PeerInfo

GRANTS_MAX = 65536  # remembered per connection; beyond it they are forgotten and checked again
ATTACHMENT = "storage.grants"


def refusals(
    peer: PeerInfo,
    routing: RoutingTable,
    capabilities: Sequence[bytes],
    which: Sequence[int],
    inodes: Sequence[int],
    rights: int,
    tenant: int = 0,
) -> dict[int, Status]:
    """Position -> status of the operations that this peer may not do; empty in the usual case. Operation i acts on `inodes[i]` under
    `capabilities[which[i]]` (`which` empty: the first for all). A server of the cluster needs none. What belongs to
    another tenant than 0 (copies of the metadata) is the servers' alone: a capability names an inode, not a tenant. Raises INVALID when
    only some operations say which."""
    if which and len(which) != len(inodes):
        raise error(Status.INVALID, f"columns of different lengths: {len(which)} and {len(inodes)}")
    if tenant and not peer.identity.trusted:
        return dict.fromkeys(range(len(inodes)), Status.PERMISSION_DENIED)
    if not capabilities:
        if peer.identity.trusted:
            return {}
        return dict.fromkeys(range(len(inodes)), Status.PERMISSION_DENIED)
    grants = [_grant(peer, routing, capability) for capability in capabilities]
    if which and _all_granted(grants, rights, routing.capability_epoch, which, inodes):
        return {}
    refused: dict[int, Status] = {}
    for place, grant in enumerate(grants):
        status = grant if isinstance(grant, Status) else _status(grant, rights, routing.capability_epoch)
        if (
            len(grants) == 1
            and isinstance(grant, Grant)
            and status is Status.OK
            and inodes.count(grant.inode) == len(inodes)
        ):
            return {}  # one grant for one inode is the common batch: a count at C speed instead of a look at each operation
        refused.update(_check(place, grant, status, which, inodes))
    if which:
        unknown = len(capabilities)
        refused.update((i, Status.INVALID) for i, place in enumerate(which) if place >= unknown)
    return refused


def _all_granted(
    grants: Sequence[Grant | Status], rights: int, epoch: int, which: Sequence[int], inodes: Sequence[int]
) -> bool:
    """Whether every operation is allowed: the common batch over several files, at C speed."""
    granted = [
        grant.inode for grant in grants if isinstance(grant, Grant) and _status(grant, rights, epoch) is Status.OK
    ]
    try:
        return len(granted) == len(grants) and list(map(granted.__getitem__, which)) == inodes
    except IndexError:
        return False  # names a capability that is not there


def _check(
    place: int, grant: Grant | Status, status: Status, which: Sequence[int], inodes: Sequence[int]
) -> Iterable[tuple[int, Status]]:
    mine: Iterable[int]
    if which:
        mine = (i for i, chosen in enumerate(which) if chosen == place)
    else:
        mine = range(len(inodes)) if place == 0 else ()
    if status is not Status.OK or isinstance(grant, Status):
        return ((i, status) for i in mine)
    return ((i, Status.PERMISSION_DENIED) for i in mine if inodes[i] != grant.inode)


def _grant(peer: PeerInfo, routing: RoutingTable, capability: bytes) -> Grant | Status:
    known: dict[bytes, Grant] = peer.attachments.setdefault(ATTACHMENT, {})
    grant = known.get(capability)
    if grant is None:
        try:
            grant = verify(routing.capability_key, capability, client=peer.client)
        except StatusError as refused:
            return refused.status  # not remembered: the key may be on its way
        if len(known) >= GRANTS_MAX:
            known.clear()
        known[capability] = grant
    return grant


def _status(grant: Grant, rights: int, epoch: int) -> Status:
    try:
        grant.check(grant.inode, rights, epoch)
    except StatusError as refused:
        return refused.status
    return Status.OK
