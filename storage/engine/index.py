"""The seam to the index: `Index`, and the one over RocksDB. The simulated one is in simulated.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

Change = tuple[bytes, bytes | None]  # key, value; None deletes


class Index(Protocol):
    """An ordered map with a log. A `write` is atomic and survives a killed process; after power loss a beginning of the sequence
    of writes is left, which contains at least everything before the last `sync`."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def write(self, changes: Sequence[Change], *, sync: bool = False) -> None:
        """Apply all changes or none, in order. With `sync` they and all earlier ones are durable when this returns."""

    def scan(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with begin <= key < end, in key order or backwards."""

    def close(self) -> None: ...


class Lookups:
    """An index as those have it who only look: where it cannot be read, for whatever reason (rocksdict raises bare Exceptions), `failed` is
    told why, which raises. What lies there is not known any more, and "not there" would be a lie."""

    def __init__(self, index: Index, failed: Callable[[str], NoReturn]) -> None:
        self._index = index
        self._failed = failed

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._index.get(key)
        except Exception as broken:
            self._fail(broken)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            return self._index.get_many(keys)
        except Exception as broken:
            self._fail(broken)

    def scan(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from self._index.scan(begin, end, reverse=reverse)
        except Exception as broken:
            self._fail(broken)

    def _fail(self, broken: Exception) -> NoReturn:
        self._failed(f"reading the index: {broken}")


WRITE_BUFFER_BYTES = 8 << 20
BLOCK_CACHE_BYTES = 16 << 20
LOG_BYTES_MAX = 64 << 20  # write-ahead log before the memory tables are flushed
OPEN_FILES_MAX = 256


class RocksIndex:
    """RocksDB through rocksdict. Memory is bounded: two write buffers and one small cache, shared by all keys of the target."""

    def __init__(self, path: str) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_max_write_buffer_number(2)
        options.set_max_total_wal_size(LOG_BYTES_MAX)
        options.set_max_open_files(OPEN_FILES_MAX)
        options.set_keep_log_file_num(2)
        options.set_compression_type(rocksdict.DBCompressionType.none())  # checksums do not compress
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        self._batch = rocksdict.WriteBatch
        self._read_options = rocksdict.ReadOptions
        self._db: Any = rocksdict.Rdict(path, options)
        self.get: Callable[[bytes], bytes | None] = self._db.get  # hot: no frame between

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._db.get(list(keys))  # type: ignore[no-any-return]

    def write(self, changes: Sequence[Change], *, sync: bool = False) -> None:
        batch = self._batch(raw_mode=True)
        for key, value in changes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        self._db.write(batch)
        if sync:
            self._db.flush_wal(True)  # a write that is to sync keeps the interpreter's lock while it waits for the disk

    def scan(self, begin: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        # Not `items()`, which ends at an unreadable block as if there were no more rows; and not `set_iterate_lower_bound`, which sets
        # the upper one (rocksdict 0.3.29).
        options = self._read_options()
        options.set_iterate_upper_bound(end)
        rows = self._db.iter(options)
        if reverse:
            rows.seek_to_last()
        else:
            rows.seek(begin)
        step = rows.prev if reverse else rows.next
        while rows.valid() and (key := rows.key()) >= begin:
            yield key, rows.value()
            step()
        rows.status()

    def close(self) -> None:
        self._db.close()
