"""Keys of blocks: 32 bytes each, packed one behind the other, and which chain each of them belongs to.

Engines have their keys as lists of digests, as hex strings, or as arrays; from here on a batch is one `bytes`, because thousands of
keys as Python objects cost more than what is done with them. Placement is computed for a batch at once where numpy is there, and is the
same as `proto.blocks.chain_of` key by key.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..proto.blocks import KEY_BYTES, chain_of
from ..proto.rendezvous import mixed

HEX_CHARACTERS = 2 * KEY_BYTES
SCORES_MAX = 1 << 20  # that are in memory at once: keys times chains

_LENGTHS = {KEY_BYTES}
_MASK = (1 << 64) - 1


def numpy() -> Any:
    """The module, or None where it is not installed."""
    return _numpy()


@lru_cache(maxsize=1)
def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError:
        return None
    return np


def packed(keys: Any) -> bytes:
    """Keys in any form that engines have them in, packed. Raises TypeError, ValueError for keys that are not 32 bytes.

    A list (or tuple) of `bytes` or hex strings; `bytes` of n x 32; an array of n x 32 bytes, or of n x 32 in one row.
    """
    if isinstance(keys, bytes):
        joined = keys
    elif isinstance(keys, (list, tuple)):
        return _joined(keys)
    elif isinstance(keys, str):
        raise TypeError("keys are a list of strings, not one string")
    else:
        try:
            view = memoryview(keys)
        except TypeError:
            return _joined(list(keys))
        joined = view.tobytes()
    if len(joined) % KEY_BYTES:
        raise ValueError(f"packed keys of {len(joined)} bytes: must be a multiple of {KEY_BYTES}")
    return joined


def _joined(keys: Sequence[bytes | str]) -> bytes:
    try:
        joined = b"".join(keys)  # type: ignore[arg-type]
        if keys and set(map(len, keys)) != _LENGTHS:
            raise ValueError(_wrong(keys))
        return joined
    except TypeError:
        return b"".join([_one(key) for key in keys])


def _one(key: Any) -> bytes:
    if isinstance(key, str):
        try:
            found = bytes.fromhex(key)
        except ValueError:
            found = b""
    else:
        try:
            found = bytes(memoryview(key))
        except TypeError as bad:
            raise TypeError(f"a key is bytes or a hex string, not {type(key).__name__}") from bad
    if len(found) != KEY_BYTES:
        raise ValueError(f"{key!r}: a key is {KEY_BYTES} bytes, or {HEX_CHARACTERS} hex digits")
    return found


def _wrong(keys: Sequence[Any]) -> str:
    bad = next(key for key in keys if len(key) != KEY_BYTES)
    return f"{bad!r}: a key is {KEY_BYTES} bytes"


def key_at(keys: bytes, row: int) -> bytes:
    return keys[row * KEY_BYTES : (row + 1) * KEY_BYTES]


def key_columns(keys: bytes, rows: Sequence[int]) -> list[bytes]:
    """The keys of these rows, one by one."""
    return [keys[row * KEY_BYTES : (row + 1) * KEY_BYTES] for row in rows]


def select(keys: bytes, rows: Sequence[int]) -> bytes:
    """The keys of these rows, packed."""
    if isinstance(rows, range) and rows.step == 1:
        return keys[rows.start * KEY_BYTES : rows.stop * KEY_BYTES]
    return b"".join(key_columns(keys, rows))


class Placement:
    """Where one version of the table of blocks places keys."""

    def __init__(self, chains: Sequence[int]) -> None:
        # Of equal scores the higher chain wins, as in `owner_of`: it stands first.
        self.chains = tuple(sorted(set(chains), reverse=True))
        self._mixed: Any = None

    def chains_of(self, keys: bytes) -> list[int]:
        """The chain of each key. Raises ValueError where there are no chains."""
        count = len(keys) // KEY_BYTES
        if len(self.chains) == 1:
            return [self.chains[0]] * count
        if not self.chains:
            raise ValueError("no chain holds blocks of the KV cache")
        np = numpy()
        if np is None:
            return [chain_of(key_at(keys, row), self.chains) for row in range(count)]
        numbers = np.frombuffer(keys, "<u8").reshape(count, KEY_BYTES // 8)[:, 0]
        if self._mixed is None:
            self._mixed = np.array([mixed(chain & _MASK) for chain in self.chains], "u8")[:, None]
            self._ids = np.array(self.chains)
        step = max(1, SCORES_MAX // len(self.chains))
        found = [self._ids[self._scores(np, numbers[i : i + step]).argmax(axis=0)] for i in range(0, count, step)]
        return np.concatenate(found).tolist() if found else []

    def _scores(self, np: Any, numbers: Any) -> Any:
        """`proto.rendezvous` for all of them: chains down, keys across."""
        score = self._mixed ^ numbers[None, :]
        score = (score ^ (score >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        score = (score ^ (score >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return score ^ (score >> np.uint64(31))
