"""What the kernel sent is read as what the program did: a recording of one kernel, and, where we may mount, the running one.

`record.py` makes the recording, `script.py` the system calls, `tiny.py` the answers. What the program saw (the second half) proves
the replies: the kernel refuses one of a wrong length, and the program sees each field.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

import pytest

from emberfs.fuse.protocol import (
    FSYNC_DATASYNC,
    LK_FLOCK,
    POLL_SCHEDULE_NOTIFY,
    READ_LOCK_OWNER,
    RELEASE_FLOCK_UNLOCK,
    ROOT_NODE,
    FallocateMode,
    Header,
    Init,
    Opcode,
    RenameFlag,
    SetAttr,
)
from emberfs.fuse.requests import Setattr
from emberfs.fuse.structs import encode_device

from . import record, script, tiny
from .decoding import decode
from .tiny import FH, node_of


class Anything:
    """Equal to everything: what differs between kernels and processes (lock owners, readahead)."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "…"


ANY = Anything()
DIRECTORY, FILE, READY = node_of(b"directory"), node_of(b"file"), node_of(tiny.READY)
RW = os.O_RDWR | 0x8000  # the kernel adds O_LARGEFILE
RO = 0x8000
OFFSET_MAX = (1 << 63) - 1


def setattr_of(valid: int, **said: Any) -> tuple[Any, ...]:
    """SETATTR's fields; those that nobody set are not compared."""
    return valid, *(said.get(name, ANY) for name in Setattr._fields[1:])


