"""Copies of payload, with and without the interpreter's lock."""

from __future__ import annotations

import random

import pytest

from emberfs.proto.copying import ASIDE_BYTES_MIN, copy


@pytest.mark.parametrize("size", [0, 1, 4096, ASIDE_BYTES_MIN - 1, ASIDE_BYTES_MIN, 3 * ASIDE_BYTES_MIN + 5])
def test_the_bytes_are_there_and_nothing_else_is(size: int) -> None:
    data = bytearray(random.Random(size).randbytes(size))
    for source in (memoryview(data), memoryview(bytes(data)), bytes(data)):
        into = bytearray(size + 20)
        copy(memoryview(into)[10 : 10 + size], source)
        assert into == bytes(10) + data + bytes(10)


@pytest.mark.parametrize("size", [10, ASIDE_BYTES_MIN])
def test_different_lengths_are_refused(size: int) -> None:
    for wrong in (size - 1, size + 1):
        with pytest.raises(ValueError):
            copy(memoryview(bytearray(size)), memoryview(bytearray(wrong)))


def test_parts_of_one_buffer_may_overlap() -> None:
    data = bytearray(random.Random(1).randbytes(2 * ASIDE_BYTES_MIN))
    expected = bytes(data[:-5])
    copy(memoryview(data)[5:], memoryview(data)[:-5])
    assert data[5:] == expected
