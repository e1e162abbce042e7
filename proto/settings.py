"""Where things lie and how long they may take: data directories, URLs, the one time scale.

`ember://host:port/path` names a metadata server over TCP; `ember://%2Fdata%2Fdir/path` the one-node cluster in a data directory, reached
over its Unix socket; `ember:///path` is the default cluster: `$EMBERFS_URL` if that is set, otherwise the default data directory's.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from .errors import Status, StatusError, error

SCHEME = "ember"
CLUSTER_FILE = (
    "cluster.json"  # in a data directory, written by `emberfs up`: {"cluster", "addresses", "secret_file", "version"}
)
PORT_DEFAULT = 9440
CLIENT_LEASE_SECONDS = 60.0
CLIENT_LEASE_SECONDS_MIN = 3.0  # below, one lost renewal costs the lease
CLIENT_LEASE_SECONDS_MAX = 3600.0
KV_CAPACITY_PART = 0.25  # of what targets for files may hold: what those for KV blocks may, where nothing is said
KV_MEMORY_PART = 0.25  # of this machine's memory, for KV blocks, where nothing is said
SECRET_BYTES_MIN = 16
SECRET_BYTES_MAX = 4096


def time_scale() -> float:
    """EMBERFS_TIME_SCALE: every lease and time-out is multiplied by it, so that emulated machines see no false failures."""
    try:
        return max(0.001, float(os.environ.get("EMBERFS_TIME_SCALE", "1")))
    except ValueError as bad:
        raise error(
            Status.INVALID, f"EMBERFS_TIME_SCALE={os.environ['EMBERFS_TIME_SCALE']!r}: must be a number"
        ) from bad


def default_kv_memory() -> int:
    """Bytes of the page cache that KV blocks may take on this machine, where nothing is said."""
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * KV_MEMORY_PART)


def client_lease() -> float:
    """EMBERFS_CLIENT_LEASE: seconds, before the time scale, after which the metadata server takes a silent client for gone: its locks are
    free then, its unlinked files go, and what it was writing is settled. Raises INVALID for less than 3 or more than 3600."""
    found = os.environ.get("EMBERFS_CLIENT_LEASE", "")
    try:
        seconds = float(found) if found else CLIENT_LEASE_SECONDS
    except ValueError:
        seconds = 0.0
    if not CLIENT_LEASE_SECONDS_MIN <= seconds <= CLIENT_LEASE_SECONDS_MAX:
        limits = f"{CLIENT_LEASE_SECONDS_MIN:g} to {CLIENT_LEASE_SECONDS_MAX:g}"
        raise error(Status.INVALID, f"EMBERFS_CLIENT_LEASE={found!r}: must be a number of seconds, {limits}")
    return seconds


def own_rack() -> str:
    """EMBERFS_RACK: what this machine fails together with. Reads prefer replicas in it, placement keeps the members of a chain apart by
    it. Empty: not known."""
    return os.environ.get("EMBERFS_RACK", "")


def default_data_dir() -> Path:
    """EMBERFS_DATA, or `emberfs` under the XDG data directory."""
    if path := os.environ.get("EMBERFS_DATA"):
        return Path(path)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "emberfs"


@dataclass(frozen=True, slots=True)
class Location:
    """What a URL says: how to reach a metadata server, and which path is meant."""

    addresses: tuple[str, ...]  # of metadata servers, to be tried in order
    path: str  # absolute
    cluster: str = ""  # id, if known: another one is refused
    secret_file: str = ""  # the cluster secret, for TCP


def parse_url(url: str) -> Location:
    """Resolve an `ember://` URL (or a bare absolute path in the default cluster). Raises INVALID, or NOT_FOUND without a cluster."""
    parts = urlsplit(url if "://" in url else f"{SCHEME}://{url if url.startswith('/') else '/' + url}")
    if parts.scheme != SCHEME:
        raise error(Status.INVALID, f"{url!r}: not an {SCHEME}:// URL")
    if parts.username or parts.password:
        raise error(Status.INVALID, "secrets do not belong into a URL; use EMBERFS_SECRET_FILE")
    path = url.split("://", 1)[1].partition("/")[2] if "://" in url else url.lstrip("/")
    if parts.netloc.lower().startswith("%2f"):
        return _from_data_dir(Path(unquote(parts.netloc)), "/" + path)
    if parts.netloc:
        try:
            port = parts.port or PORT_DEFAULT
        except ValueError as bad:
            raise error(Status.INVALID, f"{url!r}: the port is not a number up to 65535") from bad
        host = parts.hostname or ""
        address = f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
        return Location((address,), "/" + path, secret_file=os.environ.get("EMBERFS_SECRET_FILE", ""))
    if default := os.environ.get("EMBERFS_URL"):
        if not urlsplit(default).netloc:
            raise error(
                Status.INVALID, f"EMBERFS_URL={default!r}: must name a host or a data directory (ember://%2Fdata%2Fdir)"
            )
        found = parse_url(default)
        return Location(found.addresses, "/" + path, found.cluster, found.secret_file)
    return _from_data_dir(default_data_dir(), "/" + path)


def data_url(data: Path | str, path: str = "/") -> str:
    """The URL of a path in the one-node cluster of a data directory."""
    return f"{SCHEME}://{quote(str(Path(data).absolute()), safe='')}{path}"


def not_yours(data: Path) -> StatusError:
    """The error for a data directory that another user keeps to himself."""
    return error(
        Status.PERMISSION_DENIED,
        f"the cluster in {data} belongs to another user, who can let you in over TCP: 'emberfs up --port', then EMBERFS_URL and "
        "a copy of its secret in EMBERFS_SECRET_FILE",
    )


def _from_data_dir(data: Path, path: str) -> Location:
    try:
        found = json.loads((data / CLUSTER_FILE).read_text())
        return Location(tuple(found["addresses"]), path, found["cluster"], found.get("secret_file", ""))
    except FileNotFoundError as missing:
        raise error(
            Status.NOT_FOUND, f"no cluster in {data}: start one with 'emberfs up', or name one in EMBERFS_URL"
        ) from missing
    except PermissionError as denied:
        raise not_yours(data) from denied
    except (ValueError, KeyError, TypeError) as bad:
        raise error(Status.BAD_FORMAT, f"{data / CLUSTER_FILE} is damaged: 'emberfs up' writes it anew") from bad


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """The cluster secret in a file, without the white space around it; b"" for an empty path. Raises UNAUTHENTICATED when it cannot be
    read, is shorter than 16 bytes, or is open to others."""
    if not os.fspath(path):
        return b""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(SECRET_BYTES_MAX).strip()
    except OSError as bad:
        message = f"cannot read the cluster secret {os.fspath(path)}: {bad.strerror}; it is in the data directory of 'emberfs up'"
        raise error(Status.UNAUTHENTICATED, message) from bad
    if mode & 0o077:
        raise error(
            Status.UNAUTHENTICATED, f"the cluster secret {os.fspath(path)} is open to other users: chmod 600 it"
        )
    if len(secret) < SECRET_BYTES_MIN:
        raise error(
            Status.UNAUTHENTICATED, f"{os.fspath(path)} holds no cluster secret: fewer than {SECRET_BYTES_MIN} bytes"
        )
    return secret
