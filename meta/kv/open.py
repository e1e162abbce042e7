"""An engine from its URL: `rocksdb:///absolute/path` (embedded, the default of `emberfs up`) or `memory:` (tests; nothing survives)."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from ...proto.errors import Status, StatusError, error
from .engine import Engine

_LATER = ("fdb", "postgres", "postgresql")


def open_engine(url: str, *, on_failure: Callable[[StatusError], None] | None = None) -> Engine:
    """The engine that a URL names. `on_failure` hears once that its disk has failed: the process must end then.

    Raises INVALID for a URL that is none, UNSUPPORTED for an engine that this version has not, and what opening the store raises
    (see `rocksdb_options.open_database`).
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        from .memory import MemoryEngine

        return MemoryEngine(time.monotonic)
    if parts.scheme == "rocksdb":
        path = unquote(parts.path)
        if parts.netloc or not path.startswith("/"):
            raise error(Status.INVALID, f"{url!r}: give an absolute path, as in rocksdb:///var/lib/emberfs/meta")
        from .rocksdb import RocksEngine

        return RocksEngine(path, time.monotonic, on_failure=on_failure)
    if parts.scheme in _LATER:
        raise error(Status.UNSUPPORTED, f"{parts.scheme}: this version keeps its metadata in rocksdb:///path only")
    raise error(Status.INVALID, f"{url!r}: not the URL of a metadata store; one is rocksdb:///path")
