"""Keys in all forms that engines have, and placement in bulk against placement key by key."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from emberfs.kvcache import keys as keys_module
from emberfs.kvcache.keys import Placement, packed, select
from emberfs.proto.blocks import chain_of

KEYS = [random.Random(number).randbytes(32) for number in range(300)]
JOINED = b"".join(KEYS)


@pytest.mark.parametrize(
    "form",
    [
        KEYS,
        tuple(KEYS),
        [key.hex() for key in KEYS],
        [KEYS[0].hex(), *KEYS[1:]],
        [bytearray(key) for key in KEYS],
        JOINED,
        bytearray(JOINED),
        memoryview(JOINED),
        np.frombuffer(JOINED, "u1"),
        np.frombuffer(JOINED, "u1").reshape(-1, 32),
        np.frombuffer(JOINED, "S32"),
        np.frombuffer(JOINED, "u8").reshape(-1, 4),
        (key for key in KEYS),
    ],
    ids=lambda form: type(form).__name__,
)
def test_every_form_is_packed(form: object) -> None:
    assert packed(form) == JOINED


@pytest.mark.parametrize("form", [[], b"", (), np.zeros((0, 32), "u1")], ids=str)
def test_no_keys(form: object) -> None:
    assert packed(form) == b""


@pytest.mark.parametrize("bad", [[b"short"], [KEYS[0], b""], ["zz" * 32], ["ab"], JOINED[:-1], [b"x" * 33]], ids=str)
def test_keys_of_another_length_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="32"):
        packed(bad)


@pytest.mark.parametrize("bad", ["ab" * 32, [1, 2], 7, [None]], ids=str)
def test_what_is_no_key_is_refused(bad: object) -> None:
    with pytest.raises(TypeError):
        packed(bad)


def test_an_array_that_is_not_in_one_piece() -> None:
    wide = np.zeros((300, 64), "u1")
    wide[:, :32] = np.frombuffer(JOINED, "u1").reshape(-1, 32)
    assert packed(wide[:, :32]) == JOINED


def test_select() -> None:
    assert select(JOINED, range(3, 7)) == b"".join(KEYS[3:7])
    assert select(JOINED, [7, 3]) == KEYS[7] + KEYS[3]


@pytest.mark.parametrize("chains", [[5], [1, 2], [9, 4, 7, 1], list(range(1, 60)), [1 << 31, 3]], ids=len)
def test_bulk_placement_is_that_of_single_keys(chains: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [chain_of(key, chains) for key in KEYS]
    assert Placement(chains).chains_of(JOINED) == expected
    monkeypatch.setattr(keys_module, "SCORES_MAX", 100)
    assert Placement(chains).chains_of(JOINED) == expected
    monkeypatch.setattr(keys_module, "numpy", lambda: None)
    assert Placement(chains).chains_of(JOINED) == expected


def test_chains_that_come_move_only_their_keys() -> None:
    before, after = Placement(range(1, 9)).chains_of(JOINED), Placement(range(1, 10)).chains_of(JOINED)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {9}
    assert len(moved) < len(KEYS) / 4


def test_no_chain() -> None:
    with pytest.raises(ValueError, match="no chain"):
        Placement([]).chains_of(JOINED)


def test_placement_loads_no_numpy_where_there_is_one_chain() -> None:
    import subprocess

    code = (
        "import sys; from emberfs.kvcache.keys import Placement, packed; "
        "Placement([3]).chains_of(packed(['ab' * 32])); sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
