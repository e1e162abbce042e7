"""Who calls over gRPC; no I/O.

Without a cluster secret every caller is nobody (and the server listens on loopback only). With one, a first call is refused with
`emberfs-challenge-bin`; each later call on that connection proves the secret in its metadata, without ever sending it:

    emberfs-proof-bin   HMAC-SHA256(secret, parts "grpc-client", challenge, cluster, client, user), each part after its length (u32 LE)
    emberfs-client-bin  16 bytes, the client's identity; if absent one is derived from the connection and the part is empty
    emberfs-user        "uid:gid"

and may ask the server for the same with `emberfs-nonce-bin`: `emberfs-server-proof-bin` comes with the challenge, over the parts
"grpc-server", nonce, challenge, cluster. Root becomes nobody, and nobody here is trusted to act for others or to register servers.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from typing import Any

from ..proto.errors import Status, error
from ..proto.rpc import Identity, PeerInfo

NOBODY = 65534
ID_MAX = (1 << 32) - 2
CLIENT_BYTES = 16
CHALLENGES_MAX = 4096  # connections with a challenge; the oldest has to begin anew


def prove(secret: bytes, *parts: bytes) -> bytes:
    """The proof that the secret is known, over these parts."""
    return hmac.digest(secret, b"".join(struct.pack("<I", len(part)) + part for part in parts), "sha256")


class Gate:
    """Decides who a caller is. `where` names a connection as long as it lives."""

    def __init__(self, secret: bytes, cluster: str) -> None:
        self._secret = secret
        self._cluster = cluster.encode()
        self._challenges: dict[str, bytes] = {}

    def admit(self, where: str, metadata: Mapping[str, Any]) -> PeerInfo | dict[str, bytes]:
        """The peer, or the metadata that goes with its refusal. Raises INVALID for a client id of another length."""
        named = metadata.get("emberfs-client-bin", b"")
        if named and len(named) != CLIENT_BYTES:
            raise error(Status.INVALID, f"emberfs-client-bin has {len(named)} bytes, not {CLIENT_BYTES}")
        client = named or hashlib.blake2b(where.encode(), digest_size=CLIENT_BYTES).digest()
        if not self._secret:
            return PeerInfo(client, Identity(NOBODY, NOBODY), "grpc", where)
        user, challenge = metadata.get("emberfs-user", ""), self._challenges.get(where)
        if challenge is not None:
            expected = prove(self._secret, b"grpc-client", challenge, self._cluster, named, user.encode())
            if hmac.compare_digest(expected, metadata.get("emberfs-proof-bin", b"")):
                return PeerInfo(client, _identity(user), "grpc", where)
        return self._refusal(where, metadata.get("emberfs-nonce-bin", b""))

    def _refusal(self, where: str, nonce: bytes) -> dict[str, bytes]:
        challenge = self._challenges.get(where)
        if challenge is None:
            if len(self._challenges) >= CHALLENGES_MAX:
                self._challenges.pop(next(iter(self._challenges)))
            challenge = self._challenges[where] = os.urandom(32)
        answer = {"emberfs-challenge-bin": challenge}
        if nonce:
            answer["emberfs-server-proof-bin"] = prove(self._secret, b"grpc-server", nonce, challenge, self._cluster)
        return answer


def _identity(user: str) -> Identity:
    uid, _, gid = user.partition(":")
    if not (uid.isdecimal() and gid.isdecimal()) or not 0 < int(uid) <= ID_MAX or int(gid) > ID_MAX:
        return Identity(NOBODY, NOBODY)
    return Identity(int(uid), int(gid))