EXPECTED: list[tuple[str, Opcode, int, tuple[Any, ...]]] = [
    ("missing", Opcode.LOOKUP, ROOT_NODE, (b"missing",)),
    ("missing", Opcode.ACCESS, ROOT_NODE, (os.X_OK,)),
    ("mkdir", Opcode.LOOKUP, ROOT_NODE, (b"directory",)),
    ("mkdir", Opcode.MKDIR, ROOT_NODE, (0o750, 0o027, b"directory")),
    ("stat", Opcode.LOOKUP, ROOT_NODE, (b"ready",)),
    ("stat", Opcode.GETATTR, READY, (0, 0)),
    ("create", Opcode.CREATE, DIRECTORY, (RW | os.O_CREAT | os.O_EXCL, stat.S_IFREG | 0o640, 0o027, 0, b"file")),
    ("write", Opcode.GETXATTR, FILE, (ANY, b"security.capability")),
    ("write", Opcode.WRITE, FILE, (FILE + FH, 100, 10, 0, 0, RW, b"0123456789")),
    ("fstat", Opcode.GETATTR, FILE, (0, 0)),  # no handle: this kernel asks by inode only
    ("open_read", Opcode.OPEN, READY, (RW, 0)),
    ("open_read", Opcode.READ, READY, (READY + FH, 0, ANY, 0, 0, RW)),
    ("read_direct", Opcode.OPEN, READY, (RO | os.O_DIRECT, 0)),
    ("read_direct", Opcode.READ, READY, (READY + FH, 4096, 512, READ_LOCK_OWNER, ANY, RO | os.O_DIRECT)),
    ("chmod", Opcode.SETATTR, FILE, setattr_of(SetAttr.MODE, mode=stat.S_IFREG | 0o604)),
    ("chown", Opcode.SETATTR, FILE, setattr_of(SetAttr.UID | SetAttr.GID | SetAttr.KILL_SUIDGID, uid=12, gid=34)),
    ("truncate", Opcode.SETATTR, FILE, setattr_of(ANY, size=77)),
    ("ftruncate", Opcode.SETATTR, FILE, setattr_of(ANY, size=66, fh=FILE + FH)),
    (
        "utime",
        Opcode.SETATTR,
        FILE,
        setattr_of(
            SetAttr.ATIME | SetAttr.MTIME,
            atime=-6,
            atime_ns=999_999_999,
            mtime=1_234_567_890,
            mtime_ns=123_456_789,
        ),
    ),
    (
        "utime_now",
        Opcode.SETATTR,
        FILE,
        setattr_of(SetAttr.ATIME | SetAttr.MTIME | SetAttr.ATIME_NOW | SetAttr.MTIME_NOW),
    ),
    ("symlink", Opcode.SYMLINK, DIRECTORY, (b"link", b"../where/to")),
    ("readlink", Opcode.READLINK, node_of(b"link"), ()),
    ("link", Opcode.LINK, DIRECTORY, (READY, b"second")),
    ("mknod", Opcode.MKNOD, DIRECTORY, (stat.S_IFIFO | 0o640, 0, 0o027, b"pipe")),
    ("mknod", Opcode.MKNOD, DIRECTORY, (stat.S_IFCHR | 0o640, encode_device(300, 70000), 0o027, b"device")),
    ("rename", Opcode.RENAME, DIRECTORY, (ROOT_NODE, 0, b"second", b"third")),
    ("rename_noreplace", Opcode.RENAME2, ROOT_NODE, (DIRECTORY, RenameFlag.NOREPLACE, b"third", b"fourth")),
    ("setxattr", Opcode.SETXATTR, FILE, (os.XATTR_CREATE, 0, b"user.colour", b"r\0d")),
    ("getxattr", Opcode.GETXATTR, FILE, (ANY, b"user.colour")),
    ("listxattr", Opcode.LISTXATTR, FILE, (ANY,)),
    ("removexattr", Opcode.REMOVEXATTR, FILE, (b"user.colour",)),
    ("fsync", Opcode.FSYNC, FILE, (FILE + FH, 0)),
    ("fdatasync", Opcode.FSYNC, FILE, (FILE + FH, FSYNC_DATASYNC)),
    ("fsyncdir", Opcode.OPENDIR, DIRECTORY, (RO, 0)),
    ("fsyncdir", Opcode.FSYNCDIR, DIRECTORY, (DIRECTORY + FH, 0)),
    ("fsyncdir", Opcode.RELEASEDIR, DIRECTORY, (DIRECTORY + FH, RO, 0, 0)),
    ("listdir", Opcode.READDIRPLUS, DIRECTORY, (DIRECTORY + FH, 0, ANY, 0, 0, ANY)),
    ("listdir", Opcode.READDIR, DIRECTORY, (DIRECTORY + FH, 5, ANY, 0, 0, ANY)),
    ("statvfs", Opcode.STATFS, ROOT_NODE, ()),
    ("access", Opcode.ACCESS, FILE, (os.R_OK | os.W_OK,)),
    ("setlk", Opcode.SETLK, FILE, (FILE + FH, ANY, 20, 29, fcntl.F_WRLCK, ANY, 0)),
    ("setlkw", Opcode.SETLKW, FILE, (FILE + FH, ANY, 5, OFFSET_MAX, fcntl.F_RDLCK, ANY, 0)),
    ("getlk", Opcode.GETLK, FILE, (FILE + FH, ANY, 7, 9, fcntl.F_WRLCK, ANY, 0)),
    ("unlock", Opcode.SETLKW, FILE, (FILE + FH, ANY, 0, OFFSET_MAX, fcntl.F_UNLCK, 0, 0)),
    ("flock", Opcode.SETLKW, READY, (READY + FH, ANY, 0, OFFSET_MAX, fcntl.F_WRLCK, ANY, LK_FLOCK)),
    ("fallocate", Opcode.FALLOCATE, FILE, (FILE + FH, 1000, 24, 0)),
    ("punch", Opcode.FALLOCATE, FILE, (FILE + FH, 8, 16, FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE)),
    ("lseek", Opcode.LSEEK, READY, (READY + FH, 5, os.SEEK_DATA)),
    ("lseek", Opcode.LSEEK, READY, (READY + FH, 6, os.SEEK_HOLE)),
    ("copy_file_range", Opcode.COPY_FILE_RANGE_64, READY, (READY + FH, 11, FILE, FILE + FH, 22, 100, 0)),
    ("getflags", Opcode.IOCTL, FILE, (FILE + FH, 0, script.FS_IOC_GETFLAGS, ANY, 4, b"")),
    ("ioctl", Opcode.IOCTL, FILE, (FILE + FH, 0, script.IOCTL_BOTH_WAYS, ANY, 16, b"sixteen bytes ok")),
    ("poll", Opcode.POLL, FILE, (FILE + FH, ANY, POLL_SCHEDULE_NOTIFY, ANY)),
    ("tmpfile", Opcode.TMPFILE, DIRECTORY, (ANY, stat.S_IFREG | 0o600, 0o027, 0, ANY)),
    ("statx", Opcode.STATX, FILE, (0, 0, 0, script.STATX_BASIC_AND_BIRTH)),
    ("interrupt", Opcode.GETXATTR, READY, (ANY, b"user.slow")),
    ("supplementary_group", Opcode.MKDIR, DIRECTORY, (0o750, 0o027, b"grouped")),
    ("retrieve", Opcode.NOTIFY_REPLY, READY, (0, 64, tiny.READY_BYTES[:64])),
    ("unlink", Opcode.UNLINK, DIRECTORY, (b"fourth",)),
    ("rmdir", Opcode.RMDIR, DIRECTORY, (b"grouped",)),
    ("close", Opcode.FLUSH, FILE, (FILE + FH, ANY)),
    ("close", Opcode.RELEASE, FILE, (FILE + FH, RW, 0, ANY)),
    ("close", Opcode.RELEASE, READY, (READY + FH, RW, RELEASE_FLOCK_UNLOCK, ANY)),
]
OLD_FORMS = [
    ("mkdir", Opcode.MKDIR, ROOT_NODE, (0o770, 0o027, b"directory")),
    ("create", Opcode.CREATE, DIRECTORY, (RW | os.O_CREAT | os.O_EXCL, stat.S_IFREG | 0o666, 0o027, 0, b"file")),
    ("symlink", Opcode.SYMLINK, DIRECTORY, (b"link", b"../where/to")),
    ("mknod", Opcode.MKNOD, DIRECTORY, (stat.S_IFCHR | 0o666, encode_device(300, 70000), 0o027, b"device")),
    ("setxattr", Opcode.SETXATTR, FILE, (os.XATTR_CREATE, 0, b"user.colour", b"r\0d")),
]

