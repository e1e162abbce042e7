"""How the embedded database is opened: its memory, its format, and a clear answer when it cannot be.

Memory is bounded whatever the number of files: block cache (with indexes and bloom filters in it) plus write buffers, about
150 MB when all is full.
"""

from __future__ import annotations

import errno
import os

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteOptions,
)

from ...proto.errors import Status, StatusError, error
from .engine import KEYS_END

FORMAT_KEY = KEYS_END + b"/format"
FORMAT = 1  # of how transactions are laid into RocksDB; the namespace has a version of its own
_FORMAT_PREFIX = b"emberfs-kv "

BLOCK_CACHE_BYTES = 64 << 20
WRITE_BUFFER_BYTES = 16 << 20
WRITE_BUFFERS_MAX = 4  # a burst of 64 MB before a commit waits for a flush
WAL_BYTES_MAX = 128 << 20  # bounds the time to open after a crash
OPEN_FILES_MAX = 512
LEVEL0_FILES_SLOW = 40  # RocksDB's 20 and 36 delay writers, who here are the event loop
LEVEL0_FILES_STOP = 80
INFO_LOG_BYTES_MAX = 1 << 20
BLOOM_BITS_PER_KEY = 10


def options() -> Options:
    """RocksDB's options for metadata: small rows, point lookups that often miss, short scans of one directory."""
    table = BlockBasedOptions()
    table.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    table.set_block_size(8 << 10)
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    # Indexes and filters in pieces: in one piece, the filter of a file of a million keys does not fit into its shard of the cache,
    # and each look for a new name reads and checks all of it (with 500,000 names in a directory, a create cost four times as much).
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_pin_top_level_index_and_filter(True)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    made = Options(raw_mode=True)
    made.create_if_missing(True)
    made.set_block_based_table_factory(table)
    made.set_compression_type(DBCompressionType.lz4())
    made.set_write_buffer_size(WRITE_BUFFER_BYTES)
    made.set_max_write_buffer_number(WRITE_BUFFERS_MAX)
    made.set_max_total_wal_size(WAL_BYTES_MAX)
    made.set_level_compaction_dynamic_level_bytes(True)
    made.set_level_zero_slowdown_writes_trigger(LEVEL0_FILES_SLOW)
    made.set_level_zero_stop_writes_trigger(LEVEL0_FILES_STOP)
    made.set_max_background_jobs(2)
    made.set_bytes_per_sync(
        1 << 20
    )  # flushes and compactions write evenly, so that a WAL sync does not queue behind them
    made.set_max_open_files(OPEN_FILES_MAX)
    made.set_keep_log_file_num(4)
    made.set_max_log_file_size(INFO_LOG_BYTES_MAX)
    return made


def open_database(path: str, using: Options | None = None) -> Rdict:
    """The database at `path`, made when there is none. Raises NOT_DIRECTORY, PERMISSION_DENIED, BUSY_RESOURCE (another process has it),
    BAD_FORMAT (a newer version wrote it, or it is none of ours, or damaged), NO_SPACE, IO_ERROR."""
    _check_directory(path)
    try:
        database = Rdict(path, using or options())
    except Exception as failure:
        raise _open_error(path, str(failure)) from failure
    try:
        _check_format(path, database)
    except Exception as failure:
        database.close()
        raise failure if isinstance(failure, StatusError) else _open_error(path, str(failure)) from failure
    return database


def _check_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        names = os.listdir(path)
    except (FileExistsError, NotADirectoryError) as wrong:
        raise error(
            Status.NOT_DIRECTORY, f"{path} is not a directory: the metadata store needs one of its own"
        ) from wrong
    except PermissionError as denied:
        raise error(Status.PERMISSION_DENIED, f"{path}: {denied.strerror}; the server's user must own it") from denied
    except OSError as failure:
        status = Status.READ_ONLY if failure.errno == errno.EROFS else Status.IO_ERROR
        raise error(status, f"{path} cannot be made or listed: {failure.strerror}") from failure
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise error(Status.PERMISSION_DENIED, f"{path} is not writable; the server's user must own it")
    if names and "CURRENT" not in names and not _is_unfinished(names):
        raise error(Status.BAD_FORMAT, f"{path} holds files, but no metadata store: choose an empty directory")


def _is_unfinished(names: list[str]) -> bool:
    """Whether a first open was killed before it named a current manifest: RocksDB makes these names first, and begins anew."""
    known = ("LOCK", "LOG", "IDENTITY", "MANIFEST-", "OPTIONS-", "rocksdict-config.json")
    return all(name.startswith(known) or name.endswith((".log", ".dbtmp")) for name in names)


def _open_error(path: str, reason: str) -> StatusError:
    if "lock hold by current process" in reason or "While lock file" in reason:
        return error(
            Status.BUSY_RESOURCE, f"{path} is in use: another process has the metadata store open; stop it first"
        )
    if "Permission denied" in reason:
        return error(Status.PERMISSION_DENIED, f"{path} is not readable and writable for this user: {reason}")
    if "No space left" in reason:
        return error(Status.NO_SPACE, f"the disk of {path} is full: free some space and start again")
    if "Corruption" in reason or "Invalid argument" in reason or "Not implemented" in reason:
        return error(Status.BAD_FORMAT, f"the metadata store in {path} is damaged or of another version: {reason}")
    return error(Status.IO_ERROR, f"the metadata store in {path} cannot be opened: {reason}")


def _check_format(path: str, database: Rdict) -> None:
    found = database.get(FORMAT_KEY)
    if found is None:
        if database.latest_sequence_number():
            raise error(Status.BAD_FORMAT, f"{path} holds a RocksDB database that emberfs did not write")
        synced = WriteOptions()
        synced.sync = True
        database.put(FORMAT_KEY, _FORMAT_PREFIX + b"%d" % FORMAT, synced)
        return
    number = found.removeprefix(_FORMAT_PREFIX) if isinstance(found, bytes) else b""
    if not number.isdigit():
        raise error(Status.BAD_FORMAT, f"{path} names its format {found!r}, which no version of emberfs does")
    if int(number) > FORMAT:
        raise error(
            Status.BAD_FORMAT,
            f"{path} has format {int(number)}, this emberfs reads up to {FORMAT}: start a newer emberfs on it",
        )
