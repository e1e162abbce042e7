"""Copies of the metadata in the chunks: the embedded engine lies on one disk, and the files outlive it.

Every hour a copy of the engine is dumped (dump.py, in a process of its own, compressed) and written as chunks of the system's tenant,
all on one chain, so that any one of its members gives the metadata back. The number of a copy is its time in seconds, and takes the
place of the inode in its chunk ids. Piece CHUNK_INDEX_MAX is the manifest; it comes last, when the others are durable, so a copy
without one is not whole. Copies go after a week. Which there are is also on record (BKUP), for who tidies up.

`deploy/restore.py` finds the copies in targets that nobody serves, when the metadata is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import structlog
from crc32c import crc32c

from ..proto.errors import Status, StatusError, error
from ..proto.ids import CHUNK_INDEX_MAX
from . import keys
from .kv import retry
from .kv.engine import Engine, Transaction

FORMAT = 1
EVERY_SECONDS = 3600.0
KEPT_SECONDS = 7 * 86400.0
LOOK_SECONDS = 60.0  # between looks whether another copy is due
PIECE_BYTES = 256 << 10
MANIFEST = CHUNK_INDEX_MAX  # its piece
PIECES_MAX = MANIFEST  # of a copy: 1 PiB
_FOLDER = "backup-"  # of a copy in the making, in the server's data directory
CHAINS_MAX = 8  # that are tried for a copy
LEFT_SECONDS = 86400.0  # after which a frozen copy that somebody asked for is nobody's any more
RECORDS_MAX = 10_000  # an administrator may ask for copies at any time

_log = structlog.get_logger("emberfs.meta.backup")


class Manifest(NamedTuple):
    """What a whole copy says about itself."""

    number: int  # seconds since the epoch
    chain: int
    length: int  # bytes, compressed
    pieces: int
    crc32c: int  # of the compressed bytes
    cluster: str

    def pack(self) -> bytes:
        return json.dumps({"format": FORMAT, **self._asdict()}).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Manifest:
        """Raises BAD_FORMAT."""
        try:
            fields = json.loads(data)
            if fields.pop("format") != FORMAT:
                raise error(
                    Status.BAD_FORMAT, "a copy of the metadata was written by a newer emberfs: upgrade this one"
                )
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as bad:
            raise error(Status.BAD_FORMAT, "the manifest of a copy of the metadata is damaged") from bad


@runtime_checkable
class Frozen(Engine, Protocol):
    """An engine that can be copied as it is at one moment: the embedded one."""

    async def freeze(self, path: str) -> None: ...


class Pieces(Protocol):
    """Chunks that are no file's (meta/chunks.py)."""

    async def write_piece(self, number: int, index: int, chain: int, data: bytes) -> None: ...

    def losses(self, chain: int) -> int: ...

    async def sync_chain(self, chain: int, since: int) -> None: ...

    async def remove_pieces(self, number: int, chain: int) -> None: ...


