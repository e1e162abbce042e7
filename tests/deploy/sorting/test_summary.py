"""What valsort says, of a whole and of parts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
from emberfs.deploy.sorting import generator, keys, summary  # noqa: E402

from . import reference  # noqa: E402

# Keys that are often equal, that differ in each part of the comparison, and in the case of a letter.
KEYS = st.sampled_from(
    [b"aaaaaaaaaa", b"Aaaaaaaaaa", b"aaaaaaaaAb", b"aaaaaaaaab", b"\0" * 10, b"\xff" * 10, b"[{zzzzzzzz"]
)
RECORDS = st.lists(KEYS.map(lambda key: key + key * 9), min_size=1, max_size=30)


@given(records=RECORDS, cuts=st.lists(st.integers(1, 29), max_size=4), fold=st.booleans())
@settings(max_examples=100, deadline=None)
def test_parts_say_the_same_as_the_whole(records: list[bytes], cuts: list[int], fold: bool) -> None:
    marks = [0, *sorted({cut for cut in cuts if cut < len(records)}), len(records)]
    parts = [
        summary.summarize(keys.as_records(b"".join(records[begin:end])), ignore_case=fold)
        for begin, end in itertools.pairwise(marks)
    ]
    found = summary.combine(parts, ignore_case=fold)
    assert (found.first_unordered, found.unordered, found.duplicates, found.checksum) == reference.verdict(
        records, fold
    )
    assert (found.records, found.first, found.last) == (len(records), records[0], records[-1])


def test_summary_file() -> None:
    """The C structure of valsort 1.5: five numbers of 128 bits, upper half first, the first and the last record."""
    records = generator.records(1, 2)[::-1].copy()
    found = summary.summarize(records)
    packed = found.pack()
    assert len(packed) == summary.SUMMARY_BYTES == 280
    numbers = np.frombuffer(packed[:80], "<u8").tolist()
    assert numbers == [0, 0, 0, 0, 0, 2, 0, 0, 0, found.checksum]
    assert packed[80:] == records[0].tobytes() + records[1].tobytes()
    assert summary.unpack(packed * 2) == [found, found]
    with pytest.raises(ValueError, match="partial"):
        summary.unpack(packed[:-1])


def test_nothing_to_validate() -> None:
    with pytest.raises(ValueError, match="at least one record"):
        summary.combine([])


@given(records=RECORDS)
@settings(max_examples=100, deadline=None)
def test_order_of_keys(records: list[bytes]) -> None:
    array = keys.as_records(b"".join(records))
    made = keys.gathered(array, keys.order(array))
    assert [bytes(record) for record in made] == sorted(records, key=lambda record: record[:10])
