"""Mounts of this machine: started in the background, found again, taken away; and those that a local cluster remembers.

A mount is a supervisor process (fuse/supervisor.py) with a lock and a log of its own, like a server:

    /run/emberfs/NAME.pid, /var/log/emberfs/NAME.log                             of root's mounts
    $XDG_RUNTIME_DIR/emberfs/NAME.pid, ~/.local/state/emberfs/NAME.log           of other users'

NAME is made of the path. What is mounted, /proc/self/mountinfo says, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import shlex
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..fuse import mounting
from ..fuse.options import parse
from ..proto.errors import Status, StatusError, error
from ..proto.settings import data_url, default_data_dir, parse_url, time_scale
from .processes import ServerProcess

if TYPE_CHECKING:
    from .local import LocalCluster

_started: dict[str, ServerProcess] = {}  # by this program: it reaps them

NAME_CHARACTERS_MAX = 40  # of the path, in the name of a log
END_SECONDS_MAX = 90.0  # from the unmount to the end of the supervisor, which flushes everything


def full_url(url: str = "") -> str:
    """The URL of what is meant, with nothing left to this process's environment. Raises as `parse_url`."""
    url = url or "ember:///"
    path = parse_url(url).path  # whether it can be understood, and whether there is such a cluster
    if not url.lower().startswith("ember:///"):
        return url
    default = os.environ.get("EMBERFS_URL", "") or data_url(default_data_dir())
    return default.split("/", 3)[0] + "//" + default.split("/", 3)[2] + path


def check(path: str, url: str) -> None:
    """Raise what stands against mounting this cluster there, unless it is mounted there already."""
    place = mounting.place_of(path)
    if place not in of_cluster(url):
        mounting.check_mountpoint(place)
        if why := can_mount():
            raise error(Status.UNSUPPORTED, why)


def start(
    url: str, path: str, options: Sequence[str] = (), *, log_level: str = "info", bound: bool = False
) -> dict[str, Any]:
    """Mount, and return when the mount answers: {"pid", "path", "source", "log"}. `bound`: it is unmounted when this program ends.

    Raises what the options, the place or the cluster are not good for, as a StatusError that says so.
    """
    parse(options)  # complaints about these need no process
    place = mounting.place_of(path)
    mounting.check_mountpoint(place)
    process = _process(place, bound)
    if process.pid() is not None:
        raise error(Status.BUSY_RESOURCE, f"somebody else is just mounting on {place}, or unmounting it: try again")
    arguments = [full_url(url), place, "--log-level", log_level]
    for text in options:
        arguments += ["-o", text]
    _started[place] = process
    process.launch(arguments)
    try:
        report = process.wait()
    except BaseException:  # Ctrl-C too: it would be mounted behind our back
        process.stop()
        _forget(place, process)
        raise
    return {**report, "log": str(process.log_file)}


def stop(path: str, *, lazy: bool = False, force: bool = False) -> str:
    """Unmount, and wait until everything is flushed; with `lazy` it goes when its last user does, and nobody waits. A sentence where it is
    unmounted and not known to be flushed, else "".

    Raises BUSY_RESOURCE naming who uses it, NOT_FOUND where nothing of ours is mounted.
    """
    place = mounting.place_of(path)
    process = _process(place)
    with _pidfd(process) as pidfd:
        mounting.unmount(place, lazy=lazy, force=force)
        if lazy:
            return ""
        if not _await_end(pidfd):
            return (
                f"{place} is unmounted here, and pid {process.pid()} still serves it: other mount namespaces, as of containers, have it "
                f"(grep -l {shlex.quote(place)} /proc/*/mountinfo), or its cluster does not answer"
            )
        _forget(place, process)
        return ""


def end(path: str) -> bool:
    """Unmount in any case: what is open is flushed, and lost to who has it open. False if that took too long."""
    place = mounting.place_of(path)
    process = _process(place)
    with _pidfd(process) as pidfd:
        if pidfd < 0:
            with contextlib.suppress(StatusError):
                mounting.unmount(place, lazy=True)
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        ended = _await_end(pidfd)
    if ended:
        _forget(place, process)
    return ended


def listed() -> list[dict[str, Any]]:
    """Mounts of emberfs on this machine: path, source, options, supervisor's pid (0: unknown), log."""
    found = []
    for mount in mounting.our_mounts():
        process = _process(mount.path)
        pid = process.pid() or 0
        row = {"path": mount.path, "source": mount.source, "options": mount.options, "pid": pid}
        found.append({**row, "log": str(process.log_file) if pid else ""})
    return found


