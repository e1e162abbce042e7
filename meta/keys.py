"""The key space of the namespace: every key, its columns, its invariants, and what repairs a broken one.

A key is four ASCII letters and big-endian columns, so that what is scanned together lies together. Values are `struct` records
that begin with a version byte: an older one is read, a newer one is refused with BAD_FORMAT. Counters (marked *) are the engine's own:
8 bytes, little-endian, changed by blind `add` and `max`, in no conflict set. `meta/namespace/check.py` verifies what is said here.

INOD inode:u64 → the inode (namespace/inode.py)
    Exists from creation until the garbage collector freed it. Every inode is below the `inode` allocator's next number, and a
    number is never used twice. nlink of anything but a directory is the number of DENT records that name it; at 0 a DEADf
    record names it instead. A directory has exactly one DENT, in the directory that its `parent` column names; the root is its own
    parent; parent 0 means that a recursive removal detached it and a DEADt record names it.
    Repair: recount nlink from DENT; an inode without name that is in no queue gets one in /lost+found.
DENT directory:u64 name → type, inode (namespace/dentry.py)
    Its directory and its inode exist, the type is the inode's. Repair: delete a name without inode.
DCNT directory:u64 column:1 → counter*   column e: entries, s: subdirectories, t: the newest change (ns since the epoch)
    Blind, so that creators in one directory never conflict. nlink of a directory is 2 + s. Its mtime is t where t is later than the
    ctime in INOD, else the mtime in INOD; its ctime is the later of the two: so `utimes` sets an old mtime and the next entry moves it.
    Repair: recount e and s.
SESS inode:u64 session:u64 → client, uid, opened (namespace/session.py)
    One per open for writing. While one exists the inode's chunks may reach beyond its length, and nothing frees them. Goes at close,
    or when the client's lease ended and the length was settled from the chunks. Repair: settle.
READ client:16 → a key of the queue DEADf, or nothing (namespace/readers.py)
    The client may have files open for reading. Of what was put into that queue up to this key, it has only those open that its HOLD
    records name. Exists before the client's first open for reading is answered; goes with the client.
HOLD inode:u64 client:16 → (empty)
    The client reported that it holds the inode open for reading; nothing frees the chunks. Goes with a later report, or the client.
HELD client:16 inode:u64 → (empty)
    A HOLD record of this client that any server wrote when the inode, which has no name any more, was opened. Whoever takes the client's
    next report learns of it here, and takes it away. Repair: delete with the client.
IDEM client:16 request:u64 (piece:u16) → method, time, reply (namespace/idempotency.py)
    Written by the transaction that carried the request out. Goes when the client says that it has the reply, when the client is gone,
    or after an hour.
ACKN client:16 → number of the last request (u64, little-endian) whose reply the client has
    A late copy of such a request is refused; its record is gone. Goes with the client. (That the client is gone is said by CLUSe, which
    belongs to the manager: meta/cluster/store.py. Every change reads both.)
DEADf versionstamp:10 inode:u64 → (version), "u" for a file that never had a name   a file whose nlink reached 0 (namespace/gc.py)
DEADt versionstamp:10 inode:u64 → (version)   a directory that a recursive removal detached
DEADc versionstamp:10 inode:u64 → layout      the inode is gone, its chunks are going; of files that may have any (gc.py)
    Three garbage queues in the order of commits. A record of the first is stale, and dropped, when a link or publish gave the file a
    name meanwhile; when that name went too, there is a later record. Repair: put what nothing names into its queue.
LOCK inode:u64 → the locks that are held (namespace/locks.py): kind, type, client, owner, range, pid
    No two of them conflict, none is empty, and an owner's ranges of one kind neither overlap nor touch where they say the same. Absent when
    nobody holds one. A client's go with its lease, after its sessions on the inode were settled. Repair: drop the locks of clients
    without a lease.
LKWT client:16 owner:u64 request:u64 → inode, type, range (namespace/deadlock.py)
    This owner waits for this POSIX lock: what deadlocks are looked for in. Goes when the wait ends, by a withdrawal of the client where
    its server died meanwhile, or with the client. Repair: delete; who still waits asks again, and writes it again.
APND inode:u64 → client, session, wanted (namespace/append.py)
    The client may append to the inode, and nobody else: its writes may lie beyond the length. Goes when the length was settled, by the
    client or, from the chunks, when its lease ended. `wanted`: somebody waits for it. Repair: settle.
TRSH expires:u64 inode:u64 → parent, removed_ns, remover, name (namespace/trash.py)
    Something removed, that is kept until then (seconds since the epoch). Exists while the inode's TRASH flag is set; the inode has no name,
    and nothing else frees it. Repair: as of what is in a garbage queue.
QUOT kind:1 id:u64 → limits (namespace/quota.py)    kind: QuotaKind; id: a directory's inode, uid or gid
USED kind:1 id:u64 column:1 → counter*   column b: bytes, i: inodes
    What has a name and belongs to the user or group, or to the project of that directory (the `project` column of INOD). Repair: recount.
EVNT versionstamp:10 place:u16 → an event (namespace/events.py), while somebody watches
INLN inode:u64 → version:u8 bytes (namespace/inline.py)    the content of a small file
    Exists while the inode's INLINE flag is set, and is as long as it says. No chunk of the file counts.
    Repair: the length is as the record says; a flag without one goes, and with it the length.
TRIM inode:u64 → old length, new length, truncate version (namespace/trim.py)
    The inode was cut and chunks behind the new end may still be there. Exists exactly while the inode's TRIMMING flag is set.
    The length does not grow meanwhile. Repair: finish it.
NEXT allocator → next number*   allocators: "inode", "chain" (namespace/allocate.py)
    Everything below was handed out, or was in a range that its server did not use up.
STAT column → counter*   columns: "inodes"   Repair: recount.
XATR inode:u64 name → value (as it was set; meta/namespace/extended.py)
    An extended attribute, its name with the namespace: `user.`, `trusted.`, `security.`. Where there is one, the inode has the flag
    XATTRS; the flag alone says only that it is worth looking. Repair: delete what has no inode; set the flag.
ACLS inode:u64 kind:1 → the ACL (namespace/acl.py)   kind a: access, d: default
    Exists exactly while the inode has the flag ACL (DEFAULT_ACL, a directory). An access ACL always has a mask.
    Repair: delete it; clear the flag.
DIRV → counter*
    Raised by whatever changes a directory's place, permissions or defaults: rename, rmdir, recursive
    removal, chmod, chown, ACLs, first extended attribute of a directory. Every transaction reads it; what was learned about
    directories holds for one value of it.
BKUP number:u64 → JSON (meta/backup.py)   a copy of the metadata in the chunks of one chain. Repair: delete one that is not whole.
META "format" → version of this key space; "clean" → the last server to write closed it in order; "events" → counter*: until when
    events are logged (seconds since the epoch); "eventfloor" → the key up to which the log was cut; "eventlog" → counter*: how often it was
    begun anew; "loading" → a dump is being loaded
    (meta/dump.py), and this store is no use until it is in.

Letters that are kept for what comes: INLN inode (bytes of a small file), LOCK inode, QUOT and USED scope
(limits, usage counters*), TRSH day inode, EVNT versionstamp. Ranges by inode are freed by the garbage collector together with INOD.
"""

