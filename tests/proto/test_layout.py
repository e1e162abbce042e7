"""Layout arithmetic: the shuffle is part of the format, the pieces cover a range exactly once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberfs.proto import layout
from emberfs.proto.errors import Status, StatusError

# Never change these: files written with this shuffle lie where it says.
VECTORS = {
    (8, 0): [2, 5, 0, 3, 4, 6, 1, 7],
    (8, 1): [4, 3, 2, 7, 5, 6, 0, 1],
    (5, 2**64 - 1): [2, 0, 3, 4, 1],
    (16, 0xDEADBEEF): [10, 13, 2, 8, 4, 12, 6, 5, 9, 7, 3, 0, 1, 15, 14, 11],
}


def splitmix64(seed: int):
    """The generator written a second time, from the paper's definition, as an oracle."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


@pytest.mark.parametrize(("count", "seed"), VECTORS)
def test_shuffle_vectors(count, seed):
    assert layout.shuffle(range(count), seed) == VECTORS[count, seed]


def test_the_generator_is_splitmix64():
    # First outputs for seed 1234567, as published with the reference implementation.
    generator = splitmix64(1234567)
    assert [next(generator) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 64), st.integers(0, 2**64 - 1))
def test_shuffle_is_a_permutation_drawn_from_splitmix64(count, seed):
    order, generator = list(range(count)), splitmix64(seed)
    for i in range(count - 1, 0, -1):
        j = next(generator) % (i + 1)
        order[i], order[j] = order[j], order[i]
    assert layout.shuffle(range(count), seed) == order
    assert sorted(order) == list(range(count))


@given(st.integers(0, 2**40), st.integers(0, 2**24), st.sampled_from([2**k for k in range(16, 27)]))
def test_pieces_cover_the_range_once(offset, length, chunk_size):
    at = offset
    for piece in layout.pieces(offset, length, chunk_size):
        assert piece.index * chunk_size + piece.offset == at
        assert piece.position == at - offset
        assert 0 < piece.length <= chunk_size - piece.offset
        at += piece.length
    assert at == offset + length


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=20, unique=True),
    st.integers(0, 100),
    st.integers(1, 40),
    st.integers(0, 2**64 - 1),
)
def test_a_stripe_uses_distinct_chains_of_the_table(table, base, stripe, seed):
    chains = layout.stripe_chains(table, base, stripe, seed)
    assert len(chains) == len(set(chains)) == min(stripe, len(table))
    assert set(chains) <= set(table)


def test_an_empty_table_is_said():
    with pytest.raises(StatusError) as caught:
        layout.stripe_chains([], 0, 1, 0)
    assert caught.value.status is Status.STALE_ROUTING


@pytest.mark.parametrize("size", [0, -65536, 65535, 65537, 3 << 20, 128 << 20])
def test_bad_chunk_sizes_are_refused(size):
    with pytest.raises(StatusError, match="power of two"):
        layout.check_chunk_size(size)


def test_checksum_unit_and_limits():
    assert layout.checksum_unit(1 << 20) == 4096
    assert layout.checksum_unit(1 << 21) == 16384
    assert layout.file_bytes_max(64 << 10) == 256 << 40
    assert layout.chunk_count(0, 65536) == 0
    assert layout.chunk_count(65537, 65536) == 2