def of_cluster(url: str) -> list[str]:
    """Where directories of this cluster are mounted; the newest first, as one may lie within another."""
    return [mount.path for mount in reversed(mounting.our_mounts()) if mount.source.startswith(url)]


def end_all(url: str) -> None:
    """Unmount whatever of this cluster is mounted, in any case: without it, programs would wait for a cluster that is not there."""
    for path in of_cluster(url):
        end(path)


# --- what a local cluster remembers ---------------------------------------------------------------------------------------------


def remember(cluster: LocalCluster, path: str) -> None:
    """From now on `up` mounts the cluster there."""
    place = mounting.place_of(path)
    with cluster.changing() as record:
        record["mounts"] = sorted({*record.get("mounts", []), place})


def forget(path: str) -> None:
    """`up` does not mount there any more. Nothing happens where no cluster of this machine knew of it."""
    mount = mounting.find(mounting.place_of(path))
    if mount is None or not mount.source.lower().startswith("ember://%2f"):
        return
    from .local import LocalCluster

    with contextlib.suppress(StatusError, OSError):
        cluster = LocalCluster(unquote(mount.source.split("/")[2]))
        if mount.path in cluster.record.get("mounts", []):
            with cluster.changing() as record:
                record["mounts"].remove(mount.path)


def start_remembered(cluster: LocalCluster) -> tuple[list[str], StatusError | None]:
    """Mount where the cluster is to be mounted and is not; where it is mounted then, and the first failure."""
    failure: StatusError | None = None
    wanted: list[str] = cluster.record.get("mounts", [])
    before = of_cluster(cluster.url)
    for place in wanted:
        if place not in before:
            try:
                start(cluster.url, place)
            except StatusError as failed:
                failure = failure or failed
    there = of_cluster(cluster.url)
    return [place for place in wanted if place in there], failure


def can_mount() -> str:
    """Why this process cannot mount; "" if it probably can."""
    if not os.path.exists(mounting.DEVICE):
        return (
            f"there is no {mounting.DEVICE} (modprobe fuse; a container needs --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if not os.access(mounting.DEVICE, os.R_OK | os.W_OK):
        return f"{mounting.DEVICE} may not be opened"
    if os.geteuid() and mounting.fusermount() is None:
        return "only root can mount without fusermount3 (Debian package fuse3)"
    return ""


# --- one mount's process ------------------------------------------------------------------------------------------------------


def _process(place: str, bound: bool = False) -> ServerProcess:
    if place in _started:
        return _started[place]
    digest = hashlib.blake2b(os.fsencode(place), digest_size=4).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", place.strip("/"))[-NAME_CHARACTERS_MAX:].strip("-")
    name = f"{readable}-{digest}"
    pid_file, log_file = _folder(_run_folder()) / f"{name}.pid", _folder(_log_folder()) / f"{name}.log"
    return ServerProcess(f"the mount on {place}", "emberfs.fuse.supervisor", pid_file, log_file, bound)


def _forget(place: str, process: ServerProcess) -> None:
    """Nothing of it runs any more."""
    process.stop(kill=True)  # reaps it
    process.pid_file.unlink(missing_ok=True)
    _started.pop(place, None)


def _folder(path: Path) -> Path:
    """This user's own folder. Raises PERMISSION_DENIED when it is somebody else's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.lstat().st_uid != os.geteuid() or not path.is_dir():
        raise error(Status.PERMISSION_DENIED, f"{path} belongs to somebody else: remove it, or set XDG_RUNTIME_DIR")
    return path


def _run_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/run/emberfs")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "emberfs") if runtime else Path(tempfile.gettempdir(), f"emberfs-mounts-{os.geteuid()}")


def _log_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/var/log/emberfs")
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "emberfs"


@contextlib.contextmanager
def _pidfd(process: ServerProcess) -> Iterator[int]:
    """Of a mount's supervisor; -1 if it does not run, or is not ours to find."""
    found = -1
    if pid := process.pid():
        with contextlib.suppress(ProcessLookupError):
            found = os.pidfd_open(pid)
    try:
        yield found
    finally:
        if found >= 0:
            os.close(found)


def _await_end(pidfd: int) -> bool:
    if pidfd < 0:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(END_SECONDS_MAX * time_scale() * 1000))