Session = dict[str, Any]


def version(release: str) -> tuple[int, ...]:
    """ "6.18.44-generic" to (6, 18)."""
    return tuple(int(part) for part in release.split(".")[:2])


@pytest.fixture(scope="module", params=["recorded", "running"])
def sessions(request: pytest.FixtureRequest) -> dict[str, Session]:
    """The recording in this folder, and one of the running kernel."""
    recording = json.loads(record.RECORDING.read_text())
    if request.param == "recorded":
        recorded: dict[str, Session] = recording["sessions"]
        return recorded
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    if version(os.uname().release) < version(recording["kernel"]):
        pytest.skip("this kernel is older than the recorded one: it lacks some operations")
    return {name: record.record(wanted, steps) for name, (wanted, steps) in record.SESSIONS.items()}


def decoded(session: Session, agreed: int) -> Iterator[tuple[str, Header, tuple[Any, ...], Any]]:
    for step in session["steps"]:
        for text in step["requests"]:
            yield step["step"], *decode(bytes.fromhex(text), agreed)


def complaints(session: Session, expected: list[Any], agreed: int) -> list[str]:
    got = [(step, Opcode(header.opcode), header.node, fields) for step, header, fields, _ in decoded(session, agreed)]
    missing = [one for one in expected if one not in got]
    return [f"{one}\n  not in {[row for row in got if row[:2] == one[:2]]}" for one in missing]


def saw(sessions: dict[str, Session], step: str) -> Any:
    (found,) = [one["saw"] for one in sessions["modern"]["steps"] if one["step"] == step]
    return found


def test_requests_say_what_the_program_did(sessions: dict[str, Session]) -> None:
    found = complaints(sessions["modern"], EXPECTED, Init.SETXATTR_EXT)
    assert not found, "\n".join(found)


def test_older_forms_say_the_same(sessions: dict[str, Session]) -> None:
    """Without SETXATTR_EXT its head is shorter; with DONT_MASK modes are whole; with SECURITY_CTX a list of labels follows."""
    found = complaints(sessions["old forms"], OLD_FORMS, 0)
    assert not found, "\n".join(found)
    creations = [
        header.extension_words
        for _, header, _, _ in decoded(sessions["old forms"], 0)
        if header.opcode in {Opcode.MKDIR, Opcode.CREATE, Opcode.SYMLINK, Opcode.MKNOD}
    ]
    assert creations and all(creations)


def test_init_offers_what_we_want(sessions: dict[str, Session]) -> None:
    (major, minor, max_readahead, flags) = next(
        fields
        for _, header, fields, _ in decoded(sessions["modern"], Init.SETXATTR_EXT)
        if header.opcode == Opcode.INIT
    )
    assert major == 7
    assert minor >= 31
    assert max_readahead
    assert Init(flags) & (Init.PARALLEL_DIROPS | Init.INIT_EXT) == Init.PARALLEL_DIROPS | Init.INIT_EXT


def test_a_creation_brings_the_group_of_the_directory(sessions: dict[str, Session]) -> None:
    (found,) = [
        (header.uid, header.gid, extensions.groups)
        for step, header, _, extensions in decoded(sessions["modern"], Init.SETXATTR_EXT)
        if step == "supplementary_group" and header.opcode == Opcode.MKDIR
    ]
    assert found == (script.OTHER_USER, script.OTHER_GROUP, (script.DIRECTORY_GROUP,))