from __future__ import annotations

import struct

from ..proto.errors import Status, StatusError, error

KEY_SPACE_VERSION = 1

INODE = b"INOD"
DENTRY = b"DENT"
DIRECTORY_COUNTER = b"DCNT"
SESSION = b"SESS"
READER = b"READ"
HOLD = b"HOLD"
HELD = b"HELD"
IDEMPOTENCY = b"IDEM"
ACKNOWLEDGED = b"ACKN"
ENDED_CLIENT = b"CLUSe"
DEAD_FILE = b"DEADf"
DEAD_TREE = b"DEADt"
DEAD_CHUNKS = b"DEADc"
TRIM = b"TRIM"
TRASH = b"TRSH"
QUOTA = b"QUOT"
USED = b"USED"
LOCK = b"LOCK"
LOCK_WAIT = b"LKWT"
APPEND_TOKEN = b"APND"
XATTR = b"XATR"
ACL = b"ACLS"

DIRECTORY_VERSION = b"DIRV"
FORMAT = b"METAformat"
CLEAN = b"METAclean"
LOADING = b"METAloading"
INODES_USED = b"STATinodes"
NEXT = b"NEXT"
NEXT_INODE = b"NEXTinode"
BACKUP = b"BKUP"
INLINE = b"INLN"
EVENT = b"EVNT"
EVENTS_UNTIL = b"METAevents"
EVENTS_FLOOR = b"METAeventfloor"
EVENT_LOG = b"METAeventlog"

