"""What a batch answers for each key: bytes moved where it worked, otherwise a negative errno. Never an exception."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterable
from typing import Any

from ...proto.errors import TABLE, Status, StatusError, error, status_of
from ..keys import numpy

MISS = -errno.ENOENT
WRONG_SIZE = -errno.EMSGSIZE
DAMAGED = -errno.EBADMSG
CANCELLED = -errno.ECANCELED
LATE = -errno.ETIMEDOUT
AGAIN = -errno.EAGAIN
DEAD = -errno.EFAULT  # a request that was never answered may still write into this buffer: register it anew

# Where the KV cache says it otherwise than the table of statuses: whoever is away, is full or is moving may do it a moment later.
_CODES = {
    Status.UNAVAILABLE: AGAIN,
    Status.MAYBE_COMMITTED: AGAIN,
    Status.TARGET_OFFLINE: AGAIN,
    Status.CHUNK_NOT_FOUND: MISS,
    Status.CHECKSUM: DAMAGED,
    Status.LOST_DATA: DAMAGED,
}


def code_of(status: Status) -> int:
    """The answer for a key that ended so."""
    return _CODES.get(status) or -TABLE[status].errno


def failure_of(code: int, where: str) -> StatusError:
    """A status that came for single keys, as if it had come for the whole request."""
    status = status_of(code)
    return error(status, f"{where}: {TABLE[status].sentence}")


def as_array(codes: Iterable[int]) -> Any:
    """Statuses as int32: a numpy array where numpy is installed, otherwise `array.array`."""
    np, found = numpy(), array("i", codes)
    return found if np is None else np.frombuffer(found, "i4")


def as_bools(present: bytes | bytearray) -> Any:
    """One byte for each key as bools: a numpy array, or a list."""
    np = numpy()
    if np is not None:
        return np.frombuffer(bytes(present), "?")
    return [bool(one) for one in present]
