"""The records are gensort's: by published checksums, and one by one."""

from __future__ import annotations

import pytest

np = pytest.importorskip("numpy")
from emberfs.deploy.sorting import generator, summary  # noqa: E402

from . import reference  # noqa: E402

# The first records of `gensort -a`, which are quoted wherever it is used.
FIRST = (
    b"AsfAGHM5om  00000000000000000000000000000000  0000222200002222000022220000222200002222000000001111\r\n"
    b"~sHd0jDv6X  00000000000000000000000000000001  77779999444488885555CCCC777755555555BBBB666644446666\r\n"
)


def test_first_ascii_records() -> None:
    assert generator.records(0, 2, ascii=True).tobytes() == FIRST


@pytest.mark.parametrize(
    ("count", "ascii", "checksum"), [(1_000_000, False, "7a0e0d4868cd4"), (163_840, True, "1400fed7bb2c2")]
)
def test_checksums_that_valsort_has_shown_elsewhere(count: int, ascii: bool, checksum: str) -> None:
    """From published runs of the original programs: 100 MB of binary, 16 MB of ASCII records."""
    assert f"{summary.checksum(generator.records(0, count, ascii=ascii)):x}" == checksum


@pytest.mark.parametrize("begin", [0, 5, 16_380, 2**32 - 3, 2**60 - 2, 2**64 - 4, 2**100, 2**128 - 20])
def test_records_one_by_one(begin: int) -> None:
    count = 12
    x = generator.number(begin + 1)
    records = {
        (ascii, skewed): generator.records(begin, count, ascii=ascii, skewed=skewed)
        for ascii in (False, True)
        for skewed in (False, True)
    }
    for i in range(count):
        source = generator.skew_index(begin + i)
        plain, ascii = reference.binary(x), reference.printable(x, begin + i)
        other = generator.records(source, 1)[0].tobytes(), generator.records(source, 1, ascii=True)[0].tobytes()
        expected = {
            (False, False): plain,
            (True, False): ascii,
            (False, True): reference.skewed(x, plain, other[0]),
            (True, True): reference.skewed_printable(x, ascii, other[1]),
        }
        assert {kind: made[i].tobytes() for kind, made in records.items()} == expected
        x = reference.following(x)


@pytest.mark.parametrize(
    ("record", "index"),
    [
        *((0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (16, 5)),
        *((1 << 63, 64), ((1 << 64) - 1, 64), (1 << 64, 65), ((1 << 64) + 1, 65), (1 << 127, 128)),
    ],
)
def test_whose_key_is_borrowed(record: int, index: int) -> None:
    """The table in gensort's source."""
    assert generator.skew_index(record) == index


@pytest.mark.parametrize("kind", [{}, {"ascii": True}, {"skewed": True}, {"ascii": True, "skewed": True}])
def test_parts_are_the_whole(kind: dict[str, bool]) -> None:
    count = generator.BLOCK_RECORDS + 100
    whole = generator.records(0, 2 * count, **kind)
    assert (generator.records(0, count, **kind) == whole[:count]).all()
    assert (generator.records(count, count, **kind) == whole[count:]).all()
    assert generator.records(7, 0, **kind).shape == (0, generator.RECORD_BYTES)


def test_a_step_of_many_is_many_steps() -> None:
    x = 0
    for i in range(20):
        assert generator.number(i) == x
        x = reference.following(x)