VERSIONSTAMP_BYTES = 10

_U16 = struct.Struct(">H")
_U64 = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")
_ONE = struct.Struct(">4sQ")
_TWO = struct.Struct(">4sQQ")
_LETTER = struct.Struct(">4sQc")
_SCOPE = struct.Struct(">4sBQ")
_COUNTER = struct.Struct("<q")


def inode_key(inode: int) -> bytes:
    return _ONE.pack(INODE, inode)


def dentry_key(directory: int, name: bytes) -> bytes:
    return _ONE.pack(DENTRY, directory) + name


def dentry_range(directory: int) -> tuple[bytes, bytes]:
    """Begin and end of all names of a directory."""
    return _ONE.pack(DENTRY, directory), _ONE.pack(DENTRY, directory + 1)


DENTRY_NAME_AT = _ONE.size  # where the name begins in a DENT key


def entries_key(directory: int) -> bytes:
    return _LETTER.pack(DIRECTORY_COUNTER, directory, b"e")


def subdirectories_key(directory: int) -> bytes:
    return _LETTER.pack(DIRECTORY_COUNTER, directory, b"s")


def changed_key(directory: int) -> bytes:
    return _LETTER.pack(DIRECTORY_COUNTER, directory, b"t")


def session_key(inode: int, session: int) -> bytes:
    return _TWO.pack(SESSION, inode, session)


def session_range(inode: int) -> tuple[bytes, bytes]:
    return _ONE.pack(SESSION, inode), _ONE.pack(SESSION, inode + 1)


def split_session_key(key: bytes) -> tuple[int, int]:
    """(inode, session)."""
    _, inode, session = _TWO.unpack(key)
    return inode, session


def reader_key(client: bytes) -> bytes:
    return READER + client


def reader_of(key: bytes) -> bytes:
    """The client of a READ key."""
    return key[len(READER) :]


def hold_key(inode: int, client: bytes) -> bytes:
    return _ONE.pack(HOLD, inode) + client


def hold_range(inode: int) -> tuple[bytes, bytes]:
    return _ONE.pack(HOLD, inode), _ONE.pack(HOLD, inode + 1)


def split_hold_key(key: bytes) -> tuple[int, bytes]:
    """(inode, client)."""
    return inode_of(key), key[_ONE.size :]


def held_key(client: bytes, inode: int) -> bytes:
    return HELD + client + _U64.pack(inode)


def held_range(client: bytes) -> tuple[bytes, bytes]:
    return HELD + client, HELD + client + b"\xff" * 9


def idempotency_key(client: bytes, request: int) -> bytes:
    return IDEMPOTENCY + client + _U64.pack(request)


def idempotency_piece_key(key: bytes, piece: int) -> bytes:
    """Where a reply that is too long for one value goes on."""
    return key + _U16.pack(piece)


def idempotency_pieces(key: bytes) -> tuple[bytes, bytes]:
    """Begin and end of all pieces of the record that begins at `key`."""
    return key, key + b"\xff"


def idempotency_range(client: bytes, last: int = (1 << 64) - 1) -> tuple[bytes, bytes]:
    """Begin and end of a client's records up to and including request `last`."""
    return IDEMPOTENCY + client, idempotency_pieces(idempotency_key(client, last))[1]