class Backups:
    """Makes copies, and removes old ones. `chains` names those that copies may go to now."""

    def __init__(
        self,
        engine: Frozen,
        pieces: Pieces,
        chains: Callable[[], Sequence[int]],
        clock: Any,
        folder: Path,
        cluster: str,
    ) -> None:
        self._engine = engine
        self._pieces = pieces
        self._chains = chains
        self._clock = clock
        self._folder = folder
        self._cluster = cluster
        self._making = asyncio.Lock()

    async def run(self) -> None:
        """Background: a copy when the last one is an hour old, for ever. What fails is logged and tried again."""
        self._remove_left(float("inf"))  # of a process that was killed
        begun = self._clock.wall_ns()
        while True:
            try:
                newest = max((number for number, record in await self._records() if record["whole"]), default=0)
                if self._clock.wall_ns() - max(newest * 10**9, begun if not newest else 0) >= EVERY_SECONDS * 1e9:
                    await self.make()
                await self._tidy()
                self._remove_left(self._clock.wall_ns() / 1e9 - LEFT_SECONDS)
            except OSError as failed:  # also of a disk that is full
                _log.warning("the metadata was not backed up", error=failed.strerror or str(failed))
            await self._clock.sleep(LOOK_SECONDS)

    def _remove_left(self, before: float) -> None:
        """Remove copies in the making that are older than this moment (seconds since the epoch)."""
        for left in self._folder.glob(f"{_FOLDER}*"):
            with contextlib.suppress(FileNotFoundError):  # whoever asked for it was faster
                if left.stat().st_mtime < before:
                    _remove(left)

    async def freeze(self) -> str:
        """A copy of the engine on this server's disk; its path. Whoever asked for it deletes it."""
        path = self._folder / f"{_FOLDER}{os.urandom(8).hex()}"
        await self._engine.freeze(str(path))
        return str(path)

    async def make(self) -> Manifest:
        """One more copy, now. Raises UNAVAILABLE without a chain that takes it, IO_ERROR when the disk does not."""
        async with self._making:
            frozen = Path(await self.freeze())
            dumped = frozen.with_suffix(".gz")
            try:
                await _dump(frozen, dumped)
                return await self._store(dumped)
            finally:
                await asyncio.to_thread(_remove, frozen)
                await asyncio.to_thread(_remove, dumped)

    async def _store(self, dumped: Path) -> Manifest:
        taken = {number for number, _ in await self._records()}
        number = self._clock.wall_ns() // 10**9
        while number in taken:
            number += 1
        chains = list(self._chains())
        refusal = error(Status.UNAVAILABLE, "there is no chain that could hold a copy of the metadata")
        for i in range(min(len(chains), CHAINS_MAX)):  # each copy begins at another one
            chain = chains[(number // int(EVERY_SECONDS) + i) % len(chains)]
            await self._record(number, chain, whole=False)
            try:
                manifest = await self._write(dumped, number, chain)
            except StatusError as failed:
                refusal = failed
                with contextlib.suppress(StatusError):
                    await self._pieces.remove_pieces(number, chain)
                continue
            await self._record(number, chain, whole=True)
            _log.info("backed up the metadata", number=number, chain=chain, bytes=manifest.length)
            return manifest
        raise refusal

    async def _write(self, dumped: Path, number: int, chain: int) -> Manifest:
        checksum = index = total = 0
        since = self._pieces.losses(chain)
        with await asyncio.to_thread(dumped.open, "rb") as source:
            while data := await asyncio.to_thread(source.read, PIECE_BYTES):
                await self._pieces.write_piece(number, index, chain, data)
                checksum, index, total = crc32c(data, checksum), index + 1, total + len(data)
        manifest = Manifest(number, chain, total, index, checksum, self._cluster)
        await self._pieces.sync_chain(chain, since)
        await self._pieces.write_piece(number, MANIFEST, chain, manifest.pack())
        await self._pieces.sync_chain(chain, since)
        return manifest

    async def _tidy(self) -> None:
        """Remove old copies, and what is left of those that were not finished."""
        oldest = self._clock.wall_ns() // 10**9 - KEPT_SECONDS
        making = self._making.locked()  # one that may be whole before it is looked at here
        records = await self._records()
        making = making or self._making.locked()
        whole = [number for number, record in records if record["whole"]]
        for number, record in records:
            late = bool(whole) and number != whole[-1]  # the newest whole one stays, however old it is
            if (record["whole"] and number < oldest and late) or (not record["whole"] and not making):
                try:
                    await self._pieces.remove_pieces(number, record["chain"])
                except StatusError as failed:  # that chain is down: it holds up no others
                    _log.warning("an old copy of the metadata stays", number=number, error=failed.strerror)
                    continue
                await self._forget(number)

    async def _records(self) -> list[tuple[int, dict[str, Any]]]:
        begin, end = keys.prefix_range(keys.BACKUP)
        rows = await self._engine.begin().scan(begin, end, RECORDS_MAX, snapshot=True)
        return [(keys.inode_of(key), json.loads(value)) for key, value in rows]

    async def _record(self, number: int, chain: int, *, whole: bool) -> None:
        async def work(txn: Transaction) -> None:
            txn.put(keys.backup_key(number), json.dumps({"chain": chain, "whole": whole}).encode())

        await retry.run(self._engine, work, durable=True)

    async def _forget(self, number: int) -> None:
        async def work(txn: Transaction) -> None:
            txn.delete(keys.backup_key(number))

        await retry.run(self._engine, work)


async def _dump(frozen: Path, dumped: Path) -> None:
    """In another process: reading a large store would hold up this one's requests."""
    command = (sys.executable, "-m", "emberfs.meta.dump", f"rocksdb://{frozen}", str(dumped))
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, told = await child.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        raise
    if child.returncode:
        raise error(Status.IO_ERROR, f"the metadata was not dumped: {told.decode(errors='replace').strip()[-500:]}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
