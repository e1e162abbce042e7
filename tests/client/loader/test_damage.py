"""What others left behind: flipped bits, cut files, counts that cannot be, writers that died at any step."""

from __future__ import annotations

import io
import os
import random
import signal
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from emberfs.client.loader import index, samples
from emberfs.client.loader.index import RecordIndex, Table, open_shard
from emberfs.client.loader.record_writer import RecordWriter, ShardedWriter
from emberfs.client.loader.records import COMMIT, ENTRY, FOOTER_BYTES, HEADER_BYTES, BadRecords, footer_of
from emberfs.client.loader.samples import Samples, open_samples
from emberfs.client.loader.store import DirectoryStore
from emberfs.proto.errors import Status, StatusError

WANTED = [bytes([65 + number]) * size for number, size in enumerate((100, 0, 700, 1, 64, 300))]


def write_shard(store: DirectoryStore) -> bytes:
    """Two commits of three samples; the file's bytes."""
    with RecordWriter(store, "a.records") as writer:
        for payload in WANTED[:3]:
            writer.write(payload)
        writer.commit()
        for payload in WANTED[3:]:
            writer.write(payload)
    return Path(store.path("a.records")).read_bytes()


def read_all(store: DirectoryStore, memory: int = 1 << 20) -> list[bytes]:
    found = open_samples(store, memory=memory)
    return [bytes(sample) for sample in found.read(range(len(found)))]


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(tmp_path: Path, memory: int) -> None:
    store = DirectoryStore(tmp_path)
    whole = write_shard(store)
    choose = random.Random(memory)
    silent = set()
    tried = (*range(0, 70), *range(HEADER_BYTES, len(whole), 1 if memory else 3))
    for at in tried:
        damaged = whole[:at] + bytes([whole[at] ^ 1 << choose.randrange(8)]) + whole[at + 1 :]
        (tmp_path / "a.records").write_bytes(damaged)
        try:
            found = read_all(store, memory)
        except (BadRecords, StatusError):
            continue
        if found != WANTED:
            silent.add(at)
            assert found == WANTED[:3]
            assert not open_shard(store, "a.records").is_whole  # which `emberfs data inspect` says
    # Only a footer that is none any more cannot be told from one that was never written whole.
    assert silent == {at for at in tried if at >= len(whole) - FOOTER_BYTES}


