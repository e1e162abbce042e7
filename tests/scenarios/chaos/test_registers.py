"""The judge of chaos is judged: what is wrong is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from .registers import CHUNK_BYTES, REGISTERS, Ledger, WrongBytesError, content

REGISTER = REGISTERS[1]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One register with two acknowledged writes and a third that was begun."""
    made = Ledger(tmp_path / "ledger", workers=2)
    for _ in range(2):
        made.acknowledge(REGISTER, made.begin(REGISTER))
    made.begin(REGISTER)
    return made


def test_either_of_two_writes_while_one_is_under_way(ledger: Ledger) -> None:
    for write in (2, 3):
        assert ledger.check(0, REGISTER, content(REGISTER, write), ledger.oldest(REGISTER)) == write


def test_a_lost_write(ledger: Ledger) -> None:
    with pytest.raises(WrongBytesError, match="write 1, where 2 to 3"):
        ledger.check(0, REGISTER, content(REGISTER, 1), ledger.oldest(REGISTER))


def test_older_after_newer_in_another_process(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "ledger", workers=2)
    assert other.check(1, REGISTER, content(REGISTER, 3), other.oldest(REGISTER)) == 3
    with pytest.raises(WrongBytesError, match="write 2, where 3 to 3"):
        ledger.check(0, REGISTER, content(REGISTER, 2), ledger.oldest(REGISTER))


def test_a_write_that_nobody_began(ledger: Ledger) -> None:
    with pytest.raises(WrongBytesError, match="write 4"):
        ledger.check(0, REGISTER, content(REGISTER, 4), ledger.oldest(REGISTER))


@pytest.mark.parametrize("wrong", ["half", "byte", "zeros", "other register", "short"])
def test_bytes_of_no_write(ledger: Ledger, wrong: str) -> None:
    data = bytearray(content(REGISTER, 3))
    if wrong == "half":
        data[len(data) // 2 :] = content(REGISTER, 2)[len(data) // 2 :]
    elif wrong == "byte":
        data[-1] ^= 1
    elif wrong == "zeros":
        data = bytearray(len(data))
    elif wrong == "short":
        data = data[:-1]
    else:
        data = bytearray(content(REGISTERS[1 + 4], 3))
        assert len(data) == REGISTER.length
    with pytest.raises(WrongBytesError):
        ledger.check(0, REGISTER, data, ledger.oldest(REGISTER))


def test_registers_lie_within_chunks() -> None:
    for register in REGISTERS:
        assert register.offset // CHUNK_BYTES == (register.offset + register.length - 1) // CHUNK_BYTES
