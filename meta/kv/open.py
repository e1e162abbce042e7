"""An engine from its URL.

`rocksdb:///absolute/path` is embedded, the default of `emberfs up`. Over the others any number of metadata servers serve one namespace:
`postgresql://user@host:port/database` (PostgreSQL, CockroachDB, YugabyteDB; the rest as libpq has it, a password in PGPASSFILE or
PGPASSWORD) and, experimental, `fdb:///path/of/fdb.cluster?prefix=text` (FoundationDB). `memory:` is for tests; nothing survives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

from ...proto.errors import Status, StatusError, error
from .engine import Engine

STORES = "rocksdb:///absolute/path, postgresql://user@host/database or fdb:///path/of/fdb.cluster"
SHARED = frozenset({"fdb", "postgres", "postgresql"})  # schemes of engines that several servers may open


def is_shared(url: str) -> bool:
    """Whether several metadata servers may have the engine of this URL open at once."""
    return urlsplit(url).scheme in SHARED


def open_engine(url: str, *, on_failure: Callable[[StatusError], None] | None = None) -> Engine:
    """The engine that a URL names. `on_failure` hears once that its disk has failed: the process must end then.

    Raises INVALID for a URL that is none, UNSUPPORTED where a package is missing, and what opening the store raises
    (see `rocksdb_options.open_database`; a database server is asked later, at the first use).
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme == "memory":
        from .memory import MemoryEngine

        return MemoryEngine(time.monotonic)
    if parts.scheme == "rocksdb":
        _check_path(url, parts.netloc, path, "rocksdb:///var/lib/emberfs/meta")
        from .rocksdb import RocksEngine

        return RocksEngine(path, time.monotonic, on_failure=on_failure)
    if parts.scheme in {"postgres", "postgresql"}:
        if parts.password or "password" in parse_qs(parts.query):
            message = "no passwords in the URL of a store, where others see it: put it into PGPASSFILE or PGPASSWORD"
            raise error(Status.INVALID, message)
        try:
            from .postgres import PostgresEngine
        except ImportError as missing:
            message = f"PostgreSQL cannot be used here: {missing}; pip install 'emberfs[postgres]'"
            raise error(Status.UNSUPPORTED, message) from missing
        return PostgresEngine(url, time.monotonic)
    if parts.scheme == "fdb":
        _check_path(url, parts.netloc, path, "fdb:///etc/foundationdb/fdb.cluster")
        from .fdb import FoundationEngine

        prefix = parse_qs(parts.query).get("prefix", [""])[0]
        return FoundationEngine(path, time.monotonic, prefix.encode())
    raise error(Status.INVALID, f"{url!r}: not the URL of a metadata store: {STORES}")


def _check_path(url: str, host: str, path: str, example: str) -> None:
    if host or not path.startswith("/"):
        raise error(Status.INVALID, f"{url!r}: give an absolute path, as in {example}")
