"""The metadata as text: to move it between engines, and to keep copies of it. JSON lines:

    {"emberfs": "metadata", "format": 1, "moment": 812, "time_ns": 1700000000000000000}
    ["INOD\\u0000...", "AQE..."]                 a row: its key, each byte as the character of that number, and its value in base64
    {"end": true, "rows": 51, "crc32c": 907060870}       the checksum is that of all rows' lines

Rows stand in the order of their keys, so a dump that was interrupted goes on behind its last whole line, if the store has not
changed since. A load goes on where it stopped, too: with each batch it records how many rows are in. The engine is of no use to a
server until all are.

Some rows do not carry over as they are, because they hold commit versions and every engine counts these on its own. Records of
queues are stamped anew, in the same order; what readers have reported is forgotten, so that unlinked files wait for new reports; and
the log of events is left out, so that who watches is told to look at everything anew.

A dump holds what a server keeps secret (the key of its capabilities), and the names of everybody's files: keep it where only its owner
can read it.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast

from crc32c import crc32c

from ..proto.errors import Status, error
from . import keys
from .cluster.store import STATE
from .kv import retry
from .kv.engine import KEYS_END, Engine, Transaction
from .kv.open import open_engine
from .namespace import readers

FORMAT = 1
PAGE_ROWS = 1000
BATCH_ROWS = 1000  # of one transaction of a load,
BATCH_BYTES = 1 << 20  # or so many bytes of keys and values
LINE_BYTES_MAX = 1 << 20  # longer ones were not written by us
GZIP_LEVEL = 3
NICE = 10  # of the process that dumps for a server

QUEUES = (keys.DEAD_FILE, keys.DEAD_TREE, keys.DEAD_CHUNKS)  # letters, then a versionstamp

Progress = Callable[[int], None]  # rows so far


class Summary(NamedTuple):
    """What a dump or a load moved."""

    rows: int
    crc32c: int


@dataclass(slots=True)
class Begun:
    """A dump as far as it was written."""

    moment: int
    rows: int = 0
    crc32c: int = 0
    last_key: bytes = b""
    length: int = 0  # bytes of whole lines; what follows is to be cut off


def _header(moment: int) -> bytes:
    head = {"emberfs": "metadata", "format": FORMAT, "moment": moment, "time_ns": time.time_ns()}
    return json.dumps(head).encode() + b"\n"


def _row(key: bytes, value: bytes) -> bytes:
    return json.dumps([key.decode("latin-1"), base64.b64encode(value).decode()]).encode() + b"\n"


async def dump(engine: Engine, out: IO[bytes], begun: Begun | None = None, progress: Progress | None = None) -> Summary:
    """Write everything to a file. The engine must not change meanwhile: stop its servers, or hand in a copy of it.

    Raises CONFLICT when it has changed (also since `begun`), and what the engine and the file raise.
    """
    moment = await engine.begin().commit()
    if begun is None:
        begun = Begun(moment)
        out.write(_header(moment))
    elif begun.moment != moment:
        raise error(Status.CONFLICT, "the metadata has changed since that dump was begun: begin a new one")
    rows, checksum, begin = begun.rows, begun.crc32c, begun.last_key + b"\0" if begun.last_key else b""
    while page := await engine.begin().scan(begin, KEYS_END, PAGE_ROWS, snapshot=True):
        lines = b"".join(_row(key, value) for key, value in page)
        out.write(lines)
        checksum = crc32c(lines, checksum)
        rows += len(page)
        begin = page[-1][0] + b"\0"
        if progress is not None:
            progress(rows)
    if await engine.begin().commit() != moment:
        raise error(Status.CONFLICT, "the metadata changed while it was dumped: stop the metadata servers first")
    out.write(json.dumps({"end": True, "rows": rows, "crc32c": checksum}).encode() + b"\n")
    return Summary(rows, checksum)


def begun_dump(file: IO[bytes]) -> Begun | None:
    """What an interrupted dump holds; None where nothing usable was written. Raises EXISTS for a complete one, BAD_FORMAT for
    another file."""
    first = file.readline(LINE_BYTES_MAX)
    if not first.endswith(b"\n"):
        return None
    begun = Begun(_read_header(first)["moment"], length=len(first))
    for line in _whole_lines(file):
        found = _parse(line)
        if isinstance(found, dict):
            raise error(Status.EXISTS, "that dump is complete")
        begun.rows += 1
        begun.crc32c = crc32c(line, begun.crc32c)
        begun.last_key = _key(found[0])
        begun.length += len(line)
    return begun


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    while (line := file.readline(LINE_BYTES_MAX)).endswith(b"\n"):
        yield line


def _read_header(line: bytes) -> dict[str, Any]:
    found = _parse(line)
    if not isinstance(found, dict) or found.get("emberfs") != "metadata" or not isinstance(found.get("moment"), int):
        raise error(Status.BAD_FORMAT, "that is no dump of emberfs's metadata")
    if found.get("format") != FORMAT:
        raise error(
            Status.BAD_FORMAT,
            f"the dump has format {found.get('format')}, this emberfs reads {FORMAT}: use a newer one",
        )
    return found


def _parse(line: bytes) -> Any:
    try:
        found = json.loads(line)
    except ValueError as bad:
        raise error(Status.BAD_FORMAT, f"a line of the dump is damaged: {line[:60]!r}") from bad
    if isinstance(found, list) and len(found) == 2 and all(isinstance(part, str) for part in found):
        return found
    if isinstance(found, dict):
        return found
    raise error(Status.BAD_FORMAT, f"a line of the dump is damaged, it is no row: {line[:60]!r}")


# --- loading ------------------------------------------------------------------------------------------------------------------------


async def load(engine: Engine, lines: Iterable[bytes], progress: Progress | None = None) -> Summary:
    """Write everything that a dump holds into an empty engine, or go on with a load that was interrupted.

    Raises EXISTS where other metadata lies, BAD_FORMAT for a damaged or incomplete dump, and what the engine raises; the same dump may
    then be loaded again.
    """
    source = iter(lines)
    moment = _read_header(next(source, b"{}"))["moment"]
    done = await _begin_load(engine, moment)
    rows, checksum = 0, 0
    batch = _Batch(engine, moment)
    for line in source:
        found = _parse(line)
        if isinstance(found, dict):
            if (found.get("rows"), found.get("crc32c")) != (rows, checksum):
                raise error(Status.BAD_FORMAT, f"the dump is damaged: {rows} rows do not add up to what its end says")
            await batch.write(rows)
            await _end_load(engine)
            return Summary(rows, checksum)
        checksum = crc32c(line, checksum)
        rows += 1
        if rows > done:
            await batch.add(_key(found[0]), _value(found[1]), rows)
            if progress is not None:
                progress(rows)
    raise error(Status.BAD_FORMAT, f"the dump ends after {rows} rows, without its last line: it is not complete")


def _key(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except ValueError as bad:
        raise error(Status.BAD_FORMAT, f"a key of the dump is damaged: {text[:60]!r}") from bad


def _value(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as bad:
        raise error(Status.BAD_FORMAT, f"a value of the dump is damaged: {text[:60]!r}") from bad


async def _begin_load(engine: Engine, moment: int) -> int:
    """How many rows are in already."""

    async def work(txn: Transaction) -> int:
        loading, *others = await txn.get_many([keys.LOADING, keys.FORMAT, STATE])
        if loading is None:
            if others != [None, None]:
                raise error(Status.EXISTS, "there is metadata already: load into an empty store")
            txn.put(keys.LOADING, _loading(moment, 0))
            return 0
        found = json.loads(loading)
        if found["moment"] != moment:
            raise error(
                Status.EXISTS, "the load of another dump was begun here: go on with that one, or empty the store"
            )
        return int(found["rows"])

    return await retry.run(engine, work, durable=True)


async def _end_load(engine: Engine) -> None:
    async def work(txn: Transaction) -> None:
        txn.delete(keys.LOADING)

    await retry.run(engine, work, durable=True)


def _loading(moment: int, rows: int) -> bytes:
    return json.dumps({"moment": moment, "rows": rows}).encode()


class _Batch:
    """Rows on their way into the engine, a transaction at a time."""

    def __init__(self, engine: Engine, moment: int) -> None:
        self._engine = engine
        self._moment = moment
        self._rows: list[tuple[bytes, bytes]] = []
        self._queued: set[bytes] = (
            set()
        )  # queue records of one transaction have one stamp: each must differ in the rest
        self._bytes = 0

    async def add(self, key: bytes, value: bytes, row: int) -> None:
        if key.startswith(keys.EVENT) or key in (keys.EVENTS_UNTIL, keys.EVENTS_FLOOR):
            return
        name = _without_stamp(key)
        if name in self._queued:
            await self.write(row - 1)
        if name:
            self._queued.add(name)
        self._rows.append((key, value))
        self._bytes += len(key) + len(value)
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            await self.write(row)

    async def write(self, rows: int) -> None:
        """Everything up to this row."""

        async def work(txn: Transaction) -> None:
            for key, value in self._rows:
                _put(txn, key, value)
            txn.put(keys.LOADING, _loading(self._moment, rows))

        await retry.run(self._engine, work)
        self._rows, self._queued, self._bytes = [], set(), 0


def _without_stamp(key: bytes) -> bytes:
    """A queue's letters and what follows the stamp; empty for any other key."""
    letters = next((letters for letters in QUEUES if key.startswith(letters)), None)
    return letters + key[len(letters) + keys.VERSIONSTAMP_BYTES :] if letters is not None else b""


def _put(txn: Transaction, key: bytes, value: bytes) -> None:
    letters = next((letters for letters in QUEUES if key.startswith(letters)), None)
    if letters is not None:
        txn.put_versionstamped(letters, key[len(letters) + keys.VERSIONSTAMP_BYTES :], value)
    else:
        txn.put(key, readers.pack(b"") if key.startswith(keys.READER) else value)


async def require_whole(engine: Engine) -> None:
    """Raise BUSY_RESOURCE for an engine into which a dump was loaded in part."""
    if await engine.begin().get(keys.LOADING, snapshot=True) is not None:
        raise error(
            Status.BUSY_RESOURCE, "a dump is being loaded into this store: let 'emberfs meta load' finish it first"
        )


async def _dump_url(url: str, path: str) -> None:
    engine = open_engine(url)
    try:
        with gzip.open(path, "wb", compresslevel=GZIP_LEVEL) as out:
            await dump(engine, cast(IO[bytes], out))
    finally:
        await engine.close()


if __name__ == "__main__":  # what the server runs for its hourly copy (backup.py): python -m emberfs.meta.dump URL FILE
    os.nice(NICE)
    asyncio.run(_dump_url(*sys.argv[1:]))
