"""Mounting, unmounting, and what the kernel says about mounts. Linux only; no thread, no loop.

Root mounts by mount(2) with a descriptor of /dev/fuse that it opened; everybody else asks the set-uid program fusermount3, which mounts
and sends the descriptor back over a socket. Both ways give a file system of type `fuse.emberfs`.

What is looked up in /proc/self/mountinfo never touches the mount itself: one whose daemon does not answer would hold whoever looks.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..proto.errors import Status, StatusError, error
from .options import MS_DIRSYNC, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_SYNCHRONOUS, MountOptions

DEVICE = "/dev/fuse"
SUBTYPE = "emberfs"
TYPE = f"fuse.{SUBTYPE}"
READ_BYTES_MAX = 1 << 20  # of one READ request
ANSWER_SECONDS_MAX = 3.0  # of a mount that works
FUSERMOUNT_SECONDS_MAX = 30.0
USERS_SHOWN_MAX = 5  # processes that keep a mount busy, in the complaint
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
_WORDS_OF_FLAGS = {
    MS_NOSUID: "nosuid",
    MS_NODEV: "nodev",
    MS_NOEXEC: "noexec",
    MS_SYNCHRONOUS: "sync",
    MS_DIRSYNC: "dirsync",
}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    device: str  # "major:minor"
    path: str
    options: str  # of this mount point
    type: str
    source: str
    super_options: str  # of the file system

    @property
    def ours(self) -> bool:
        return self.type == TYPE

    @property
    def user(self) -> int:
        """Who mounted it."""
        found = re.search(r"(?:^|,)user_id=([0-9]+)", self.super_options)
        return int(found[1]) if found else 0


def parse_mountinfo(text: str) -> list[Mount]:
    """In the order in which they were mounted: of several at one place the last one is seen."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue  # not of this kernel's form
        dash = fields.index("-", 6)
        kind, source, super_options = (*fields[dash + 1 : dash + 4], "", "", "")[:3]
        found.append(Mount(fields[2], _unescape(fields[4]), fields[5], kind, _unescape(source), super_options))
    return found


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as \\040 and so on."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def mounts() -> list[Mount]:
    """All mounts that this process sees."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def our_mounts() -> list[Mount]:
    """Those of emberfs."""
    return [mount for mount in mounts() if mount.ours]


def find(path: str) -> Mount | None:
    """What is mounted at exactly this place; the topmost one."""
    return next((mount for mount in reversed(mounts()) if mount.path == path), None)


def place_of(path: str) -> str:
    """The absolute path as mountinfo shows it. The last component is looked at only if nothing is mounted there: it may not answer."""
    parent, name = os.path.split(os.path.abspath(path))
    place = os.path.join(os.path.realpath(parent), name) if name else parent
    return place if find(place) is not None else os.path.realpath(place)


def check_mountpoint(path: str) -> None:
    """Raise NOT_FOUND, NOT_DIRECTORY, PERMISSION_DENIED, or BUSY_RESOURCE where emberfs is mounted already. A mount that lost its
    daemon is taken away first."""
    mount = find(path)
    if mount is not None and mount.ours:
        if _is_dead(path):
            unmount(path, lazy=True)
        else:
            raise error(
                Status.BUSY_RESOURCE, f"{mount.source} is mounted on {path} already: 'emberfs umount {path}' first"
            )
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as missing:
        raise error(Status.NOT_FOUND, f"{path} does not exist: make the directory first") from missing
    except OSError as bad:
        raise error(Status.PERMISSION_DENIED, f"cannot mount on {path}: {bad.strerror}") from bad
    if not stat.S_ISDIR(mode):
        raise error(Status.NOT_DIRECTORY, f"cannot mount on {path}: it is not a directory")
    if os.geteuid() and not os.access(path, os.W_OK):
        raise error(Status.PERMISSION_DENIED, f"cannot mount on {path}: you may not write to that directory")


def _is_dead(path: str) -> bool:
    """Whether its daemon is gone for good: the kernel says so at once then. One that only does not answer holds whoever asks, so
    that is a process of its own."""
    child = subprocess.Popen(
        ["stat", "--", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        _, said = child.communicate(timeout=ANSWER_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return False
    return os.strerror(errno.ENOTCONN).encode() in said


# --- mounting -----------------------------------------------------------------------------------------------------------------


def mount(path: str, source: str, options: MountOptions) -> int:
    """Mount at this directory (`place_of`, checked); the descriptor of the device. Requests wait there until somebody reads it.

    Raises StatusError: UNSUPPORTED without FUSE in the kernel, NOT_PERMITTED without the right to mount, and what `_explain` says.
    """
    if os.geteuid() == 0:
        return _mount_as_root(path, source, options)
    return _mount_as_user(path, source, options)


def open_device() -> int:
    """A new connection. Raises UNSUPPORTED or NOT_PERMITTED."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as bad:
        if bad.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            message = (
                f"there is no {DEVICE}: load the kernel module with 'modprobe fuse'; in a container, give it the device with "
                "'--device /dev/fuse --cap-add SYS_ADMIN'"
            )
            raise error(Status.UNSUPPORTED, message) from bad
        raise error(Status.NOT_PERMITTED, f"cannot open {DEVICE}: {bad.strerror}") from bad


