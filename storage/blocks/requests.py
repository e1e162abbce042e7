"""What requests about blocks have in common: runs of keys, one for each chain; who may do what in a namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ...proto.blocks import KEY_BYTES, KEYS_MAX
from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import KvNamespace
from ...proto.rpc import PeerInfo

if TYPE_CHECKING:
    from .store import Store

READ, WRITE = 4, 2  # permission bits
RIGHTS_MAX = 4096  # namespaces remembered for one connection
ATTACHMENT = "storage.blocks.rights"


class Run(NamedTuple):
    """The keys [begin, end) of a request, which lie on one chain."""

    chain: int
    version: int
    begin: int
    end: int


Runs = Sequence[tuple[Run, "Store | Status"]]  # each with the target's store, or with why it is refused


class Keyed(Protocol):
    """A request with runs of keys."""

    chain: Any
    chain_version: Any
    count: Any
    keys: bytes


def runs_of(request: Keyed) -> list[Run]:
    """Raises INVALID for columns that do not fit, TOO_LARGE."""
    counts, packed = request.count[:], len(request.keys)
    chains, versions = request.chain[:], request.chain_version[:]
    if not len(chains) == len(versions) == len(counts):
        raise error(Status.INVALID, "columns of different lengths: a run has a chain, a version and a number of keys")
    if packed > KEYS_MAX * KEY_BYTES or len(counts) > KEYS_MAX:
        raise error(Status.TOO_LARGE, f"at most {KEYS_MAX} keys in one request")
    if packed != sum(counts) * KEY_BYTES:
        raise error(Status.INVALID, f"{packed} bytes of keys, where the runs announce {sum(counts)} keys")
    runs, begin = [], 0
    for chain, version, count in zip(chains, versions, counts, strict=True):
        runs.append(Run(chain, version, begin, begin + count))
        begin += count
    return runs


def keys_of(packed: bytes) -> list[bytes]:
    return [packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)]


def column(values: Sequence[Any], count: int, otherwise: Any) -> Sequence[Any]:
    """A column that may be absent. Raises INVALID."""
    if not values:
        return [otherwise] * count
    if len(values) != count:
        raise error(Status.INVALID, f"columns of different lengths: {len(values)} and {count}")
    return values[:]


def need_rights(peer: PeerInfo, namespace: KvNamespace, wanted: int) -> None:
    """What a file's mode says, a namespace's says of its blocks. Raises PERMISSION_DENIED."""
    known: dict[int, tuple[KvNamespace, int]] = peer.attachments.setdefault(ATTACHMENT, {})
    found = known.get(namespace.id)
    if found is None or found[0] is not namespace:
        if len(known) >= RIGHTS_MAX:
            known.clear()
        found = known[namespace.id] = (namespace, _rights(peer, namespace))
    if not found[1] & wanted:
        raise error(
            Status.PERMISSION_DENIED,
            f"namespace {namespace.name or namespace.id} of user {namespace.uid} has mode {namespace.mode:o}",
        )


def _rights(peer: PeerInfo, namespace: KvNamespace) -> int:
    identity = peer.identity
    if identity.trusted:
        return READ | WRITE
    if identity.uid == namespace.uid:
        return namespace.mode >> 6
    if namespace.gid == identity.gid or namespace.gid in identity.groups:
        return namespace.mode >> 3
    return namespace.mode
