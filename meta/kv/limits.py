"""What every engine checks and computes alike: keys, values, counters, and the sentences of its refusals."""

from __future__ import annotations

import struct

from ...proto.errors import Status, StatusError, error
from .engine import (
    COUNTER_BYTES,
    KEY_BYTES_MAX,
    KEYS_END,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_SECONDS_MAX,
    VALUE_BYTES_MAX,
)

STAMP_BYTES = 10  # of a versionstamp: commit version (8, big-endian), order within it (2)
_COUNTER_BITS = 8 * COUNTER_BYTES
COUNTER_MAX = (1 << (_COUNTER_BITS - 1)) - 1
_COUNTER = struct.Struct("<q")


def key_refusal(key: bytes) -> StatusError | None:
    """Why this cannot be a key: TOO_LARGE, INVALID, or None for a good one."""
    if len(key) > KEY_BYTES_MAX:
        return error(Status.TOO_LARGE, f"a key of {len(key)} bytes ({key[:16]!r}…): at most {KEY_BYTES_MAX}")
    if key >= KEYS_END:
        return error(Status.INVALID, f"key {key[:16]!r}: keys from {KEYS_END!r} on belong to the engine")
    return None


def range_refusal(begin: bytes, end: bytes) -> StatusError | None:
    """Why this cannot be a range, whose end may be the end of all keys."""
    if end > KEYS_END:
        return error(
            Status.INVALID, f"a range that ends at {end[:16]!r}: keys from {KEYS_END!r} on belong to the engine"
        )
    longest = max(len(begin), len(end))
    if longest > KEY_BYTES_MAX:
        return error(Status.TOO_LARGE, f"the bound of a range has {longest} bytes: at most {KEY_BYTES_MAX}")
    return None


def count_refusal(limit: int) -> StatusError | None:
    """Why this cannot be the greatest number of pairs of a scan: INVALID, or None."""
    return error(Status.INVALID, f"a scan for at most {limit} pairs") if limit < 0 else None


def value_refusal(key: bytes, value: bytes) -> StatusError | None:
    """Why this cannot be the key's value: TOO_LARGE, or None."""
    if len(value) > VALUE_BYTES_MAX:
        return error(Status.TOO_LARGE, f"a value of {len(value)} bytes for {key[:16]!r}: at most {VALUE_BYTES_MAX}")
    return None


def counter_refusal(key: bytes, number: int, smallest: int = -COUNTER_MAX - 1) -> StatusError | None:
    """Why this cannot be added to, or be the floor of, the counter at `key`: INVALID, or None."""
    if smallest <= number <= COUNTER_MAX:
        return None
    return error(Status.INVALID, f"{number} for the counter {key[:16]!r}: from {smallest} to {COUNTER_MAX}")


def counter(value: bytes | None) -> int:
    """The number in a counter; absent is 0, a value of another length counts as its first 8 bytes, padded with zeros."""
    if value is not None and len(value) == COUNTER_BYTES:
        return _COUNTER.unpack(value)[0]  # type: ignore[no-any-return]
    return int.from_bytes((value or b"")[:COUNTER_BYTES].ljust(COUNTER_BYTES, b"\0"), "little", signed=True)


def counter_value(number: int) -> bytes:
    """The value of a counter that stands at `number`."""
    return _COUNTER.pack(number)


def wrapped(total: int) -> int:
    """The sum of two counters as the machine would have it: around the end and back."""
    return (total + COUNTER_MAX + 1 & (1 << _COUNTER_BITS) - 1) - COUNTER_MAX - 1


def added(value: bytes | None, delta: int) -> bytes:
    """A counter after `add`."""
    return counter_value(wrapped(counter(value) + delta))


def raised(value: bytes | None, floor: int) -> bytes:
    """A counter after `max`."""
    return counter_value(max(counter(value), floor))


def stamp(version: int) -> bytes:
    """The versionstamp of the transaction that committed as `version`: rises with the commit order."""
    return version.to_bytes(8, "big") + b"\0\0"


def spent() -> StatusError:
    return error(Status.INVALID, "this transaction was committed or failed: begin another one")


def too_old() -> StatusError:
    seconds = f"{TRANSACTION_SECONDS_MAX:g}"
    return error(Status.CONFLICT, f"the transaction is older than {seconds} seconds: do less in one, or try again")


def too_large(size: int) -> StatusError:
    return error(
        Status.TOO_LARGE,
        f"the transaction has {size} bytes of keys and values: at most {TRANSACTION_BYTES_MAX}; split it",
    )


def overtaken(key: bytes) -> StatusError:
    return error(Status.CONFLICT, f"another transaction wrote at {key[:24]!r} after this one had read there")


def closed(name: str) -> StatusError:
    return error(Status.UNAVAILABLE, f"{name} is closed")
