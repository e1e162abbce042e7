"""Functions for processes that tests spawn: a spawned interpreter must be able to import them by name, without pytest."""

from __future__ import annotations

import hashlib
import os
from typing import Any


def digest_file(url: str, path: str) -> str:
    """SHA-256 of a file of the cluster, read by a client of this process's own."""
    import emberfs

    with emberfs.connect(url) as client:
        return hashlib.sha256(client.read_bytes(path)).hexdigest()


def write_pattern(url: str, path: str, length: int) -> int:
    """Write `length` bytes that name their own position, from a client of this process; returns its process id."""
    import emberfs

    with emberfs.connect(url) as client:
        client.write_bytes(path, pattern(length))
    return os.getpid()


def pattern(length: int) -> bytes:
    """Bytes in which every aligned eight say their own offset: a misplaced piece is seen at once."""
    words = (length + 7) // 8
    return b"".join((8 * word).to_bytes(8, "big") for word in range(words))[:length]


def read_slices_in_child(fs: Any, path: str, slices: list[tuple[int, int]]) -> list[bytes]:
    """Ranges of a file through a file system that this process inherited or unpickled, as loader workers do."""
    return fs.cat_ranges([path] * len(slices), [a for a, _ in slices], [b for _, b in slices], on_error="raise")
