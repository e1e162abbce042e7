"""What a replica is told (events) and what it wants done (effects): the vocabulary of storage/craq.py and of its shells."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..proto.errors import Status
from ..proto.gen.common_pb2 import Chain


class Kind(enum.IntEnum):
    """What an update does to its chunk."""

    WRITE = 1  # `length` bytes at `offset`
    TRUNCATE = 2  # cut or extend with zeros to `length`
    REMOVE = 3  # unless it was written under `truncate_version` or later; ALWAYS: whatever it is
    REPLACE = 4  # the payload is the whole content, whatever was there: only from a predecessor
    CLONE = 5  # the committed content of another chunk, cut to `length`; a remove where that has none


ALWAYS = 1 << 32  # the truncate version of removes that no write comes after: the inode is dead


class Version(NamedTuple):
    """The name of a chunk's content."""

    chain_version: int  # under which the head assigned it
    number: int  # + 1 with every update of the chunk


class Source(NamedTuple):
    """Where a clone comes from. Its chunk stays in line with the one that is made until that is answered."""

    chunk: bytes  # on the same chain
    truncate_version: int = 0  # which the client knows of
    version: Version | None = None  # that the head has taken; None: it had none, or has not decided yet


class Update(NamedTuple):
    """One change of one chunk."""

    kind: Kind
    chunk: bytes  # packed chunk id
    offset: int  # bytes into the chunk
    length: int  # bytes
    checksum: int  # CRC32C of the bytes
    client: bytes  # 16 bytes; empty: not numbered (removes, which are idempotent)
    channel: int
    sequence: int
    truncate_version: int
    chunk_size: int  # bytes
    data: Any = None  # the payload, or where to find it: opaque to the machine
    version: Version | None = None  # None: comes from a client, the head assigns it
    units: bytes = b""  # of a REPLACE with damaged content: the CRC32C that every unit should have, u32 little-endian
    source: Source | None = None  # of a CLONE; None: the chunk becomes a hole
    block: bytes = b""  # what the chunk is in the KV cache; empty: what it was before


class Result(NamedTuple):
    """What became of one update."""

    status: int
    number: int = 0  # of the version
    length: int = 0  # of the chunk afterwards, bytes
    checksum: int = 0  # of the whole chunk, where it is known


class ChunkRow(NamedTuple):
    """What the index knows of a chunk."""

    committed: Version
    length: int
    truncate_version: int
    checksum: int = 0  # CRC32C of the content


class ChannelRow(NamedTuple):
    """The last update of a client's channel."""

    sequence: int
    number: int
    length: int


class Rows(Protocol):
    """Synchronous look-ups in the target's index. Where it cannot be read they raise StatusError."""

    def usable(self) -> bool:
        """False when a write of the index has failed (what is looked up then may be what should have been written, and was not), or a
        look-up."""

    def chunk(self, key: bytes) -> ChunkRow | None: ...

    def channel(self, client: bytes, channel: int) -> ChannelRow | None: ...

    def truncate_floor(self, key: bytes) -> int:
        """Of the chunk's file: updates from before this truncate version are refused, also where the chunk is gone."""

    def version_floor(self) -> int:
        """The highest number of any chunk that was removed: a new chunk's first number is higher, so no name is used twice."""

    def pending(self) -> Sequence[Update]:
        """What is persisted and not committed, as REPLACE (of the content that the chunk would have) or REMOVE, with what numbered it."""


# --- events ---


@dataclass(frozen=True, slots=True)
class RoutingChanged:
    """The chain's newest entry, or None when this target is a member of no chain."""

    chain: Chain | None


@dataclass(frozen=True, slots=True)
class ClientsEnded:
    """All clients whose sessions are known to be over; those that are not named any more cannot come back (their capabilities expired)."""

    clients: Iterable[bytes]


@dataclass(frozen=True, slots=True)
class FenceRequest:
    """Whoever numbered this client's updates up to this sequence has died, and its successor has begun beyond. One result."""

    ticket: Any
    chain_version: int
    client: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Updates from one client, or from the predecessor (then each has a version). `ticket` comes back in the Reply."""

    ticket: Any
    chain_version: int
    updates: Sequence[Update]
    sender: int = 0  # target id of the predecessor; 0: a client
    session: int = 0  # of the sender's forward, and its number there (sessions.py)
    number: int = 0


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Make everything that was acknowledged durable, here and down the chain."""

    ticket: Any
    chain_version: int
    sender: int = 0
    session: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class CopyChunks:
    """Make the SYNCING successor's chunks equal to ours, each when its turn has come. One result per chunk in the Reply."""

    ticket: Any
    chain_version: int
    chunks: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Repair:
    """This chunk is damaged or missing here: mend it when its turn has come, when no update of it is under way. One result."""

    ticket: Any
    chunk: bytes


@dataclass(frozen=True, slots=True)
class PersistDone:
    """A Persist or Checkpoint was carried out; one result per update that it named. `committed`: as `Replica.fate` said."""

    batch: int
    results: Sequence[Result]
    committed: bool = False


@dataclass(frozen=True, slots=True)
class MendDone:
    """A Mend was carried out, or failed."""

    batch: int
    status: int = Status.OK


@dataclass(frozen=True, slots=True)
class CommitDone:
    """A Commit was carried out, or failed with the target. Until then the chunk's next update has to wait: `Rows` would still answer the
    version before."""

    batch: int
    status: int = Status.OK


@dataclass(frozen=True, slots=True)
class ForwardAck:
    """The successor's answer to one Forward: one result per update, or None when it did not answer: it may have taken them or not, and
    they may still be on their way to it."""

    batch: int
    session: int
    number: int
    results: Sequence[Result] | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    RoutingChanged
    | ClientsEnded
    | FenceRequest
    | WriteRequest
    | SyncRequest
    | CopyChunks
    | Repair
    | PersistDone
    | CommitDone
    | ForwardAck
    | MendDone
    | Tick
)

# --- effects ---


class Fate(enum.Enum):
    """What is to be done with a batch whose bytes are written, at the moment when the index is to name them."""

    PENDING = 1
    COMMIT = 2  # nobody comes behind us: persisted and committed in one write of the index
    DROP = 3  # we have left the chain: it shall never have been


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the updates so that they survive kill -9, with their channel rows. Before the index is written, `Replica.fate` is asked."""

    batch: int
    updates: Sequence[Update]


@dataclass(frozen=True, slots=True)
class Forward:
    """Send to the successor under the chain version; an answer or the lack of one comes back as ForwardAck. `whole`: not the
    updates but what they make of their chunks, REPLACE of the content under the update's version, or REMOVE."""

    batch: int
    session: int
    number: int
    target: int
    chain_version: int
    updates: Sequence[Update]  # empty: a sync
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """Make persisted updates the chunks' committed content."""

    batch: int
    updates: Sequence[Update]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Make everything persisted so far survive power loss."""

    batch: int


@dataclass(frozen=True, slots=True)
class Mend:
    """Look at the chunk, and bring it back from another SERVING member where it is damaged or missing. Its line is held meanwhile."""

    batch: int
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget everything that is pending: we left the chain, and are made equal to our predecessor from now on."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the request with this ticket: one result per update, in order."""

    ticket: Any
    results: Sequence[Result]


@dataclass(frozen=True, slots=True)
class Suspect:
    """The successor holds other bytes under the same version: say so loudly. It is sent the whole content next."""

    target: int
    chunk: bytes


Effect = Persist | Forward | Commit | Checkpoint | Mend | Discard | Reply | Suspect
