"""The data directory of a local cluster as a place: that it can be written and holds nothing else, its secret, its sockets, its lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..proto.errors import Status, StatusError, error
from ..proto.settings import CLUSTER_FILE

SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, without the final NUL
SOCKET_SUFFIX_MAX = ".metrics"  # the longest of the names that a server listens under
SECRET_BYTES = 32
STORAGE_NAME = re.compile(r"storage-([1-9][0-9]*)")
META_NAME = re.compile(r"meta(?:-([1-9][0-9]*))?")
METADATA_STORE = Path("meta") / "kv"  # where an embedded store lies in a data directory
_OURS = {CLUSTER_FILE, "secret", "meta", "run", "log"}


def prepare(data: Path) -> None:
    """Make the directory with its run/, log/ and secret. Raises BAD_FORMAT for foreign files, PERMISSION_DENIED, NO_SPACE, READ_ONLY."""
    try:
        if data.is_dir():
            _refuse_foreign(data)
        for folder in (data, data / "run", data / "log"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _make_secret(data / "secret")
    except StatusError:
        raise
    except OSError as bad:
        status = {errno.ENOSPC: Status.NO_SPACE, errno.EROFS: Status.READ_ONLY}.get(
            bad.errno or 0, Status.PERMISSION_DENIED
        )
        why = bad.strerror or str(bad)
        message = f"cannot keep a cluster in {data}: {why}. Choose another directory with --data or EMBERFS_DATA"
        raise error(status, message) from bad


def _refuse_foreign(data: Path) -> None:
    names = {entry.name for entry in data.iterdir()}
    if names and not any(name in _OURS or STORAGE_NAME.fullmatch(name) for name in names):
        message = (
            f"{data} is not empty and holds no cluster ({min(names)!r} is there): choose another directory with --data"
        )
        raise error(Status.BAD_FORMAT, message)


def require_metadata(data: Path, known: bool) -> None:
    """Raise LOST_DATA where a cluster's embedded metadata are gone: a server would begin with empty ones. `known`: by cluster.json."""
    if (known or storage_names(data)) and not (data / METADATA_STORE).is_dir():
        raise error(
            Status.LOST_DATA,
            f"the cluster's metadata are not in {data / METADATA_STORE}: put them back there, or make them anew from a copy in the "
            "storage targets, with 'emberfs meta restore'",
        )


def _make_secret(path: Path) -> None:
    if path.exists():
        return
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        # One may be left of a program that was killed: in a container each has the same number.
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(fd)
        with contextlib.suppress(FileExistsError):  # another `up` was faster: its secret is the cluster's
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _fits(folder: Path, names: Iterable[str]) -> bool:
    return max(len(os.fsencode(folder / name)) for name in names) <= SOCKET_PATH_BYTES_MAX


def socket_dir(data: Path, roles: Iterable[str]) -> Path:
    """DIR/run, or where that is too long for a socket's name a short folder of this user's own. Raises PERMISSION_DENIED."""
    run = data / "run"
    names = [f"{role}{SOCKET_SUFFIX_MAX}" for role in roles]
    if _fits(run, names):
        return run
    own = f"emberfs-{os.getuid()}-{hashlib.blake2b(os.fsencode(data), digest_size=6).hexdigest()}"
    places = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")  # noqa: S108 -- looked at below
    short = next((Path(place) / own for place in places if place and _fits(Path(place) / own, names)), run)
    short.mkdir(mode=0o700, exist_ok=True)
    seen = short.lstat()
    if seen.st_uid != os.getuid() or seen.st_mode & 0o077 or not short.is_dir():
        message = f"{short} belongs to somebody else, and {run} is too long for sockets: choose a shorter directory with --data"
        raise error(Status.PERMISSION_DENIED, message)
    return short


@contextlib.contextmanager
def alone(data: Path) -> Iterator[None]:
    """One program at a time changes the cluster; a second one waits for the first."""
    fd = os.open(data / "run" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def storage_names(data: Path) -> list[str]:
    """Storage nodes that have a directory here, by number."""
    if not data.is_dir():
        return []
    return sorted((entry.name for entry in data.iterdir() if STORAGE_NAME.fullmatch(entry.name)), key=number_of)


def meta_names(data: Path, count: int) -> list[str]:
    """The metadata servers that have a directory here, and as many as make `count`: "meta", "meta-2"…"""
    found = [entry.name for entry in data.iterdir() if META_NAME.fullmatch(entry.name)] if data.is_dir() else []
    highest = max((int((META_NAME.fullmatch(name) or [""])[1] or 1) for name in found), default=1)
    return ["meta", *(f"meta-{number}" for number in range(2, max(count, highest) + 1))]


def number_of(name: str) -> int:
    """ "storage-3" -> 3; 0 for another name."""
    match = STORAGE_NAME.fullmatch(name)
    return int(match[1]) if match else 0


def next_names(names: Iterable[str], count: int) -> list[str]:
    """These storage nodes and as many new ones as make `count`, with the lowest numbers that are free."""
    found = sorted(names, key=number_of)
    number = 1
    while len(found) < count:
        if f"storage-{number}" not in found:
            found.append(f"storage-{number}")
        number += 1
    return sorted(found, key=number_of)
