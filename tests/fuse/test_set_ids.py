"""Who changes a file takes its set-id bits away, or may not: every way by every kind of user, beside the local file system.

Where both differ, and why:
- `chown(file, -1, -1)` by a stranger, while somebody has the file open for writing on this mount, says that it worked. It has not: the
  kernel asks the same thing before a stranger's write(2), and the WRITE that follows takes the bits.
- Opening for writing takes them already, where it is not an owner who could have them anew, and so does a write through a mapping: until
  the bytes have arrived, the program would run with the rights of its owner and with what somebody else wrote.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

OWNER, GROUP, MEMBERS = 2001, 2001, 3100  # the file's user and his group; the file's group
ACTORS = {
    "root": (0, 0, []),
    "owner": (OWNER, GROUP, [GROUP, 3102]),
    "owner in the group": (
        OWNER,
        MEMBERS,
        [MEMBERS],
    ),  # a gid of his own: groups are believed for a second by process, user and gid
    "member": (2002, 2002, [MEMBERS]),
    "stranger": (2003, 2003, []),
}
MODES = (0o4755, 0o2767, 0o6777)
CHANGES = (
    *("nobody", "nobody by descriptor", "same owner", "same group", "another group", "to root"),
    *("open", "write", "append", "mapped", "truncate", "ftruncate", "O_TRUNC", "allocate", "punch", "copy"),
)
# What strips here and not on a disk: only in that direction.
EARLIER = ("open", "mapped")

PROGRAM = r"""
import ctypes, json, mmap, os, sys

def with_fd(work, flags=os.O_RDWR):
    def change(path):
        fd = os.open(path, flags)
        try:
            work(fd)
        finally:
            os.close(fd)
    return change

def mapped(fd):
    with mmap.mmap(fd, 10) as memory:
        memory[0] = 65

def allocate(mode):
    def work(fd):
        if libc.fallocate(fd, mode, ctypes.c_long(50), ctypes.c_long(100)):
            raise OSError(ctypes.get_errno(), "fallocate")
    return with_fd(work)

libc = ctypes.CDLL(None, use_errno=True)
changes = {
    "nobody": lambda path: os.chown(path, -1, -1),
    "nobody by descriptor": with_fd(lambda fd: os.fchown(fd, -1, -1), os.O_RDONLY),
    "same owner": lambda path: os.chown(path, os.stat(path).st_uid, -1),
    "same group": lambda path: os.chown(path, -1, os.stat(path).st_gid),
    "another group": lambda path: os.chown(path, -1, 3102),
    "to root": lambda path: os.chown(path, 0, -1),
    "open": with_fd(lambda fd: None),
    "write": with_fd(lambda fd: os.write(fd, b"x"), os.O_WRONLY),
    "append": with_fd(lambda fd: os.write(fd, b"x"), os.O_WRONLY | os.O_APPEND),
    "mapped": with_fd(mapped),
    "truncate": lambda path: os.truncate(path, 5),
    "ftruncate": with_fd(lambda fd: os.ftruncate(fd, 5)),
    "O_TRUNC": with_fd(lambda fd: None, os.O_WRONLY | os.O_TRUNC),
    "allocate": allocate(0),
    "punch": allocate(3),
    "copy": with_fd(lambda fd: os.copy_file_range(fd, fd, 3, 0, 5)),
}
outcomes = []
for path, change, (uid, gid, groups) in json.load(sys.stdin):
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        changes[change](path)
        failed = 0
    except OSError as failure:
        failed = failure.errno
    os.seteuid(0)
    os.setegid(0)
    found = os.stat(path)
    outcomes.append((failed, found.st_mode & 0o7777, found.st_uid, found.st_gid))
json.dump(outcomes, sys.stdout)
"""

Outcome = tuple[int, int, int, int]  # errno, mode, user, group


def outcomes(folder: Path, cases: list[tuple[int, str, str, bool]]) -> list[Outcome]:
    """Of each case, in a file of its own; the last field: somebody has it open for writing."""
    jobs: list[Any] = []
    held = []
    for number, (mode, change, actor, is_open) in enumerate(cases):
        path = folder / str(number)
        path.write_bytes(bytes(100))
        os.chown(path, OWNER, MEMBERS)
        path.chmod(mode)
        if is_open:
            held.append(os.open(path, os.O_RDWR))
        jobs.append((str(path), change, ACTORS[actor]))
    command = [sys.executable, "-P", "-c", PROGRAM]
    done = subprocess.run(command, input=json.dumps(jobs), stdout=subprocess.PIPE, text=True, check=True)
    for fd in held:
        os.close(fd)
    return [tuple(found) for found in json.loads(done.stdout)]


def test_set_id_bits_end_as_on_a_disk_or_sooner(place: Path, local: Path) -> None:
    beside = local / "set-ids"
    beside.mkdir(mode=0o777)
    cases = list(itertools.product(MODES, CHANGES, ACTORS, (False,)))
    cases += itertools.product(MODES, ("nobody", "nobody by descriptor", "write", "truncate"), ACTORS, (True,))
    for case, here, there in zip(cases, outcomes(place, cases), outcomes(beside, cases), strict=True):
        mode, change, _, is_open = case
        if change.startswith("nobody") and is_open and there[0]:
            assert here == (0, mode, *there[2:]), case
        elif change in EARLIER:
            assert (here[0], here[1] | there[1], *here[2:]) == there, case
        else:
            assert here == there, case
