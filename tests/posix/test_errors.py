"""Every errno of every call, from errors.txt; and a call that fails changes nothing, no time either."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import calls
from .calls import CALLS
from .conftest import Side
from .people import USERS, People

TABLE = Path(__file__).with_name("errors.txt")
WHO = {"all": tuple(USERS), "users": ("alice", "bob"), **{name: (name,) for name in USERS}}
CASES_MIN = 1900  # for one side
DEVIATIONS = {
    # The kernel has sent OPEN with O_TRUNC before it finds that the file is being executed: it says ETXTBSY, and the file is empty.
    ("creat", ("busy", os.O_RDONLY | os.O_TRUNC)),
}
CHAIN = 41  # symlinks one after another: Linux follows 40
# Path, mode, what: "" a file of five bytes, "/" a directory, "@" a symlink; everything is Alice's.
TREE = [
    ("f", 0o644, ""),
    ("private", 0o600, ""),
    ("readonly", 0o444, ""),
    ("writeonly", 0o200, ""),
    ("suid", 0o4755, ""),
    ("sgid", 0o2755, ""),
    ("d", 0o755, "/"),
    ("d/f", 0o644, ""),
    ("d/e", 0o755, "/"),
    ("full", 0o777, "/"),
    ("full/f", 0o666, ""),
    ("closed", 0o700, "/"),
    ("closed/f", 0o666, ""),
    ("unlisted", 0o711, "/"),
    ("writable", 0o333, "/"),
    ("noexec/f", 0o644, ""),
    ("noexec", 0o666, "/"),
    ("frozen/f", 0o666, ""),
    ("frozen/e", 0o777, "/"),
    ("frozen", 0o555, "/"),
    ("sticky", 0o1777, "/"),
    ("sticky/alice", 0o666, ""),
    ("sticky/bob", 0o666, ""),
    ("sticky/e", 0o777, "/"),
    ("s", 0, "@f"),
    ("sd", 0, "@d"),
    ("sclosed", 0, "@closed"),
    ("dangling", 0, "@nothing"),
    ("loop", 0, "@pool"),
    ("pool", 0, "@loop"),
]


class Case(NamedTuple):
    """One row for one person."""

    who: str
    call: str
    args: tuple[Any, ...]
    expected: str

    def __str__(self) -> str:
        shown = (text if len(text := str(value)) < 30 else f"{len(text)}bytes" for value in self.args)
        return f"{self.who}-{self.call}({','.join(shown)})"


def _value(word: str) -> Any:
    """A number, flags of some calls, or text."""
    if re.fullmatch(r"-?\d\w*", word):
        return int(word, 0)
    if re.fullmatch(r"[A-Z_]+(\|[A-Z_]+)*", word):
        modules = (os, calls, fcntl)
        return sum({next(getattr(m, name) for m in modules if hasattr(m, name)) for name in word.split("|")})
    word = re.sub(r"<<(\d+)>>", lambda found: "." + "f".rjust(int(found[1]) - 1, "/"), word)
    return re.sub(r"<(\d+)>", lambda found: "n" * int(found[1]), word)


def _cases() -> Iterator[Case]:
    sections: dict[str, list[list[str]]] = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line[1:-1], [])
        elif words := shlex.split(line, comments=True):
            section.append(words)
    for name, *args in sections["calls that go them"]:
        for way, expected, who in sections["ways"]:
            for person in WHO[who]:
                yield Case(person, name, tuple(_value(way if word == "PATH" else word) for word in args), expected)
    for who, name, *args, expected in sections["errors"]:
        for person in WHO[who]:
            yield Case(person, name, tuple(map(_value, args)), expected)


def _build(people: People, elsewhere: Path) -> None:
    """The tree, in the directory where everybody is."""
    alice, root = people.alice, people.root
    for path, mode, kind in TREE:
        if kind == "/":
            if not alice(calls.exists, path):
                alice(os.mkdir, path)
            alice(os.chmod, path, mode)
        elif kind:
            alice(os.symlink, kind[1:], path)
        else:
            if not alice(calls.exists, os.path.dirname(path) or "."):
                alice(os.mkdir, os.path.dirname(path))
            alice(calls.store, path, b"bytes")
            alice(os.chmod, path, mode)
    for number in range(1, CHAIN + 1):
        alice(os.symlink, f"s{number - 1}" if number > 1 else "f", f"s{number}")
    alice(calls.mkfifo, "p")
    alice(calls.mksocket, "k")
    for path in ("p", "k"):
        alice(os.chmod, path, 0o666)
    root(calls.mkchar, "c")
    alice(calls.store, "program", b"#!/bin/sh\n")
    alice(os.chmod, "program", 0o744)
    alice(calls.store, "busy", Path("/bin/sleep").read_bytes())
    alice(os.chmod, "busy", 0o755)
    alice(os.setxattr, "f", "user.there", b"value")
    root(os.chown, "sticky/bob", *USERS["bob"][:2])
    root(os.chown, "sticky", 0, 0)
    root(os.symlink, os.fspath(elsewhere), "elsewhere")


def _snapshot(base: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that a call could have changed: not the times of reading."""
    rows: dict[str, tuple[Any, ...]] = {}
    for folder, directories, files in os.walk(base):
        for path in (folder, *(os.path.join(folder, name) for name in (*directories, *files))):
            found = os.lstat(path)
            ids = (found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_ino)
            rows[path] = (*ids, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return rows


@pytest.fixture(scope="module")
def tree(side: Side, people: People) -> Iterator[tuple[Path, dict[str, tuple[Any, ...]]]]:
    base = (
        side.directory / f"errors-{time.monotonic_ns()}"
    )  # a worker that takes over tests of others makes this once more
    base.mkdir()
    base.chmod(0o777)
    people.chdir(os.fspath(base))
    _build(people, side.elsewhere)
    sleeper = people.alice(os.posix_spawn, "busy", ["busy", "infinity"], {})
    yield base, _snapshot(base)
    people.alice(os.kill, sleeper, signal.SIGKILL)
    people.alice(os.waitpid, sleeper, 0)


def _by_call() -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in _cases():
        groups.setdefault(f"on {case.args[2]}" if case.call == "on" else case.call, []).append(case)
    return groups


@pytest.mark.parametrize(
    "cases", [pytest.param(cases, id=f"{call}, {len(cases)} cases") for call, cases in _by_call().items()]
)
def test_errors(side: Side, tree: tuple[Path, dict[str, tuple[Any, ...]]], people: People, cases: list[Case]) -> None:
    base, before = tree
    people.chdir(os.fspath(base))
    told = [
        (str(case), answer, case.expected)
        for case in cases
        if case[1:3] not in DEVIATIONS or side.name == "local"
        if (answer := people[case.who].fails(CALLS[case.call], *case.args)) != case.expected
    ]
    assert not told, "who, call, answer, expected"
    after = _snapshot(base)
    changed = {os.path.relpath(path, base) for path, _ in set(after.items()) ^ set(before.items())}
    before.clear()
    before.update(after)  # one group that goes wrong is enough
    assert not changed, "a call that fails changes nothing"


def test_how_many() -> None:
    assert sum(map(len, _by_call().values())) >= CASES_MIN
