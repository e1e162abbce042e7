"""Frames survive any cutting of the stream, and nothing else does."""

from __future__ import annotations

import struct

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.proto import frame as wire
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.frame import Decoder, Frame
from emberfs.proto.rpc import BULK_BYTES_MAX, MESSAGE_BYTES_MAX

frames = st.builds(
    lambda number, message, bulk, rows, reply: (
        number,
        message,
        bulk,
        struct.pack(f"<{6 * rows}I", *range(6 * rows)),
        reply,
    ),
    st.integers(0, 2**64 - 1),
    st.one_of(st.binary(max_size=300), st.integers(0, 150_000).map(lambda n: b"m" * n)),
    st.one_of(st.just(b""), st.binary(max_size=300), st.integers(0, 300_000).map(lambda n: b"bulk" * (n // 4))),
    st.integers(0, 5),
    st.booleans(),
)


def encoded(number: int, message: bytes, bulk: bytes, table: bytes, reply: bool) -> bytes:
    flags = wire.REPLY if reply else 0
    return wire.encode(flags, 769, number, message, deadline_ms=5, table=table, bulk_bytes=len(bulk)) + bulk


def feed(decoder: Decoder, data: bytes, cuts: list[int]) -> list[Frame]:
    """Receive `data` in pieces of at most these sizes, over and over."""
    got: list[Frame] = []
    at = turn = 0
    while at < len(data):
        buffer = decoder.buffer()
        assert len(buffer)
        count = min(len(buffer), cuts[turn % len(cuts)], len(data) - at)
        buffer[:count] = data[at : at + count]
        at += count
        turn += 1
        got += decoder.received(count)
    return got


@settings(max_examples=150, deadline=None)
@given(
    st.lists(frames, min_size=1, max_size=6),
    st.lists(st.one_of(st.integers(1, 100), st.integers(1, 200_000)), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[int, bytes, bytes, bytes, bool]], cuts: list[int], scatter: int
) -> None:
    if sum(len(part[1]) + len(part[2]) for part in sent) > 5000:
        cuts = [max(cut, 400) for cut in cuts]

    def place(frame: Frame) -> list[memoryview]:
        whole = memoryview(bytearray(frame.bulk_bytes))
        step = -(-frame.bulk_bytes // scatter)
        return [whole[at : at + step] for at in range(0, frame.bulk_bytes, step)]

    decoder = Decoder(place)
    got = feed(decoder, b"".join(encoded(*one) for one in sent), cuts)
    assert decoder.idle
    seen = [(f.request_id, f.message, b"".join(f.bulk or ()), f.table, bool(f.flags & wire.REPLY)) for f in got]
    assert seen == sent


@given(st.binary(min_size=32, max_size=200))
def test_noise_is_refused_at_once(noise: bytes) -> None:
    with pytest.raises(StatusError) as refused:
        feed(Decoder(), noise, [len(noise)])
    assert refused.value.status is Status.PROTOCOL


@given(st.integers(0, 27), st.integers(1, 255))
def test_any_damage_to_the_header_is_noticed(position: int, change: int) -> None:
    data = bytearray(encoded(1, b"hello", b"", b"", True))
    data[position] ^= change
    with pytest.raises(StatusError) as refused:
        feed(Decoder(), bytes(data), [100])
    assert refused.value.status is Status.PROTOCOL


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_anywhere_never_does_more_than_raise_protocol(data: st.DataObject) -> None:
    stream = bytearray(
        b"".join(encoded(n, b"m" * n, b"b" * n, b"t" * 24 if n % 2 else b"", False) for n in range(1, 5))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        feed(Decoder(), bytes(stream), [data.draw(st.integers(1, 100))])
    except StatusError as refused:
        assert refused.status is Status.PROTOCOL


def header(**changes: int) -> bytes:
    fields = {
        "magic": wire.MAGIC,
        "version": 1,
        "flags": 0,
        "method": 1,
        "id": 1,
        "deadline": 0,
        "message": 0,
        "bulk": 0,
    } | changes
    head = struct.pack("<IBBHQIII", *fields.values())
    return head + struct.pack("<I", crc32c(head))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"magic": 0x20544547}, "no emberfs frame"),
        ({"version": 9}, "frame version 9"),
        ({"flags": 0x80}, "damaged"),
        ({"message": MESSAGE_BYTES_MAX + 1}, "at most"),
        ({"bulk": BULK_BYTES_MAX + 1}, "at most"),
        ({"message": 4, "flags": wire.TABLE}, "table"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, int], says: str) -> None:
    with pytest.raises(StatusError, match=says) as refused:
        feed(Decoder(), header(**changes) + bytes(4), [100])
    assert refused.value.status is Status.PROTOCOL


def test_limits_are_checked_before_memory_is_taken() -> None:
    decoder = Decoder()
    with pytest.raises(StatusError):
        feed(decoder, header(message=2**32 - 1), [32])
    assert len(decoder.buffer()) <= wire.SCRATCH_BYTES


def test_bulk_that_nobody_wants_is_dropped() -> None:
    data = encoded(1, b"a", b"x" * 200_000, b"", False) + encoded(2, b"b", b"", b"", False)
    got = feed(Decoder(), data, [70_000])
    assert [(f.request_id, f.message, f.bulk) for f in got] == [(1, b"a", None), (2, b"b", None)]


def test_too_much_to_send_is_refused_here() -> None:
    for options in ({"message": bytes(MESSAGE_BYTES_MAX + 1)}, {"message": b"", "bulk_bytes": BULK_BYTES_MAX + 1}):
        with pytest.raises(StatusError) as refused:
            wire.encode(0, 1, 1, **options)
        assert refused.value.status is Status.TOO_LARGE