def test_an_interrupt_names_the_request(sessions: dict[str, Session]) -> None:
    rows = [row for row in decoded(sessions["modern"], Init.SETXATTR_EXT) if row[0] == "interrupt"]
    (asked,) = [header.unique for _, header, fields, _ in rows if tiny.SLOW in fields]
    (interrupted,) = [fields for _, header, fields, _ in rows if header.opcode == Opcode.INTERRUPT]
    assert interrupted == (asked,)
    assert saw(sessions, "interrupt") == "Interrupted system call"


def test_forgotten_inodes_are_those_that_lost_their_names(sessions: dict[str, Session]) -> None:
    forgotten = []
    for step, header, fields, _ in decoded(sessions["modern"], Init.SETXATTR_EXT):
        if step == "forget" and header.opcode == Opcode.FORGET:
            forgotten.append((header.node, *fields))
        elif step == "forget" and header.opcode == Opcode.BATCH_FORGET:
            forgotten += fields
    assert {(node_of(name), 1) for name in (b"one", b"two", b"three")} <= set(forgotten)


def test_a_retrieved_page_comes_back_under_its_number(sessions: dict[str, Session]) -> None:
    (unique,) = [
        header.unique
        for _, header, _, _ in decoded(sessions["modern"], Init.SETXATTR_EXT)
        if header.opcode == Opcode.NOTIFY_REPLY
    ]
    assert unique == tiny.RETRIEVE_UNIQUE


def test_callers_are_named(sessions: dict[str, Session]) -> None:
    pid = sessions["modern"]["pid"]
    without_caller = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INIT, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
    for step, header, _, _ in decoded(sessions["modern"], Init.SETXATTR_EXT):
        if header.opcode in without_caller | {Opcode.RELEASE, Opcode.RELEASEDIR}:
            continue  # nobody waits for these
        assert header.pid == pid, step


def test_operations_of_the_recording(sessions: dict[str, Session]) -> None:
    """What a mount cannot be asked for: DAX windows, block devices, and what has a newer form that this kernel prefers."""
    seen = {header.opcode for _, header, _, _ in decoded(sessions["modern"], Init.SETXATTR_EXT)}
    never = {Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING, Opcode.BMAP, Opcode.DESTROY, Opcode.SYNCFS}
    assert set(Opcode) - seen - never <= {Opcode.COPY_FILE_RANGE, Opcode.BATCH_FORGET, Opcode.FORGET}


def test_replies_reach_the_program(sessions: dict[str, Session]) -> None:
    ready = {"st_ino": READY, "st_mode": stat.S_IFREG | 0o666, "st_size": len(tiny.READY_BYTES), "st_blksize": 4096}
    ready |= {f"st_{which}time_ns": tiny.TIME * 10**9 + tiny.TIME_NS for which in "amc"}
    assert ready.items() <= saw(sessions, "stat").items()
    assert saw(sessions, "utime")["st_mtime_ns"] == 1_234_567_890_123_456_789
    assert saw(sessions, "utime")["st_atime_ns"] == -5_000_000_001
    assert saw(sessions, "mknod")["st_rdev"] == os.makedev(300, 70000)
    assert saw(sessions, "write") == 10
    assert saw(sessions, "fstat")["st_size"] == 110
    assert bytes.fromhex(saw(sessions, "open_read")) == tiny.READY_BYTES[5:21]
    assert bytes.fromhex(saw(sessions, "read_direct")) == tiny.READY_BYTES[4096:4608]
    assert saw(sessions, "readlink") == "../where/to"
    assert saw(sessions, "getxattr") == b"r\0d".hex()
    assert saw(sessions, "listxattr") == ["user.colour"]
    assert saw(sessions, "listdir") == ["device", "file", "fourth", "link", "pipe"] == saw(sessions, "listdir_again")
    assert saw(sessions, "statvfs") == [4096, 512, 1000, 900, 800, 70, 60, 60, 4096, 255]
    assert saw(sessions, "getlk") == fcntl.F_UNLCK
    assert saw(sessions, "lseek") == [5, len(tiny.READY_BYTES)]
    assert saw(sessions, "copy_file_range") == 100
    assert saw(sessions, "ioctl") == b"sixteen bytes ok"[::-1].hex()
    assert saw(sessions, "poll") == [1]
    assert saw(sessions, "statx") == [77, 7]
