"""Packed records: what was committed is there, whatever happened to the writer."""

from __future__ import annotations

import errno
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberfs.client.loader import record_writer, records
from emberfs.client.loader.index import RecordIndex, open_shard
from emberfs.client.loader.record_writer import RecordWriter, ShardedWriter
from emberfs.client.loader.records import ALIGN, ALIGN_FROM, BadRecords
from emberfs.client.loader.samples import Samples, open_samples
from emberfs.client.loader.store import DirectoryStore, Store
from emberfs.proto.errors import Status, StatusError

SIZES = (0, 1, 17, 4096, 4097, ALIGN_FROM, 100_000)


def payloads(count: int, seed: int = 1) -> list[bytes]:
    choose = random.Random(seed)
    return [choose.randbytes(choose.choice(SIZES)) for _ in range(count)]


def read_all(store: Store, **how: object) -> list[bytes]:
    samples = open_samples(store, "records", verify=True, **how)  # type: ignore[arg-type]
    return [bytes(sample) for sample in samples.read(range(len(samples)))]


def test_what_is_written_is_read_in_any_order(store: Store) -> None:
    wanted = payloads(200)
    with ShardedWriter(store, "train", shard_bytes=1 << 20) as writer:
        writer.write_all(wanted)
    assert len(writer.paths) > 2
    samples = open_samples(store)
    order = random.Random(2).choices(range(len(wanted)), k=100)  # some of them twice
    batch = samples.read(order)
    assert [bytes(sample) for sample in batch] == [wanted[number] for number in order]
    assert batch.numbers.tolist() == order
    assert bytes(samples[-1]) == wanted[-1]
    with pytest.raises(IndexError):
        samples.read([len(wanted)])


def test_an_index_that_is_not_kept_says_the_same(store: Store) -> None:
    wanted = payloads(100)
    with RecordWriter(store, "a.records") as writer:
        for number, payload in enumerate(wanted):
            writer.write(payload)
            if number % 7 == 0:
                writer.commit()
    looked_up = Samples(store, RecordIndex(store, ["a.records"], memory=0), verify=True)
    assert looked_up.index.slow
    assert [bytes(sample) for sample in looked_up.read(range(100))] == wanted
    assert read_all(store) == wanted


def test_large_samples_lie_on_the_units_of_the_checksums(store: Store) -> None:
    with RecordWriter(store, "a.records") as writer:
        for payload in (b"x", bytes(ALIGN_FROM), b"y", bytes(100_000)):
            writer.write(payload)
    places = RecordIndex(store, ["a.records"]).look_up(__import__("numpy").arange(4)).finish()
    assert places.offset[1] % ALIGN == places.offset[3] % ALIGN == 0
    assert places.offset[2] == places.offset[1] + ALIGN_FROM  # small ones are packed


def test_an_array_of_no_rows_is_an_empty_sample(store: Store) -> None:
    boxes = [np.ones((2, 4)), np.ones((0, 4)), np.ones((1, 4))]  # of a picture with nothing in it, say
    with ShardedWriter(store, "records") as writer:
        writer.write_all(boxes)
    assert read_all(store) == [array.tobytes() for array in boxes]


def test_shards_grow(store: Store) -> None:
    first, second = payloads(20, 1), payloads(20, 2)
    with RecordWriter(store, "a.records") as writer:
        for payload in first:
            writer.write(payload)
    with RecordWriter(store, "a.records", append=True) as writer:
        assert writer.samples == 20
        for payload in second:
            writer.write(payload)
    assert read_all(store) == first + second


def test_leaving_by_an_exception_commits_nothing(store: Store) -> None:
    with pytest.raises(KeyError), RecordWriter(store, "a.records") as writer:
        writer.write(b"kept")
        writer.commit()
        writer.write(b"not kept")
        raise KeyError
    assert read_all(store) == [b"kept"]


def test_a_writer_that_dies_at_any_byte_leaves_what_was_committed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    commits, ends = [payloads(5, seed) for seed in range(4)], [0]
    with RecordWriter(store, "a.records") as writer:
        for payload_list in commits:
            for payload in payload_list:
                writer.write(payload)
            writer.commit()
            ends.append(writer.size)
    whole = (tmp_path / "a.records").read_bytes()
    choose = random.Random(3)
    cuts = {end + off for end in ends[1:] for off in (-64, -1, 0, 1, 63)} | {
        choose.randrange(4096, len(whole)) for _ in range(30)
    }
    for cut in sorted(cuts & set(range(4096, len(whole) + 1))):
        for tail in (b"", choose.randbytes(200), bytes(5000)):
            found = whole[:cut] + tail
            (tmp_path / "a.records").write_bytes(found)
            there = sum(found.startswith(whole[:end]) for end in ends[1:])  # a footer may end with a zero, too
            expected = [payload for payload_list in commits[:there] for payload in payload_list]
            shard = open_shard(store, "a.records")
            assert shard.samples == len(expected) and shard.is_whole == (len(found) == ends[there] != 0)
            assert read_all(store) == expected
    # Who goes on writes behind what was committed.
    (tmp_path / "a.records").write_bytes(whole[: ends[2] + 100])
    with RecordWriter(store, "a.records", append=True) as writer:
        writer.write(b"more")
    assert read_all(store) == [*commits[0], *commits[1], b"more"]


