"""What a mount may be asked for: `-o ro,noatime,uid=1000`, as on a command line or in the fourth field of fstab. No I/O.

    "noatime,attr_timeout=0.5,x-systemd.automount"  ->  MountOptions(noatime=True, attr_timeout=0.5)
    "default_permisions"                            ->  INVALID: unknown mount option …; did you mean …?

Every option is one row of a table: a word that switches something, or a name with a value and its limits. Words that only mount(8),
systemd or the boot read (`noauto`, `nofail`, `_netdev`, `x-…`) are known and change nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..proto.errors import Status, error

# Flags of mount(2), from `linux/mount.h`.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_DIRSYNC = 1, 2, 4, 8, 16, 128
MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME, MS_RELATIME, MS_STRICTATIME = 256, 1024, 2048, 1 << 21, 1 << 24

TIMEOUT_SECONDS_MAX = 3600.0  # of the kernel's caches
ID_MAX = (1 << 32) - 2
READAHEAD_BYTES_DEFAULT = 4 << 20
READAHEAD_BYTES_MAX = 64 << 20
MEMORY_BYTES_MIN = 64 << 20
OPERATION_SECONDS_MAX = 3600.0
LENGTH_MAX = 4096  # of all options together: the kernel takes one page


@dataclass(frozen=True)
class MountOptions:
    """One mount. Times are seconds, sizes bytes."""

    read_only: bool = False
    noatime: bool = False  # reading moves no access time
    allow_other: bool | None = None  # users other than who mounted may use it; None: yes where root mounts
    allow_root: bool = False  # root may use it besides who mounted
    uid: int | None = None  # shown as the owner of everything; None: the owners that the files have
    gid: int | None = None
    attr_timeout: float = 1.0  # for which the kernel may believe attributes
    entry_timeout: float = 1.0  # ... and names
    negative_timeout: float = 0.0  # ... and that there is no such name
    strict: bool = False  # the kernel believes nothing: every lookup and stat asks
    readahead: int = READAHEAD_BYTES_DEFAULT
    timeout: float = 30.0  # after which an operation without an answer fails
    memory: int = 256 << 20  # buffers of the client
    secret_file: str = ""  # for a cluster over TCP
    fsname: str = ""  # what mount(8) and df show as the source; empty: the cluster's URL
    control: bool = True  # the directory `.ember` at the root, and `3fs-virt`
    owner: int = 0  # user id of who mounts; not an option, filled in by `for_user`
    flags: int = MS_NOSUID | MS_NODEV  # of mount(2), without MS_RDONLY and MS_NOATIME

    def __post_init__(self) -> None:
        if self.allow_root and self.allow_other:
            raise error(Status.INVALID, "allow_root and allow_other exclude each other: the second allows everybody")

    @property
    def mount_flags(self) -> int:
        """All flags for mount(2)."""
        return self.flags | (MS_RDONLY if self.read_only else 0) | (MS_NOATIME if self.noatime else 0)

    @property
    def kernel_lets_others_in(self) -> bool:
        """Whether the kernel is told allow_other. With allow_root the daemon keeps everybody but root out again."""
        return bool(self.allow_other) or self.allow_root

    def for_user(self, uid: int) -> MountOptions:
        """What was left open, decided for who mounts: root mounts for everybody unless told otherwise."""
        allow_other = self.allow_other
        if allow_other is None:
            allow_other = uid == 0 and not self.allow_root
        return replace(self, allow_other=allow_other, owner=uid)


Change = Callable[[dict[str, Any], str], None]  # takes the fields so far and the value, "" for a word


def _set(**fields: Any) -> Change:
    def change(given: dict[str, Any], value: str) -> None:
        given.update(fields)

    return change


def _flag(on: int, off: int = 0) -> Change:
    def change(given: dict[str, Any], value: str) -> None:
        given["flags"] = (given.get("flags", MountOptions.flags) | on) & ~off

    return change


def _atime(on: int) -> Change:
    """The last word about access times counts."""
    others = MS_NOATIME | MS_RELATIME | MS_STRICTATIME

    def change(given: dict[str, Any], value: str) -> None:
        given["noatime"] = False
        _flag(on, others & ~on)(given, value)

    return change


def _strict(given: dict[str, Any], value: str) -> None:
    given.update(strict=True, attr_timeout=0.0, entry_timeout=0.0, negative_timeout=0.0)


def _nothing(given: dict[str, Any], value: str) -> None:
    """Of mount(8), fstab, systemd; or what holds anyway."""


def _whole(name: str, least: int, most: int, field: str = "") -> Change:
    def change(given: dict[str, Any], value: str) -> None:
        if not re.fullmatch("[0-9]{1,19}", value) or not least <= int(value) <= most:
            raise error(Status.INVALID, f"{name}={value}: must be a whole number from {least} to {most}")
        given[field or name] = int(value)

    return change


def _seconds(name: str, most: float, least: float = 0.0) -> Change:
    def change(given: dict[str, Any], value: str) -> None:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or not least <= float(value) <= most:
            raise error(Status.INVALID, f"{name}={value}: must be seconds from {least:g} to {most:g}")
        given[name] = float(value)

    return change


def _bytes(name: str, least: int, most: int) -> Change:
    def change(given: dict[str, Any], value: str) -> None:
        found = re.fullmatch(r"([0-9]{1,15})([kKmMgG]?)", value)
        size = int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2].lower()] if found else -1
        if not least <= size <= most:
            raise error(Status.INVALID, f"{name}={value}: must be a size from {least} to {most} bytes, as 4M")
        given[name] = size

    return change


def _workers(given: dict[str, Any], value: str) -> None:
    if value != "1":
        raise error(
            Status.INVALID,
            f"max_workers={value}: one process serves a mount. Leave the option out; several mounts use more cores",
        )


def _text(name: str) -> Change:
    def change(given: dict[str, Any], value: str) -> None:
        given[name] = value

    return change


def _refuse(why: str) -> Change:
    def change(given: dict[str, Any], value: str) -> None:
        raise error(Status.INVALID, why)

    return change


_SECRET = _refuse("a secret does not belong into options, where every user can see it: name a file with secret_file=")

WORDS: dict[str, Change] = {
    "ro": _set(read_only=True),
    "rw": _set(read_only=False),
    "noatime": _set(noatime=True),
    "atime": _atime(0),
    "relatime": _atime(MS_RELATIME),
    "strictatime": _atime(MS_STRICTATIME),
    "norelatime": _flag(0, MS_RELATIME),
    "nodiratime": _flag(MS_NODIRATIME),
    "diratime": _flag(0, MS_NODIRATIME),
    "suid": _flag(0, MS_NOSUID),
    "nosuid": _flag(MS_NOSUID),
    "dev": _flag(0, MS_NODEV),
    "nodev": _flag(MS_NODEV),
    "exec": _flag(0, MS_NOEXEC),
    "noexec": _flag(MS_NOEXEC),
    "sync": _flag(MS_SYNCHRONOUS),
    "async": _flag(0, MS_SYNCHRONOUS),
    "dirsync": _flag(MS_DIRSYNC),
    "symfollow": _flag(0, MS_NOSYMFOLLOW),
    "nosymfollow": _flag(MS_NOSYMFOLLOW),
    "allow_other": _set(allow_other=True),
    "noallow_other": _set(allow_other=False),
    "allow_root": _set(allow_root=True),
    "strict": _strict,
    "nocontrol": _set(control=False),
    "default_permissions": _nothing,
    "remount": _refuse("a mount cannot be changed while it is in use: unmount it, and mount it with the new options"),
    "secret": _SECRET,
    **dict.fromkeys(
        ("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev"), _nothing
    ),
}

VALUES: dict[str, Change] = {
    "uid": _whole("uid", 0, ID_MAX),
    "gid": _whole("gid", 0, ID_MAX),
    "attr_timeout": _seconds("attr_timeout", TIMEOUT_SECONDS_MAX),
    "entry_timeout": _seconds("entry_timeout", TIMEOUT_SECONDS_MAX),
    "negative_timeout": _seconds("negative_timeout", TIMEOUT_SECONDS_MAX),
    "max_workers": _workers,
    "readahead": _bytes("readahead", 0, READAHEAD_BYTES_MAX),
    "timeout": _seconds("timeout", OPERATION_SECONDS_MAX, 1.0),
    "memory": _bytes("memory", MEMORY_BYTES_MIN, 1 << 40),
    "secret_file": _text("secret_file"),
    "fsname": _text("fsname"),
    "subtype": _nothing,  # it is always "emberfs"
    "comment": _nothing,
    "secret": _SECRET,
    "password": _SECRET,
}
_IGNORED_PREFIXES = ("x-", "X-")


def parse(texts: Iterable[str]) -> MountOptions:
    """The options in these lists, as several `-o` give them; later words win. "\\," is a comma within a value.

    Raises INVALID for an unknown option (with the one that was probably meant), a value out of its limits, one that is missing or
    too much.
    """
    given: dict[str, Any] = {}
    for text in texts:
        if len(text) > LENGTH_MAX:
            raise error(Status.INVALID, f"mount options of {len(text)} characters: at most {LENGTH_MAX}")
        for item in re.split(r"(?<!\\),", text):
            if item := item.replace("\\,", ",").strip():
                _apply(given, item)
    return MountOptions(**given)


def _apply(given: dict[str, Any], item: str) -> None:
    name, equals, value = item.partition("=")
    if name.startswith(_IGNORED_PREFIXES):
        return
    change = (VALUES if equals else WORDS).get(name)
    if change is None:
        raise error(Status.INVALID, _complaint(name, bool(equals)))
    if equals and not value:
        raise error(Status.INVALID, f"mount option {name}=: a value is missing")
    change(given, value)


def _complaint(name: str, has_value: bool) -> str:
    if has_value and name in WORDS:
        return f"mount option {name} takes no value"
    if not has_value and name in VALUES:
        return f"mount option {name} needs a value: {name}=…"
    near = difflib.get_close_matches(name, [*WORDS, *VALUES], 1)
    return f"unknown mount option {name!r}" + (f"; did you mean {near[0]}?" if near else ": see 'emberfs mount --help'")
