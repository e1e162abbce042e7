"""Copies of the metadata in the chunks: which ones stay, and what is tidied up."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from emberfs.meta import keys
from emberfs.meta.backup import KEPT_SECONDS, Backups, Manifest
from emberfs.meta.kv.rocksdb import RocksEngine
from emberfs.proto.errors import Status, error

NOW = int(time.time())


class Stop(Exception):
    """Enough of the background."""


class Clock:
    def wall_ns(self) -> int:
        return NOW * 10**9

    async def sleep(self, seconds: float) -> None:
        raise Stop


class Chains:
    """Pieces of copies on chains, some of which are down."""

    def __init__(self, *down: int) -> None:
        self.down = down
        self.pieces: dict[tuple[int, int], dict[int, bytes]] = {}

    async def write_piece(self, number: int, index: int, chain: int, data: bytes) -> None:
        self._check(chain)
        self.pieces.setdefault((number, chain), {})[index] = data

    def losses(self, chain: int) -> int:
        return 0

    async def sync_chain(self, chain: int, since: int) -> None:
        self._check(chain)

    async def remove_pieces(self, number: int, chain: int) -> None:
        self._check(chain)
        self.pieces.pop((number, chain), None)

    def _check(self, chain: int) -> None:
        if chain in self.down:
            raise error(Status.UNAVAILABLE, f"chain {chain} is down")


async def tidied(folder: Path, chains: Chains, records: dict[int, int]) -> list[int]:
    """The copies (number -> chain) that are on record after one round of the background worker."""
    engine = RocksEngine(str(folder / "kv"), lambda: 0.0)
    txn = engine.begin()
    for number, chain in records.items():
        txn.put(keys.backup_key(number), json.dumps({"chain": chain, "whole": True}).encode())
    await txn.commit()
    with pytest.raises(Stop):
        await Backups(engine, chains, lambda: [1, 2, 3], Clock(), folder, "cluster").run()
    rows = await engine.begin().scan(*keys.prefix_range(keys.BACKUP), 100)
    await engine.close()
    return [keys.inode_of(key) for key, _ in rows]


async def test_a_chain_that_is_down_holds_up_no_others(tmp_path: Path) -> None:
    old = NOW - int(KEPT_SECONDS)
    records = {old - 3: 1, old - 2: 2, old - 1: 3, NOW - 60: 1}
    assert await tidied(tmp_path, Chains(1), records) == [old - 3, NOW - 60]


async def test_a_copy_that_is_due(tmp_path: Path) -> None:
    chains = Chains()
    assert await tidied(tmp_path, chains, {NOW - 3601: 1}) == [NOW - 3601, NOW]
    assert list(chains.pieces) and not list(tmp_path.glob("backup-*"))


async def test_a_copy_that_becomes_whole_meanwhile_stays(tmp_path: Path) -> None:
    """Somebody asks for one while an old one is removed, which takes a while."""

    class Slow(Chains):
        def __init__(self) -> None:
            super().__init__()
            self.writing, self.go_on = asyncio.Event(), asyncio.Event()
            self.made: asyncio.Task[Manifest] | None = None

        async def write_piece(self, number: int, index: int, chain: int, data: bytes) -> None:
            await super().write_piece(number, index, chain, data)
            self.writing.set()
            await self.go_on.wait()

        async def remove_pieces(self, number: int, chain: int) -> None:
            self.go_on.set()
            if self.made is not None:
                await self.made
            await super().remove_pieces(number, chain)

    engine, chains = RocksEngine(str(tmp_path / "kv"), lambda: 0.0), Slow()
    txn = engine.begin()
    for number in (NOW - int(KEPT_SECONDS) - 1, NOW - 60):
        txn.put(keys.backup_key(number), json.dumps({"chain": 1, "whole": True}).encode())
    await txn.commit()
    backups = Backups(engine, chains, lambda: [1, 2, 3], Clock(), tmp_path, "cluster")
    chains.made = asyncio.create_task(backups.make())
    await chains.writing.wait()
    await backups._tidy()
    manifest = await chains.made
    rows = await engine.begin().scan(*keys.prefix_range(keys.BACKUP), 100)
    await engine.close()
    assert [keys.inode_of(key) for key, _ in rows] == [NOW - 60, manifest.number]
    assert len(chains.pieces[manifest.number, manifest.chain]) == manifest.pieces + 1


async def test_no_more_chains_are_tried_than_a_few(tmp_path: Path) -> None:
    class Many(Chains):
        tried = 0

        async def write_piece(self, number: int, index: int, chain: int, data: bytes) -> None:
            self.tried += 1
            raise error(Status.UNAVAILABLE, "everything is down")

    engine, chains = RocksEngine(str(tmp_path / "kv"), lambda: 0.0), Many()
    with pytest.raises(OSError, match="everything is down"):
        await Backups(engine, chains, lambda: range(1, 1000), Clock(), tmp_path, "cluster").make()
    assert chains.tried == 8
    await engine.close()


async def test_what_others_forgot_is_removed_after_a_day(tmp_path: Path) -> None:
    """A command asked for a frozen copy, and was killed while the server went on."""

    class Later(Clock):
        rounds = 0

        async def sleep(self, seconds: float) -> None:
            self.rounds += 1
            if self.rounds == 1:
                for name, age in (("backup-old", 90_000.0), ("backup-new", 60.0)):
                    (tmp_path / name).mkdir()
                    os.utime(tmp_path / name, (NOW - age, NOW - age))
            else:
                raise Stop

    engine = RocksEngine(str(tmp_path / "kv"), lambda: 0.0)
    with pytest.raises(Stop):
        await Backups(engine, Chains(), lambda: [1], Later(), tmp_path, "cluster").run()
    assert [path.name for path in tmp_path.glob("backup-*")] == ["backup-new"]
    await engine.close()