class FullForAWhile:
    """A store whose disk is full at one of its steps: a write (of which a half arrives), a flush or a sync."""

    def __init__(self, store: Store, at: int) -> None:
        self.store, self.left = store, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def _step(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise OSError(errno.ENOSPC, "full")

    def open(self, *arguments: Any) -> Any:
        file = self.store.open(*arguments)
        really, full = file.write, self

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def write(self, data: Any) -> int:
                if full.left == 0:
                    really(bytes(data[: len(data) // 2]))
                full._step()
                return int(really(data))

            def flush(self) -> None:
                full._step()
                file.flush()

        self.file = file
        return Wrapped()

    def sync(self, _: Any) -> None:
        self._step()
        self.store.sync(self.file)


@pytest.mark.parametrize("durable", [False, True])
def test_a_writer_that_failed_commits_nothing_more(
    store: Store, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_writer, "WRITE_BYTES", 5000)
    for at in range(100):
        full = FullForAWhile(store, at)
        committed: list[bytes] = []
        pending: list[bytes] = []
        writer = RecordWriter(full, f"{at}.records", durable=durable)  # type: ignore[arg-type]
        for number in range(12):
            payload = bytes([number]) * 3000
            try:
                writer.write(payload)
                pending.append(payload)
                if number % 3 == 2:
                    writer.commit()
                    committed, pending = committed + pending, []
            except OSError:
                pass  # somebody hopes that there is room again
        with suppress(OSError):
            writer.close()
        samples = open_samples(store, "records", paths=[f"{at}.records"], verify=True)
        found = [bytes(sample) for sample in samples.read(range(len(samples)))]
        assert found[: len(committed)] == committed, f"step {at}"
        assert len(found) - len(committed) in (0, 3), "more than the commit that failed when it had been written"
        with RecordWriter(store, f"{at}.records", append=True) as again:
            again.write(b"goes on")
        samples = open_samples(store, "records", paths=[f"{at}.records"], verify=True)
        assert [bytes(sample) for sample in samples.read(range(len(samples)))] == [*found, b"goes on"]
        if full.left >= 0:
            break  # there were not so many steps
    assert at > 15 and len(committed) == 12


def test_the_last_footer_is_found_behind_much_that_was_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "SEARCH_BYTES", 200)  # so that footers lie across the steps
    monkeypatch.setattr(records, "TAIL_BYTES", 150)
    store = DirectoryStore(tmp_path)
    with RecordWriter(store, "a.records") as writer:
        writer.write(b"kept")
    whole = (tmp_path / "a.records").read_bytes()
    for more in range(0, 1000, 37):
        (tmp_path / "a.records").write_bytes(whole + b"EMBEREND" * more)
        assert read_all(store) == [b"kept"]


def test_a_shard_as_a_sample_of_a_shard_is_not_taken_for_one(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with RecordWriter(store, "inner.records") as writer:
        writer.write(b"inner")
    inner = (tmp_path / "inner.records").read_bytes()
    with RecordWriter(store, "outer.records") as writer:
        writer.write(b"first")
        writer.commit()
        writer.write(inner)
    outer = (tmp_path / "outer.records").read_bytes()
    (tmp_path / "outer.records").write_bytes(outer[: outer.rfind(inner) + len(inner)])  # died right behind the payload
    assert read_all(store, paths=["outer.records"]) == [b"first"]


def test_damage_is_told(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with RecordWriter(store, "a.records") as writer:
        for payload in (b"a" * 100, b"b" * 100):
            writer.write(payload)
    path = tmp_path / "a.records"
    whole = path.read_bytes()

    def damaged(at: int) -> None:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])

    damaged(whole.index(b"bbb"))
    with pytest.raises(StatusError, match="sample 1") as refused:
        read_all(store)
    assert refused.value.status is Status.CHECKSUM
    assert bytes(open_samples(store)[0]) == b"a" * 100
    damaged(whole.index(b"b" * 100) + 100 + 20)
    with pytest.raises(BadRecords, match="index"):
        open_samples(store)
    damaged(0)
    with pytest.raises(BadRecords, match="no shard"):
        open_samples(store)
    damaged(20)
    with pytest.raises(BadRecords, match="header"):
        open_samples(store)


def test_empty_shards_and_folders(store: Store) -> None:
    with RecordWriter(store, "a.records"):
        pass
    assert read_all(store) == []
    with RecordWriter(store, "b.records") as writer:
        writer.write(b"x")
    assert read_all(store) == [b"x"]
    with pytest.raises(FileNotFoundError):
        open_samples(store, "tar")