def acknowledged_key(client: bytes) -> bytes:
    return ACKNOWLEDGED + client


def ended_client_key(client: bytes) -> bytes:
    """Exists from the end of the client's lease until none of its requests can be on its way any more."""
    return ENDED_CLIENT + client


def dead_suffix(inode: int) -> bytes:
    """What follows the versionstamp in a DEAD key."""
    return _U64.pack(inode)


def dead_inode(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big")


def backup_key(number: int) -> bytes:
    return _ONE.pack(BACKUP, number)


def trash_key(expires: int, inode: int) -> bytes:
    return _TWO.pack(TRASH, expires, inode)


def trash_expires(key: bytes) -> int:
    return _TWO.unpack(key)[1]  # type: ignore[no-any-return]


def quota_key(kind: int, number: int) -> bytes:
    return _SCOPE.pack(QUOTA, kind, number)


def split_quota_key(key: bytes) -> tuple[int, int]:
    """(kind, id) of a QUOT or USED key."""
    _, kind, number = _SCOPE.unpack_from(key)
    return kind, number


def used_key(kind: int, number: int, column: bytes) -> bytes:
    return _SCOPE.pack(USED, kind, number) + column


def inline_key(inode: int) -> bytes:
    return _ONE.pack(INLINE, inode)


def trim_key(inode: int) -> bytes:
    return _ONE.pack(TRIM, inode)


def xattr_key(inode: int, name: bytes) -> bytes:
    return _ONE.pack(XATTR, inode) + name


def xattr_range(inode: int) -> tuple[bytes, bytes]:
    """Begin and end of all extended attributes of an inode."""
    return _ONE.pack(XATTR, inode), _ONE.pack(XATTR, inode + 1)


XATTR_NAME_AT = _ONE.size  # where the name begins in an XATR key


def acl_key(inode: int) -> bytes:
    return _LETTER.pack(ACL, inode, b"a")


def default_acl_key(inode: int) -> bytes:
    return _LETTER.pack(ACL, inode, b"d")


def lock_key(inode: int) -> bytes:
    return _ONE.pack(LOCK, inode)


def lock_wait_key(client: bytes, owner: int, wait: int) -> bytes:
    return LOCK_WAIT + client + _PAIR.pack(owner, wait)


def lock_wait_range(client: bytes, owner: int) -> tuple[bytes, bytes]:
    """Begin and end of all that an owner waits for."""
    begin = LOCK_WAIT + client + _U64.pack(owner)
    return begin, begin + b"\xff" * 9


def lock_waits_of(client: bytes) -> tuple[bytes, bytes]:
    """Begin and end of all that a client's owners wait for."""
    return LOCK_WAIT + client, LOCK_WAIT + client + b"\xff" * 17


def split_lock_wait_key(key: bytes) -> tuple[bytes, int]:
    """(client, owner)."""
    return key[4:20], int.from_bytes(key[20:28], "big")


def append_key(inode: int) -> bytes:
    return _ONE.pack(APPEND_TOKEN, inode)


def inode_of(key: bytes) -> int:
    """The inode column of an INOD, DENT, DCNT, SESS, HOLD, TRIM, XATR or ACLS key (the column behind the letters)."""
    return int.from_bytes(key[4:12], "big")


def prefix_range(letters: bytes) -> tuple[bytes, bytes]:
    """Begin and end of all keys with these letters."""
    return letters, letters[:-1] + bytes([letters[-1] + 1])


def counter(value: bytes | None) -> int:
    """The number in a counter's value; an absent counter is 0."""
    return _COUNTER.unpack(value)[0] if value is not None else 0


def counter_value(number: int) -> bytes:
    """The value of a counter that stands at `number` (to put it, rather than add to it)."""
    return _COUNTER.pack(number)


def refused(what: str, version: int) -> StatusError:
    """The error for a record of a version that this software does not know."""
    return error(
        Status.BAD_FORMAT,
        f"{what} has format version {version}, newer than this software reads; upgrade emberfs on this server",
    )
