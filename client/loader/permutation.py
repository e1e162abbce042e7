"""A shuffle that takes no memory: a bijection of 0 … count-1 that is computed where it is needed.

A Feistel network over the smallest power of two that holds `count` permutes all numbers of so many bits, whatever its round function is.
What lands at `count` or beyond is permuted again until it lies below (cycle walking; on average less than once more). So it is a
permutation of exactly `count` numbers, chosen by seed and epoch, and the n-th sample of an epoch is known without the ones before it.

It shuffles well; it is no cipher.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]

ROUNDS = 6  # an even number: then the halves are back in their places
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


class Permutation:
    """Call it with an array of positions below `count` (1 … 2^62): their samples. The same `key` gives the same permutation, on every
    machine."""

    def __init__(self, count: int, *key: int) -> None:
        if not 0 < count <= 1 << 62:
            raise ValueError(f"cannot permute {count} numbers")
        self.count = count
        bits = max(2, (count - 1).bit_length())
        self._left, self._right = np.uint64(bits // 2), np.uint64(bits - bits // 2)
        named = b"".join(part.to_bytes(16, "little", signed=True) for part in key)
        digest = blake2b(named, digest_size=8 * ROUNDS, person=b"ember shuffle").digest()
        self._keys = np.frombuffer(digest, "<u8").astype(np.uint64)

    def __call__(self, positions: Any) -> Numbers:
        made = self._permuted(np.asarray(positions, np.uint64))
        limit = np.uint64(self.count)
        outside = np.flatnonzero(made >= limit)
        while outside.size:
            made[outside] = self._permuted(made[outside])
            outside = outside[made[outside] >= limit]
        return made

    def _permuted(self, numbers: Numbers) -> Numbers:
        """One pass of the network: (left, right) becomes (right, left ^ f(right)) in each round, the sizes of the halves with them."""
        one = np.uint64(1)
        left_bits, right_bits = self._left, self._right
        left, right = numbers >> right_bits, numbers & ((one << right_bits) - one)
        for key in self._keys:
            mixed = (right + key) * _FIRST
            mixed = (mixed ^ (mixed >> _SHIFT)) * _SECOND
            left, right = right, left ^ ((mixed >> _SHIFT) & ((one << left_bits) - one))
            left_bits, right_bits = right_bits, left_bits
        return (left << right_bits) | right