def _mount_as_root(path: str, source: str, options: MountOptions) -> int:
    device = open_device()
    data = [f"fd={device}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}", *_kernel(options)]
    arguments = (source.encode(errors="surrogateescape"), os.fsencode(path), TYPE.encode())
    if _libc.mount(*arguments, ctypes.c_ulong(options.mount_flags), ",".join(data).encode()):
        failed = ctypes.get_errno()
        os.close(device)
        raise _explain(failed, path)
    return device


def _kernel(options: MountOptions) -> list[str]:
    """What the kernel's FUSE itself is told."""
    words = ["default_permissions", f"max_read={READ_BYTES_MAX}"]
    return [*words, "allow_other"] if options.kernel_lets_others_in else words


def _explain(number: int, path: str) -> StatusError:
    """Why mount(2) failed, in words that help."""
    status, why = {
        errno.EPERM: (Status.NOT_PERMITTED, "this process may not mount (a container needs '--cap-add SYS_ADMIN')"),
        errno.EACCES: (Status.PERMISSION_DENIED, "permission denied"),
        errno.ENODEV: (Status.UNSUPPORTED, "the kernel has no FUSE: 'modprobe fuse'"),
        errno.EBUSY: (Status.BUSY_RESOURCE, "something else is mounted there"),
        errno.ENOENT: (Status.NOT_FOUND, "it does not exist"),
        errno.ENOTDIR: (Status.NOT_DIRECTORY, "it is not a directory"),
    }.get(number, (Status.INVALID, os.strerror(number)))
    return error(status, f"cannot mount on {path}: {why}")


def fusermount() -> str | None:
    """The program that mounts for users."""
    return shutil.which("fusermount3")


def _mount_as_user(path: str, source: str, options: MountOptions) -> int:
    program = fusermount()
    if program is None:
        message = "only root can mount without the program fusermount3: install the package fuse3, or mount as root"
        raise error(Status.NOT_PERMITTED, message)
    words = [
        *_kernel(options),
        f"subtype={SUBTYPE}",
        f"fsname={source.replace(chr(92), chr(92) * 2).replace(',', chr(92) + ',')}",
    ]
    words += [word for flag, word in _WORDS_OF_FLAGS.items() if options.flags & flag]
    words += ["ro"] if options.read_only else []
    words += ["noatime"] if options.noatime else []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = [program, "-o", ",".join(words), "--", path]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                command,
                check=False,
                env=environment,
                pass_fds=(theirs.fileno(),),
                capture_output=True,
                timeout=FUSERMOUNT_SECONDS_MAX,
            )
        except subprocess.TimeoutExpired as late:
            raise error(
                Status.UNAVAILABLE, f"fusermount3 did not mount {path} within {FUSERMOUNT_SECONDS_MAX:g} s"
            ) from late
        if done.returncode:
            raise error(Status.NOT_PERMITTED, f"cannot mount on {path}: {_last_words(done.stderr)}")
        return _receive_descriptor(ours)


