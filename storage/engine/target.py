"""A target's directory: formatted once, opened by one process at a time.

format.json   version, random incarnation, cluster, capacity, geometry, what it is for: written once, never changed
lock          held (flock) by the process that serves the target
blocks/       block files (slots.py)
index/        RocksDB (row.py has its key space)
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass

from ...proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ...proto.errors import Status, StatusError, error
from ...proto.ids import boot_id, new_u64
from .disk import FileDisk, sync_directory
from .engine import CACHE_BYTES, ChunkEngine
from .index import RocksIndex
from .slots import SLOT_BYTES_MAX

FORMAT_VERSION = 2  # 1 of targets for files, which older ones know; 2 of those for KV blocks
FORMAT_FILE = "format.json"
LOCK_FILE = "lock"
CAPACITY_MIN = SLOT_BYTES_MAX  # bytes
CHUNK_ID = "tenant:16 inode:64 reserved:16 index:32"


@dataclass(frozen=True)
class Format:
    """What lies in a target's directory."""

    version: int
    incarnation: int  # random, never 0: another one means that the disk was wiped or replaced
    cluster: str  # id; a server of another cluster refuses the target
    capacity: int  # bytes of slots
    chunk_id: str = CHUNK_ID
    table: int = TABLE_OF_FILES  # chain table that its chain belongs to: of files, or of KV blocks


def read_format(path: str) -> Format | None:
    """The format of the target at `path`; None where there is none. Raises BAD_FORMAT for a newer or damaged one."""
    file = os.path.join(path, FORMAT_FILE)
    try:
        with open(file, encoding="utf-8") as opened:
            found = json.load(opened)
        version = int(found["version"])
        if version > FORMAT_VERSION:
            raise error(
                Status.BAD_FORMAT,
                f"{path} has format {version}, this emberfs reads up to {FORMAT_VERSION}: use a newer emberfs",
            )
        made = Format(
            version,
            int(found["incarnation"]),
            str(found["cluster"]),
            int(found["capacity"]),
            str(found["chunk_id"]),
            int(found.get("table", TABLE_OF_FILES)),
        )
        if not (version > 0 and 0 < made.incarnation < 1 << 64 and 0 < made.capacity < 1 << 63):
            raise ValueError("a number that nobody has written")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as bad:
        raise error(
            Status.BAD_FORMAT, f"{file} is damaged: restore it, or empty the directory to begin a new target"
        ) from bad
    if made.chunk_id != CHUNK_ID:
        raise error(Status.BAD_FORMAT, f"{path}: chunk ids are {made.chunk_id!r}, this emberfs knows {CHUNK_ID!r}")
    return made


def format_target(path: str, cluster: str, capacity: int, table: int = TABLE_OF_FILES) -> Format:
    """Begin a target in an empty or missing directory. Raises BAD_FORMAT when something lies there, INVALID for a capacity under
    CAPACITY_MIN."""
    if capacity < CAPACITY_MIN:
        raise error(
            Status.INVALID,
            f"room for {capacity} bytes: a target needs at least {CAPACITY_MIN} (free some on its disk, or give it another)",
        )
    os.makedirs(path, mode=0o700, exist_ok=True)
    others = sorted(set(os.listdir(path)) - {LOCK_FILE, FORMAT_FILE + ".new", "lost+found"})
    if others:
        raise error(Status.BAD_FORMAT, f"{path} is not empty ({others[0]!r}) and no target: give an empty directory")
    version = FORMAT_VERSION if table == TABLE_OF_BLOCKS else 1
    made = Format(version, new_u64(), cluster, capacity, table=table)
    file = os.path.join(path, FORMAT_FILE)
    with open(file + ".new", "w", encoding="utf-8") as opened:
        json.dump(asdict(made), opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    os.rename(file + ".new", file)
    sync_directory(path)
    return made


def _lock(path: str) -> int:
    os.makedirs(path, mode=0o700, exist_ok=True)
    fd = os.open(os.path.join(path, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as held:
        os.close(fd)
        raise error(Status.BUSY_RESOURCE, f"{path} is served by another process: stop that one first") from held
    return fd


def open_target(
    path: str,
    *,
    cluster: str,
    capacity: int = 0,
    direct: bool = False,
    cache_bytes: int = CACHE_BYTES,
    table: int = 0,
) -> tuple[ChunkEngine, Format]:
    """Open the target in a directory, which is formatted with `capacity` bytes when it is empty, for chains of `table` (0: whatever it is
    for; an empty one is for files). Blocking.

    Raises BUSY_RESOURCE (another process has it), WRONG_CLUSTER, BAD_FORMAT, INVALID, OSError. `capacity`, where given, also changes how
    much a formatted target may take in this process."""
    lock = _lock(path)
    try:
        known = read_format(path)
        found = known or format_target(path, cluster, capacity, table or TABLE_OF_FILES)
        if found.cluster != cluster:
            raise error(Status.WRONG_CLUSTER, f"{path} belongs to cluster {found.cluster}, this is {cluster}")
        if table not in (0, found.table):
            what = "KV blocks" if found.table == TABLE_OF_BLOCKS else "files"
            raise error(Status.INVALID, f"{path} was made for {what}: say so, or give another directory")
        disk = FileDisk(os.path.join(path, "blocks"), direct=direct)
        try:
            index = RocksIndex(os.path.join(path, "index"))
        except Exception as bad:  # rocksdict raises bare Exceptions
            disk.close()
            raise error(Status.BAD_FORMAT, f"{path}: the index cannot be opened: {bad}") from bad
        try:
            sync_directory(path)  # the names of blocks/ and index/
            engine = ChunkEngine(
                disk,
                index,
                capacity=capacity or found.capacity,
                boot=boot_id(),
                cache_bytes=cache_bytes,
                known=known is not None,
            )
        except BaseException as failed:
            disk.close()
            index.close()
            if isinstance(failed, (StatusError, OSError)) or not isinstance(failed, Exception):
                raise
            raise error(Status.BAD_FORMAT, f"{path}: the index cannot be read: {failed}") from failed
    except BaseException:
        os.close(lock)
        raise
    engine.on_close(lambda: os.close(lock))
    return engine, found