def test_a_shard_that_is_cut_anywhere_has_what_was_committed_before(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    whole = write_shard(store)
    second = whole.index(WANTED[5])
    for length in (*range(HEADER_BYTES, len(whole), 7), len(whole) - 1):
        (tmp_path / "a.records").write_bytes(whole[:length])
        found = read_all(store)
        assert found in ([], WANTED[:3]) and (found or length < second)
    for length in (1, 63):
        (tmp_path / "a.records").write_bytes(whole[:length])
        with pytest.raises(BadRecords):
            read_all(store)


def test_a_shard_that_shrinks_under_its_readers_is_told(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    write_shard(store)
    found = open_samples(store)
    os.truncate(tmp_path / "a.records", HEADER_BYTES + 50)
    with pytest.raises(EOFError, match="where a sample goes on"):
        found.read([0])


def forged(whole: bytes, commits: list[tuple[int, int, int, int]], samples: int) -> bytes:
    """A shard with another directory, whose checksums are right."""
    table = np.array(commits, COMMIT)
    place = -(-len(whole) // FOOTER_BYTES) * FOOTER_BYTES
    made = whole.ljust(place, b"\0") + table.tobytes()
    position = -(-len(made) // FOOTER_BYTES) * FOOTER_BYTES
    return made.ljust(position, b"\0") + footer_of(whole[16:32], position, samples, place, table)


def test_counts_that_cannot_be_take_no_memory(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    whole = write_shard(store)
    assert open_shard(store, "a.records").samples == 6
    first, second = open_shard(store, "a.records").commits.tolist()
    huge = (1 << 32) - 1
    for commits, count in (
        ([first, second], 1 << 60),
        ([first, (*second[:2], huge, second[3])], 3 + huge),
        ([(1 << 60, 0, 3, 0), second], 6),
        ([first, (second[0], 1 << 50, 3, 0)], 6),
        ([second, first], 6),
        ([first, first], 6),
        ([(0, 0, 3, first[3]), second], 6),
    ):
        (tmp_path / "a.records").write_bytes(forged(whole, commits, count))
        with pytest.raises(BadRecords, match="directory"):
            open_shard(store, "a.records")
    (tmp_path / "a.records").write_bytes(forged(whole, [first, second], 6))
    assert read_all(store) == WANTED


def test_an_entry_that_leads_elsewhere_takes_no_memory(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    whole = write_shard(store)
    (first, second) = open_shard(store, "a.records").commits.tolist()
    for entry in ((0, 10, 0), (1 << 63, 10, 0), (HEADER_BYTES, (1 << 32) - 1, 0), (first[0], 1, 0)):
        made = np.array([entry], ENTRY).tobytes()
        entries = made + whole[first[0] + 16 : first[0] + 48]
        changed = whole[: first[0]] + entries + whole[first[0] + 48 :]
        (tmp_path / "a.records").write_bytes(forged(changed, [(*first[:3], crc32c(entries)), second], 6))
        for memory in (0, 1 << 20):
            with pytest.raises(BadRecords, match="entry"):
                Samples(store, RecordIndex(store, ["a.records"], memory=memory)).read([0])


def test_samples_may_overlap(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    whole = write_shard(store)
    (first, second) = open_shard(store, "a.records").commits.tolist()
    at = whole.index(WANTED[0])
    rows = [(at, 100, crc32c(WANTED[0])), (at + 50, 50, crc32c(WANTED[0][50:])), (at, 0, 0)]
    entries = np.array(rows, ENTRY).tobytes()
    changed = whole[: first[0]] + entries + whole[first[0] + 48 :]
    (tmp_path / "a.records").write_bytes(forged(changed, [(*first[:3], crc32c(entries)), second], 6))
    assert read_all(store) == [WANTED[0], WANTED[0][50:], b"", *WANTED[3:]]


def test_more_than_a_batch_or_a_table_may_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    write_shard(store)
    monkeypatch.setattr(samples, "BATCH_BYTES_MAX", 1000)
    with pytest.raises(StatusError) as refused:
        open_samples(store).read([2, 2])
    assert refused.value.status is Status.TOO_LARGE
    monkeypatch.setattr(index, "TABLE_SAMPLES_MAX", 2)
    with pytest.raises(ValueError, match="packed records"):
        Table(["a"], [0, 0, 0], [0, 0, 0], [1, 1, 1])
    with pytest.raises(ValueError, match="bytes"):
        Table(["a"], [0], [0], [1 << 32])


def test_a_flipped_bit_of_an_ffrecord_file_is_told(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    base = 12 + 12 * len(WANTED)
    offsets = [base + sum(map(len, WANTED[:i])) for i in range(len(WANTED))]
    rest = struct.pack("<q6I6q", len(WANTED), *map(zlib.crc32, WANTED), *offsets)
    whole = struct.pack("<I", zlib.crc32(rest)) + rest + b"".join(WANTED)
    for at in range(len(whole)):
        (tmp_path / "a.ffr").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((ValueError, StatusError)):
            read_ffrecord(store)
    for offsets[2] in (0, -(1 << 63), (1 << 63) - 1):
        rest = struct.pack("<q6I6q", len(WANTED), *map(zlib.crc32, WANTED), *offsets)
        (tmp_path / "a.ffr").write_bytes(struct.pack("<I", zlib.crc32(rest)) + rest + b"".join(WANTED))
        with pytest.raises(ValueError, match="overlap"):
            read_ffrecord(store)


def read_ffrecord(store: DirectoryStore) -> list[bytes]:
    found = open_samples(store, "ffrecord")
    return [bytes(sample) for sample in found.read(range(len(found)))]


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for number in range(5):
            info = tarfile.TarInfo(f"{number}.bin")
            info.size = 100
            archive.addfile(info, io.BytesIO(bytes(100)))
    whole = made.getvalue()
    store = DirectoryStore(tmp_path)
    for header in range(0, 5 * 1024, 1024):
        for at in (header, header + 124, header + 148, header + 300):
            (tmp_path / "a.tar").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ValueError):
                open_samples(store)
    for length in range(100, 5 * 1024, 100):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError):
            open_samples(store)


# --- writers that die ---------------------------------------------------------------------------------------------------------------


class Doomed:
    """A file whose process is killed in the middle of the `steps`-th thing that is done with it."""

    def __init__(self, file: Any, steps: int) -> None:
        self._file = file
        self._steps = steps

    def _step(self) -> bool:
        self._steps -= 1
        return self._steps < 0

    def write(self, data: Any) -> int:
        if self._step():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(self._file.write(data))

    def flush(self) -> None:
        if self._step():
            os.kill(os.getpid(), signal.SIGKILL)
        self._file.flush()

    def close(self) -> None:
        if self._step():
            os.kill(os.getpid(), signal.SIGKILL)
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class DoomedStore(DirectoryStore):
    steps = 0

    def open(self, path: str, mode: str, chunk_size: int = 0) -> Any:
        return Doomed(super().open(path, mode, chunk_size), self.steps) if "r" not in mode else super().open(path, mode)


def payloads(count: int) -> list[bytes]:
    choose = random.Random(5)
    return [choose.randbytes(choose.choice((0, 10, 5000, 40_000))) for _ in range(count)]


def written_by_child(store: DoomedStore) -> tuple[bool, int]:
    """Whether the writer came to its end, and how many samples it knew to be committed."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with RecordWriter(store, "a.records") as writer:
                for number, payload in enumerate(payloads(20), 1):
                    writer.write(payload)
                    if number % 6 == 0:
                        writer.commit()
                        os.write(writes, bytes([number]))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0, told[-1] if told else 0


def test_a_writer_killed_at_any_step_leaves_what_it_committed(tmp_path: Path) -> None:
    store = DoomedStore(tmp_path)
    wanted = payloads(20)
    over = False
    while not over:
        over, told = written_by_child(store)
        store.steps += 1
        plain = DirectoryStore(tmp_path)
        found = read_all(plain)
        assert found == wanted[: len(found)] and len(found) >= told
        assert len(found) in (0, 6, 12, 18, 20)
        with RecordWriter(plain, "a.records", append=True) as writer:
            for payload in wanted[len(found) :]:
                writer.write(payload)
        assert read_all(plain) == wanted
    assert store.steps > 10


def test_a_sharded_writer_that_is_left_by_an_exception_keeps_whole_shards(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(KeyError), ShardedWriter(store, shard_bytes=HEADER_BYTES + 250) as writer:
        for number in range(5):
            writer.write(bytes([number]) * 100)
        raise KeyError
    assert read_all(store) == [bytes([number]) * 100 for number in range(4)]
