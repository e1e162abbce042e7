"""The data directory of one server process: whose it is, in which format, and that only one process uses it.

`format.json` says what lies there (`kind`, `format`) and keeps the few facts that a server must remember before anything else is open
(its cluster, its node id). `lock` is held with flock as long as the process lives, so a killed process leaves nothing stale
behind. Formats grow by one; an older one is handed to the owner to upgrade, a newer one is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from .errors import Status, StatusError, error

FORMAT_FILE = "format.json"
LOCK_FILE = "lock"
FILE_BYTES_MAX = 64 << 10  # of format.json: whatever is larger was not written by us


class DataDirectory:
    """An open data directory. Close it (or end the process) to let the next one in."""

    def __init__(self, path: Path, lock_fd: int, record: dict[str, Any]) -> None:
        self.path = path
        self.format: int = record["format"]
        self._lock_fd = lock_fd
        self._record = record

    @property
    def facts(self) -> dict[str, Any]:
        """What the server remembered with `remember`."""
        return dict(self._record.get("facts", {}))

    def remember(self, **facts: Any) -> None:
        """Keep facts (JSON values); they survive power loss when this returns. What could not be kept is not a fact here either. Raises
        PERMISSION_DENIED, READ_ONLY, NO_SPACE, IO_ERROR."""
        self._replace({**self._record, "facts": {**self._record.get("facts", {}), **facts}})

    def upgraded(self, format_version: int) -> None:
        """The owner has brought what lies here to a newer format. Raises as `remember`."""
        self._replace({**self._record, "format": format_version})
        self.format = format_version

    def _replace(self, record: dict[str, Any]) -> None:
        _write(self.path / FORMAT_FILE, record, self.path)
        self._record = record

    def close(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def open_data_directory(
    path: str | os.PathLike[str], kind: str, format_version: int, software: str = ""
) -> DataDirectory:
    """Open a data directory, or make one (mode 0700) where there is none or an empty one.

    Raises BUSY_RESOURCE when another process has it, BAD_FORMAT for a newer format, another kind or foreign files, and
    PERMISSION_DENIED, READ_ONLY or IO_ERROR when it cannot be written; each message names the directory and what to do."""
    directory = Path(path).absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = _lock(directory)
    except StatusError:
        raise
    except OSError as bad:
        raise _unusable(directory, bad) from bad
    try:
        return DataDirectory(directory, lock_fd, _record(directory, kind, format_version, software))
    except BaseException:
        os.close(lock_fd)
        raise


def _lock(directory: Path) -> int:
    fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        message = (
            f"{directory} is in use by process {holder}; stop it first ('emberfs down'), or name another directory"
        )
        raise error(Status.BUSY_RESOURCE, message) from taken
    except BaseException:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _record(directory: Path, kind: str, format_version: int, software: str) -> dict[str, Any]:
    file = directory / FORMAT_FILE
    try:
        record = read_json(file)
    except FileNotFoundError:
        foreign = sorted(
            p.name for p in directory.iterdir() if p.name != LOCK_FILE and not p.name.startswith(f"{FORMAT_FILE}.")
        )
        if foreign:
            message = f"{directory} holds {foreign[0]!r} but no {FORMAT_FILE}: not a data directory of emberfs; name an empty one"
            raise error(Status.BAD_FORMAT, message) from None
        record = {"kind": kind, "format": format_version, "software": software}
        _write(file, record, directory)
        return record
    except OSError as bad:
        raise _unusable(directory, bad) from bad
    if not isinstance(record.get("format"), int):
        raise error(Status.BAD_FORMAT, f"{file} is damaged: it has no format number; restore it from a backup")
    if record.get("kind") != kind:
        raise error(Status.BAD_FORMAT, f"{directory} belongs to a {record.get('kind')!r} server, not to a {kind!r} one")
    if record["format"] > format_version:
        message = (
            f"{directory} was written by a newer emberfs ({record.get('software') or 'unknown'}): format "
            f"{record['format']}, and this one knows up to {format_version}; upgrade this emberfs"
        )
        raise error(Status.BAD_FORMAT, message)
    return record


def _write(file: Path, record: dict[str, Any], directory: Path) -> None:
    try:
        write_json(file, record)
    except OSError as bad:
        raise _unusable(directory, bad) from bad


def _unusable(directory: Path, bad: OSError) -> StatusError:
    if isinstance(bad, StatusError):
        return bad
    status = {1: Status.PERMISSION_DENIED, 13: Status.PERMISSION_DENIED, 30: Status.READ_ONLY, 28: Status.NO_SPACE}
    why = bad.strerror or str(bad)
    message = f"cannot use {directory} as a data directory: {why}; check its owner and mode, or name another one"
    return error(status.get(bad.errno or 0, Status.IO_ERROR), message)


def read_json(file: Path, cure: str = "restore it from a backup") -> dict[str, Any]:
    """A small JSON object. Raises FileNotFoundError, or BAD_FORMAT naming the file, and the cure for its damage."""
    with file.open("rb") as opened:
        data = opened.read(FILE_BYTES_MAX + 1)
    try:
        record = json.loads(data) if len(data) <= FILE_BYTES_MAX else None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise error(Status.BAD_FORMAT, f"{file} is damaged: it is not a JSON object; {cure}")
    return record


def write_json(file: Path, record: dict[str, Any], mode: int = 0o600) -> None:
    """Replace a small file by a JSON object: the old or the new content survives a crash, the new one once this returns."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as opened:
            json.dump(record, opened, indent=1, sort_keys=True)
            opened.write("\n")
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory_fd = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
