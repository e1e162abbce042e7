"""The records of gensort 1.5: 100 bytes each, of which the first 10 are the key. Record n is the same wherever a file begins.

All comes from one linear congruential generator, X' = a X + c (mod 2**128), with X(0) = 0; record n begins at X(n + 1).

- A *binary* record is the upper 10 bytes, most significant first, of X(n+1) .. X(n+10), combined with a constant (xor). So the records of
  a file are windows over one stream of bytes, each 10 bytes further on.
- An *ASCII* record is ten printable characters from X(n+1), n in 32 hexadecimal digits, the low 52 bits of X(n+1) in hexadecimal digits,
  each four times, CR and LF.
- *Skewed* keys begin with bits of the key of record log2(n) + 1, a random number of them (a quarter of the records: none).

Numbers of 128 bits are pairs of arrays of 64 bits (upper, lower).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]
    Bytes = NDArray[np.uint8]

RECORD_BYTES = 100
KEY_BYTES = 10
BLOCK_RECORDS = 16384  # made at a time: its numbers and records stay in the processor's cache
PARTS = RECORD_BYTES // KEY_BYTES  # of a binary record, each from a number of its own
SKEW_BITS_MAX = 48  # of a binary key that may be replaced
SKEW_CHARACTERS_MAX = 6  # of an ASCII key
PRINTABLE, FIRST_PRINTABLE = 95, 32
NUMBERS = 1 << 128

MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
INCREMENT = 0x4A696D47726179524950202020202001

# What the ten parts of a binary record are combined with.
_MASK = np.frombuffer(
    bytes.fromhex(
        "00000000000000000000 f0e8e4e2e1d8d4d2d1cc cac9c6c5c3b8b4b2b1ac aaa9a6a5a39c9a999695 938e8d8b87787472716c"
        "6a696665635c5a595655 534e4d4b473c3a393635 332e2d2b271e1d1b170f c8c4c2c1989492918ce0 170f332e2d2b271e1d1b"
    ),
    np.uint8,
)
_HEX = np.frombuffer(b"0123456789ABCDEF", np.uint8)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Step(NamedTuple):
    """Some steps of the generator at once: x -> a x + c."""

    a: int
    c: int

    def of(self, x: int) -> int:
        return (self.a * x + self.c) % NUMBERS

    def after(self, first: Step) -> Step:
        """`first`, and then this."""
        return Step(self.a * first.a % NUMBERS, (self.a * first.c + self.c) % NUMBERS)


def steps(count: int) -> Step:
    """`count` steps, by squaring."""
    made, power = Step(1, 0), Step(MULTIPLIER, INCREMENT)
    while count:
        if count & 1:
            made = power.after(made)
        power = power.after(power)
        count >>= 1
    return made


def number(index: int) -> int:
    """X(index)."""
    return steps(index).of(0)


def _split(value: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(value >> 64), np.uint64(value & ((1 << 64) - 1))


def _advance(upper: Words, lower: Words, step: Step) -> tuple[Words, Words]:
    """All numbers taken further by the same steps: a product of 128 bits from halves of 64 and of 32."""
    (a_upper, a_lower), (c_upper, c_lower) = _split(step.a), _split(step.c)
    low, high, a_low, a_high = lower & _LOW, lower >> _HALF, a_lower & _LOW, a_lower >> _HALF
    cross, other = low * a_high, high * a_low
    middle = (low * a_low >> _HALF) + (cross & _LOW) + (other & _LOW)
    made = lower * a_lower + c_lower
    carry = high * a_high + (cross >> _HALF) + (other >> _HALF) + (middle >> _HALF)
    carry += lower * a_upper
    carry += upper * a_lower
    carry += c_upper
    carry += made < c_lower
    return carry, made


def _numbers(first: int, count: int) -> tuple[Words, Words]:
    """X(first), X(first + 1), ...: each half of them from the one before."""
    upper, lower = np.empty(count, np.uint64), np.empty(count, np.uint64)
    upper[0], lower[0] = _split(number(first))
    have = 1
    while have < count:
        more = min(have, count - have)
        made = _advance(upper[:more], lower[:more], steps(have))
        upper[have : have + more], lower[have : have + more] = made
        have += more
    return upper, lower


def generate(out: Bytes, begin: int = 0, *, ascii: bool = False, skewed: bool = False) -> None:
    """Fill `out` (records, RECORD_BYTES) with the records from number `begin` on."""
    blocks = _blocks(begin + 1, len(out), 0 if ascii else PARTS - 1)
    for at, (upper, lower) in zip(range(0, len(out), BLOCK_RECORDS), blocks, strict=True):
        block = out[at : at + BLOCK_RECORDS]
        if ascii:
            _ascii(block, upper, lower, begin + at)
        else:
            _binary(block, upper, lower)
        if skewed:
            (_skew_ascii if ascii else _skew_binary)(block, lower, begin + at)


def records(begin: int, count: int, *, ascii: bool = False, skewed: bool = False) -> Bytes:
    """`count` records from number `begin` on, as an array (count, RECORD_BYTES)."""
    out = np.empty((count, RECORD_BYTES), np.uint8)
    generate(out, begin, ascii=ascii, skewed=skewed)
    return out


def _blocks(first: int, count: int, more: int) -> Iterator[tuple[Words, Words]]:
    """The numbers for each block of records: one a record, and `more` behind them."""
    if not count:
        return
    upper, lower = _numbers(first, min(BLOCK_RECORDS, count) + more)
    block = steps(BLOCK_RECORDS)
    while True:
        have = min(BLOCK_RECORDS, count) + more
        yield upper[:have], lower[:have]
        count -= BLOCK_RECORDS
        if count <= 0:
            return
        upper, lower = _advance(upper, lower, block)


def _binary(out: Bytes, upper: Words, lower: Words) -> None:
    stream = np.empty(len(upper), [("upper", ">u8"), ("lower", ">u2")])
    stream["upper"] = upper
    stream["lower"] = lower >> np.uint64(48)
    shape, strides = (len(out), RECORD_BYTES), (KEY_BYTES, 1)
    windows = np.lib.stride_tricks.as_strided(stream.view(np.uint8), shape, strides, writeable=False)
    np.bitwise_xor(windows, _MASK, out=out)


def _ascii(out: Bytes, upper: Words, lower: Words, begin: int) -> None:
    rest = upper
    for column in range(8):
        out[:, column] = rest % PRINTABLE + FIRST_PRINTABLE
        rest = rest // PRINTABLE
    out[:, 8] = lower % PRINTABLE + FIRST_PRINTABLE
    out[:, 9] = lower // PRINTABLE % PRINTABLE + FIRST_PRINTABLE
    out[:, 10:12] = out[:, 44:46] = FIRST_PRINTABLE
    for column, digits in zip((12, 28), _indices(begin, len(out)), strict=True):
        out[:, column : column + 16] = _HEX[_digits(digits, 16)]
    out[:, 46:98] = np.repeat(_HEX[_digits(lower, 13)], 4, axis=1)
    out[:, 98], out[:, 99] = b"\r\n"


def _indices(begin: int, count: int) -> tuple[Words, Words]:
    """The numbers of `count` records, upper and lower halves."""
    upper, lower = _split(begin)
    lowers = lower + np.arange(count, dtype=np.uint64)
    return upper + (lowers < lower).astype(np.uint64), lowers


def _digits(values: Words, count: int) -> NDArray[Any]:
    """The lowest `count` hexadecimal digits, most significant first."""
    return (values[:, None] >> np.arange(4 * (count - 1), -1, -4, dtype=np.uint64)) & np.uint64(15)


# --- skewed keys -----------------------------------------------------------------------------------------------------------------------


def skew_index(record: int) -> int:
    """Whose key the skewed part of a record's comes from: the number of the record's significant bits. From 2**60 on (2**124 in the
    upper half) gensort takes it for 64 (128)."""
    upper, lower = record >> 64, record & ((1 << 64) - 1)
    if upper:
        return 128 if upper >> 60 else 64 + upper.bit_length()
    return 64 if lower >> 60 else lower.bit_length()


def _skew_runs(begin: int, count: int) -> Iterator[tuple[slice, int]]:
    """Runs of records that have the same skew index: up to the next power of two."""
    at = 0
    while at < count:
        end = min(count, (1 << (begin + at).bit_length()) - begin)
        yield slice(at, end), skew_index(begin + at)
        at = end


def _skew_binary(out: Bytes, lower: Words, begin: int) -> None:
    bits = (lower[: len(out)] >> _HALF).astype(np.uint8) & np.uint8(0x3F)
    bits[bits > SKEW_BITS_MAX] = 0
    for part, index in _skew_runs(begin, len(out)):
        source = np.frombuffer((number(index + 1) >> 80).to_bytes(6, "big"), np.uint8)
        for column in range(SKEW_BITS_MAX // 8):
            kept = np.uint8(0xFF) >> np.clip(bits[part].astype(np.int16) - 8 * column, 0, 8).astype(np.uint8)
            out[part, column] = (out[part, column] & kept) | (source[column] & ~kept)


def _skew_ascii(out: Bytes, lower: Words, begin: int) -> None:
    characters = (lower[: len(out)] >> _HALF).astype(np.uint8) & np.uint8(7)
    characters[characters > SKEW_CHARACTERS_MAX] = 0
    for part, index in _skew_runs(begin, len(out)):
        source = records(index, 1, ascii=True)[0]
        for column in range(SKEW_CHARACTERS_MAX):
            out[part, column] = np.where(characters[part] > column, source[column], out[part, column])