def _last_words(output: bytes) -> str:
    """What fusermount3 complained, without its name."""
    text = output.decode(errors="replace").strip()
    if "user_allow_other" in text:
        return "allow_other and allow_root need the line 'user_allow_other' in /etc/fuse.conf"
    return text.splitlines()[-1].rpartition("fusermount3: ")[2] if text else "fusermount3 did not say why"


def _receive_descriptor(ours: socket.socket) -> int:
    room = array.array("i", [-1])
    _, ancillary, _, _ = ours.recvmsg(
        1, socket.CMSG_SPACE(room.itemsize), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            room.frombytes(data[: room.itemsize])
            return room[-1]
    raise error(Status.INTERNAL, "fusermount3 mounted, and sent no descriptor")


def raise_readahead(path: str, size: int) -> bool:
    """Let the kernel read `size` bytes ahead in a file of this mount; without it, it is 128 KiB. False where only root may."""
    mount = find(path)
    if mount is None:
        return False
    try:
        Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(f"{size >> 10}\n")
    except OSError:
        return False
    return True


# --- unmounting ---------------------------------------------------------------------------------------------------------------


def unmount(path: str, *, lazy: bool = False, force: bool = False) -> None:
    """Take the mount at this place (`place_of`) away. Without `lazy` nobody may use it; with it, it leaves the directory tree now, and
    goes when its last user does. `force`: what waits for the daemon fails first (root only).

    Raises BUSY_RESOURCE naming who uses it, NOT_FOUND where emberfs is not mounted, NOT_PERMITTED.
    """
    mount = find(path)
    if mount is None or not mount.ours:
        raise error(Status.NOT_FOUND, f"no emberfs is mounted on {path}")
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
        failed = ctypes.get_errno() if _libc.umount2(os.fsencode(path), flags) else 0
    else:
        failed = _unmount_as_user(path, lazy)
    if failed == errno.EBUSY:
        raise error(Status.BUSY_RESOURCE, f"{path} is in use{_users_text(path)}: end them, or unmount it with --lazy")
    if failed:
        raise error(Status.NOT_PERMITTED, f"cannot unmount {path}: {os.strerror(failed)}")


def _unmount_as_user(path: str, lazy: bool) -> int:
    program = fusermount()
    if program is None:
        return errno.EPERM
    command = [program, "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(
        command, check=False, capture_output=True, env={**os.environ, "LC_ALL": "C"}, timeout=FUSERMOUNT_SECONDS_MAX
    )
    if not done.returncode:
        return 0
    return errno.EBUSY if b"busy" in done.stderr else errno.EPERM


def _users_text(path: str) -> str:
    users = sorted(set(users_of(path)))
    shown = ", ".join(f"{name} {pid}" for pid, name in users[:USERS_SHOWN_MAX])
    more = f" and {len(users) - USERS_SHOWN_MAX} more" if len(users) > USERS_SHOWN_MAX else ""
    return f" by {shown}{more}" if users else ""


def users_of(path: str) -> Iterator[tuple[int, str]]:
    """Processes that work in or below this place, as (process id, name). Links of /proc are read, the mount is not touched."""
    below = path.rstrip("/") + "/"
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            links = [f"{entry.path}/cwd", f"{entry.path}/root", f"{entry.path}/exe"]
            links += [found.path for found in os.scandir(f"{entry.path}/fd")]
            if any((target := _target(link)) == path or target.startswith(below) for link in links):
                yield int(entry.name), Path(entry.path, "comm").read_text().strip()


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
