"""The namespace against the local file system: the same operations by the same users, and after each one the same outcome and the
same tree - names, types, modes, owners, links, lengths, extended attributes, ACLs, and which times moved."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from emberfs.meta.namespace import acl as acls
from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.meta.namespace.check import check
from emberfs.proto.env import drive
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import FileType

from .oracle import Local, Time
from .world import ALICE, BOB, CAROL, World, place, raise_status

USERS = [ROOT, ALICE, BOB, CAROL]
NAMES = ["a", "b", "c"]


class Ours:
    """The same operations on a namespace of two servers, which take turns: what one remembers of directories, the other changes. Raises
    StatusError, which is an OSError."""

    def __init__(self, mode: int) -> None:
        first = World()
        second = World(first.engine, first.clock, first.chunks)
        second.client = b"client-000000002"
        for world in (first, second):
            drive(world.start())
        self.world = first
        self._turns = itertools.cycle((first, second))
        drive(self.world.set("/", mode=mode))

    def call(self, user: Credentials, operation: str, *args: Any) -> Any:
        self.world = next(self._turns)
        return drive(getattr(self, operation)(user, *args))

    async def mkdir(self, user: Credentials, path: str, mode: int, umask: int) -> None:
        await self._create(user, path, FileType.FILE_TYPE_DIRECTORY, mode, umask)

    async def mknod(self, user: Credentials, path: str, kind: FileType, mode: int, umask: int) -> None:
        await self._create(user, path, kind, mode, umask)

    async def _create(self, user: Credentials, path: str, kind: FileType, mode: int, umask: int) -> None:
        entry = meta_pb2.NewEntry(place=place(path), type=kind, mode=mode, rdev=os.makedev(1, 3))
        reply = await self.world.ask("create", meta_pb2.CreateRequest(entries=[entry], umask=umask), user)
        raise_status(reply.statuses[0])

    async def symlink(self, user: Credentials, path: str, target: str) -> None:
        await self.world.symlink(path, target, user)

    async def open(self, user: Credentials, path: str, flags: int, mode: int, umask: int, written: int) -> None:
        opened = await self.world.open(path, flags, user, mode=mode, umask=umask)
        attributes = opened.attributes
        if not opened.session:
            return
        if written:
            self.world.chunks.write(attributes.inode, written, attributes.truncate_version)
            await self.world.close(opened, written, truncate_version=attributes.truncate_version)
        else:
            await self.world.close(opened)

    async def tmpfile(
        self, user: Credentials, directory: str, target: str, mode: int, umask: int, exclusive: bool
    ) -> None:
        flags = os.O_WRONLY | (os.O_EXCL if exclusive else 0)
        opened = await self.world.open(directory, flags, user, mode=mode, umask=umask, unnamed=True)
        try:
            source = place("", opened.attributes.inode)
            await self.world.ask("link", meta_pb2.LinkRequest(source=source, target=place(target)), user)
        finally:
            await self.world.close(opened)

    async def truncate(self, user: Credentials, path: str, length: int) -> None:
        await self.world.truncate(path, length, user)

    async def link(self, user: Credentials, source: str, target: str, follow: bool) -> None:
        await self.world.link(source, target, user, follow=follow)

    async def unlink(self, user: Credentials, path: str) -> None:
        await self.world.unlink(path, user)

    async def rmdir(self, user: Credentials, path: str) -> None:
        await self.world.rmdir(path, user)

    async def rename(self, user: Credentials, source: str, target: str, flags: int) -> None:
        await self.world.rename(source, target, flags, user)

    async def chmod(self, user: Credentials, path: str, mode: int) -> None:
        await self.world.set(path, user, mode=mode)

    async def chown(self, user: Credentials, path: str, uid: int, gid: int, follow: bool) -> None:
        ids = {name: number for name, number in (("uid", uid), ("gid", gid)) if number >= 0}
        await self.world.set(path, user, follow=follow, **ids)

    async def utimens(self, user: Credentials, path: str, atime: Time, mtime: Time, follow: bool) -> None:
        if atime == mtime == "omit":
            return  # Linux does not even look whether there is such a path
        fields: dict[str, Any] = {}
        for name, time in (("atime", atime), ("mtime", mtime)):
            if time != "omit":
                fields[f"{name}_now" if time == "now" else f"{name}_ns"] = True if time == "now" else time
        await self.world.set(path, user, follow=follow, **fields)

    async def access(self, user: Credentials, path: str, mask: int) -> None:
        await self.world.ask("access", meta_pb2.AccessRequest(place=place(path), follow=True, mask=mask), user)

    async def setxattr(self, user: Credentials, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        request = meta_pb2.SetXattrRequest(
            place=place(path), name=name.encode(), value=value, flags=flags, follow=follow
        )
        await self.world.ask("set_xattr", request, user)

    async def getxattr(self, user: Credentials, path: str, name: str, follow: bool) -> bytes:
        request = meta_pb2.GetXattrRequest(place=place(path), name=name.encode(), follow=follow)
        return bytes((await self.world.ask("get_xattr", request, user)).value)

    async def listxattr(self, user: Credentials, path: str, follow: bool) -> list[str]:
        request = meta_pb2.ListXattrsRequest(place=place(path), follow=follow)
        return sorted(name.decode() for name in (await self.world.ask("list_xattrs", request, user)).names)

    async def removexattr(self, user: Credentials, path: str, name: str, follow: bool) -> None:
        request = meta_pb2.RemoveXattrRequest(place=place(path), name=name.encode(), follow=follow)
        await self.world.ask("remove_xattr", request, user)

    async def readlink(self, user: Credentials, path: str) -> str:
        found = await self.world.stat(path, user, follow=False)
        if found.type != FileType.FILE_TYPE_SYMLINK:
            raise OSError(22, "")
        return found.target.decode()

    async def listdir(self, user: Credentials, path: str) -> list[str]:
        return await self.world.listdir(path, user)

    async def stat(self, user: Credentials, path: str, follow: bool) -> int:
        return int((await self.world.stat(path, user, follow=follow)).type)

    def tree(self) -> list[dict[str, Any]]:
        """As `oracle.Calls.tree`."""
        reply = drive(self.world.ask("find", meta_pb2.FindRequest(place=place("/"), entries_max=5000)))
        met: dict[int, int] = {}
        rows = []
        top = drive(self.world.stat("/"))
        for name, a in zip(["", *[p.decode() for p in reply.paths]], [top, *reply.attributes], strict=True):
            path = "/" + name
            names = self.call(ROOT, "listxattr", path, False)
            assert a.extended >= bool(names)
            rows.append(
                {
                    "path": path,
                    "same": met.setdefault(a.inode, len(met)),
                    "number": a.inode,
                    "type": int(a.type),
                    "mode": a.mode,
                    "owner": (a.uid, a.gid),
                    "nlink": a.nlink,
                    "size": a.length,
                    "target": a.target.decode(),
                    "xattrs": {n: self.call(ROOT, "getxattr", path, n, False) for n in names},
                    "times": (a.atime_ns, a.mtime_ns, a.ctime_ns),
                }
            )
        return rows


# --- what is done -----------------------------------------------------------------------------------------------------------------

users = st.sampled_from([ROOT, ALICE, ALICE, BOB, CAROL])
part = st.sampled_from([*NAMES, *NAMES, *NAMES, *NAMES, ".", ".."])
paths = st.builds(
    lambda parts, slash: "/" + "/".join(parts) + ("/" if slash else ""),
    st.lists(part, min_size=1, max_size=3) | st.lists(st.sampled_from(NAMES), min_size=1, max_size=2),
    st.sampled_from([False, False, False, False, False, False, True]),
)
targets = st.builds(lambda absolute, path: path if absolute else path[1:] or ".", st.booleans(), paths)
modes = st.sampled_from(
    [0o777, 0o755, 0o700, 0o770, 0o666, 0o644, 0o640, 0o600, 0o000, 0o222, 0o111, 0o077, 0o007]
) | st.integers(0, 0o777)
special = st.sampled_from([0, 0, 0, 0, 0o1000, 0o2000, 0o2010, 0o4000, 0o6000, 0o6777])
all_modes = st.builds(int.__or__, modes, special)
umasks = st.sampled_from([0, 0, 0o022, 0o077])
ids = st.sampled_from([-1, 0, *[user.uid for user in USERS]])
gids = st.sampled_from([-1, 0, 2000, *[user.gid for user in USERS]])
times = st.sampled_from(["now", "omit", 0, 5, 1_234_567_890_123_456_789])
names = st.sampled_from(
    ["user.a", "user.a", "user.b", "trusted.a", "security.a", "user.", "nothing", "system.a", "system.posix_acl_access"]
)
rights = st.integers(0, 7)
named = st.dictionaries(st.sampled_from([0, *[user.uid for user in USERS], 2000]), rights, max_size=3).map(
    lambda found: tuple(sorted(found.items()))
)
lists = st.builds(
    lambda owner, group, other, mask, users, groups: acls.Acl(
        owner, group, other, mask if mask is not None or not (users or groups) else 7, users, groups
    ),
    rights,
    rights,
    rights,
    st.none() | rights | st.just(7),
    named,
    named,
)
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"


class Both(RuleBasedStateMachine):
    """Each rule does the same to both and compares the outcome."""

    local: Local  # these two are set by the fixture
    compares_times: bool

    def __init__(self) -> None:
        super().__init__()
        self.ours: Ours
        self.before: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        self.last: tuple[Any, ...] = ()

    @initialize(mode=st.sampled_from([0o777, 0o1777, 0o2777, 0o755]))
    def start(self, mode: int) -> None:
        self.local.call(ROOT, "reset", mode)
        self.ours = Ours(mode)
        self.plant()

    def plant(self) -> None:
        """What there is from the start."""
        for operation in (
            ("mkdir", "/a", 0o777, 0),
            ("mkdir", "/b", 0o755, 0),
            ("open", "/a/a", os.O_CREAT | os.O_WRONLY, 0o644, 0, 5),
            ("link", "/a/a", "/c", False),
            ("symlink", "/a/b", "../c"),
        ):
            self.same(ALICE if operation[1] != "/b" else BOB, *operation)
        self.remember()

    def same(self, user: Credentials, operation: str, *args: Any) -> None:
        self.last = (user.uid, operation, *args)
        expected = outcome(self.local, user, operation, *args)
        found = outcome(self.ours, user, operation, *args)
        if operation == "open" and found == "ENXIO":
            assert expected in (None, found), self.last  # only a mount opens special files
            return
        assert found == expected, self.last

    @rule(user=users, path=paths, mode=all_modes, umask=umasks)
    def mkdir(self, user: Credentials, path: str, mode: int, umask: int) -> None:
        self.same(user, "mkdir", path, mode, umask)

    @rule(user=users, path=paths, kind=st.sampled_from([1, 4, 5, 6]), mode=all_modes, umask=umasks)
    def mknod(self, user: Credentials, path: str, kind: int, mode: int, umask: int) -> None:
        self.same(user, "mknod", path, kind, mode, umask)

    @rule(user=users, path=paths, to=targets)
    def symlink(self, user: Credentials, path: str, to: str) -> None:
        self.same(user, "symlink", path, to)

    @rule(
        user=users,
        path=paths,
        access=st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_WRONLY, os.O_RDWR]),
        extra=st.sampled_from(
            [
                0,
                0,
                os.O_TRUNC,
                os.O_CREAT,
                os.O_CREAT,
                os.O_CREAT | os.O_EXCL,
                os.O_DIRECTORY,
                os.O_NOFOLLOW,
                os.O_NOATIME,
            ]
        ),
        mode=all_modes,
        umask=umasks,
        written=st.sampled_from([0, 3, 10]),
    )
    def open(self, user: Credentials, path: str, access: int, extra: int, mode: int, umask: int, written: int) -> None:
        # A stranger who opens for writing takes set-id bits away before he writes (ops/open.py), so here he writes.
        written = max(written, 1) if user.uid else written
        self.same(user, "open", path, access | extra, mode, umask, written if access else 0)

    @rule(
        user=users, path=paths, to=paths, mode=all_modes, umask=umasks, exclusive=st.sampled_from([False, False, True])
    )
    def tmpfile(self, user: Credentials, path: str, to: str, mode: int, umask: int, exclusive: bool) -> None:
        self.same(user, "tmpfile", path, to, mode, umask, exclusive)

    @rule(user=users, path=paths, length=st.integers(0, 12))
    def truncate(self, user: Credentials, path: str, length: int) -> None:
        self.same(user, "truncate", path, length)

    @rule(user=users, source=paths, to=paths, follow=st.booleans())
    def link(self, user: Credentials, source: str, to: str, follow: bool) -> None:
        self.same(user, "link", source, to, follow)

    @rule(user=users, path=paths)
    def unlink(self, user: Credentials, path: str) -> None:
        self.same(user, "unlink", path)

    @rule(user=users, path=paths)
    def rmdir(self, user: Credentials, path: str) -> None:
        self.same(user, "rmdir", path)

    @rule(user=users, source=paths, to=paths, flags=st.sampled_from([0, 0, 0, 0, 1, 2, 3]))
    def rename(self, user: Credentials, source: str, to: str, flags: int) -> None:
        self.same(user, "rename", source, to, flags)

    @rule(user=users, path=paths, mode=all_modes)
    def chmod(self, user: Credentials, path: str, mode: int) -> None:
        self.same(user, "chmod", path, mode)

    @rule(user=users, path=paths, uid=ids, gid=gids, follow=st.booleans())
    def chown(self, user: Credentials, path: str, uid: int, gid: int, follow: bool) -> None:
        self.same(user, "chown", path, uid, gid, follow)

    @rule(user=users, path=paths, atime=times, mtime=times, follow=st.booleans())
    def utimens(self, user: Credentials, path: str, atime: Time, mtime: Time, follow: bool) -> None:
        self.same(user, "utimens", path, atime, mtime, follow)

    @rule(user=users, path=paths, mask=rights)
    def access(self, user: Credentials, path: str, mask: int) -> None:
        self.same(user, "access", path, mask)

    @rule(
        user=users,
        path=paths,
        name=names,
        value=st.binary(max_size=8),
        flags=st.sampled_from([0, 0, 1, 2, 3]),
        follow=st.booleans(),
    )
    def setxattr(self, user: Credentials, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        self.same(user, "setxattr", path, name, value, flags, follow)

    @rule(user=users, path=paths, name=st.sampled_from([ACCESS_ACL, ACCESS_ACL, DEFAULT_ACL]), acl=lists)
    def set_acl(self, user: Credentials, path: str, name: str, acl: acls.Acl) -> None:
        self.same(user, "setxattr", path, name, acls.to_kernel(acl), 0, True)

    @rule(user=users, path=paths, name=names | st.just(DEFAULT_ACL), follow=st.booleans())
    def getxattr(self, user: Credentials, path: str, name: str, follow: bool) -> None:
        self.same(user, "getxattr", path, name, follow)

    @rule(user=users, path=paths, follow=st.booleans())
    def listxattr(self, user: Credentials, path: str, follow: bool) -> None:
        self.same(user, "listxattr", path, follow)

    @rule(user=users, path=paths, name=names | st.just(DEFAULT_ACL), follow=st.booleans())
    def removexattr(self, user: Credentials, path: str, name: str, follow: bool) -> None:
        self.same(user, "removexattr", path, name, follow)

    @rule(user=users, path=paths, follow=st.booleans())
    def stat(self, user: Credentials, path: str, follow: bool) -> None:
        self.same(user, "stat", path, follow)

    @rule(user=users, path=paths)
    def listdir(self, user: Credentials, path: str) -> None:
        self.same(user, "listdir", path)

    @invariant()
    def same_tree(self) -> None:
        self.remember()

    def remember(self) -> None:
        """Compare what there is now, and how the times moved since the last look."""
        trees = self.local.call(ROOT, "tree"), self.ours.tree()
        moved = [
            [(row["path"], *_moved(row, before)) for row in tree]
            for tree, before in zip(trees, self.before, strict=True)
        ]
        self.before = tuple({row["number"]: row["times"] for row in tree} for tree in trees)  # type: ignore[assignment]
        for tree in trees:
            for row in tree:
                del row["number"], row["times"]
        assert trees[1] == trees[0], self.last
        if self.compares_times and self.last[1] != "truncate":
            assert moved[1] == moved[0], self.last

    def teardown(self) -> None:
        if hasattr(self, "ours"):
            assert drive(check(self.ours.world.engine)) == []
            drive(self.ours.world.collect())
            assert drive(check(self.ours.world.engine)) == []


def _moved(row: dict[str, Any], before: dict[int, Any]) -> tuple[bool, ...]:
    """Whether atime, mtime and ctime have moved; reading directories and symlinks moves their atime only in the oracle."""
    old = before.get(row["number"])
    if old is None:
        return ()
    atime, mtime, ctime = (now != then for now, then in zip(row["times"], old, strict=True))
    return (atime and row["type"] not in (2, 3), mtime, ctime)


def outcome(side: Any, user: Credentials, operation: str, *args: Any) -> Any:
    try:
        return side.call(user, operation, *args)
    except OSError as failure:
        assert failure.errno is not None, failure
        return errno.errorcode[failure.errno]


@pytest.fixture(scope="module")
def oracle() -> Iterator[None]:
    if os.geteuid():
        pytest.skip("only root can be several users")
    with tempfile.TemporaryDirectory() as directory:
        Both.local = Local(directory, USERS)
        try:
            Both.local.call(ROOT, "reset", 0o777)
            try:
                Both.compares_times = Both.local.call(ROOT, "probe")
            except OSError as missing:
                pytest.skip(f"the local file system has no extended attributes or ACLs: {missing}")
            yield
        finally:
            Both.local.call(ROOT, "reset", 0o777)
            Both.local.close()


# What fails is not made smaller: each try costs system calls, and the last step says what is wrong. Which operations come, the seed tells.
ONCE: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.generate,),
    "report_multiple_bugs": False,
}
QUICK = settings(max_examples=60, stateful_step_count=40, derandomize=True, **ONCE)


LONG, TOO_LONG = "n" * 255, "n" * 256
W, C = os.O_WRONLY, os.O_CREAT | os.O_WRONLY
CORNERS: list[tuple[Any, ...]] = [
    ("mkdir", "/e", 0o755, 0),
    ("open", "/f", C, 0o644, 0, 3),
    *(("symlink", path, to) for path, to in (("/l", "f/"), ("/d", "nothing/"), ("/m", "l"), ("/n", "e/"), ("/o", "f"))),
    ("symlink", "/loop", "loop/"),
    *(("stat", path, True) for path in ("/l", "/m", "/n", "/o/", "/loop", f"/{TOO_LONG}", f"/no/{TOO_LONG}")),
    *(
        ("open", path, C, 0o644, 0, 0)
        for path in ("/l", "/d", "/m", "/n", "/o/", "/loop", "/e/.", f"/{TOO_LONG}", "/no/")
    ),
    *(("open", path, C | os.O_EXCL, 0o644, 0, 0) for path in ("/l", "/d", "/e/", "/e/.", "/e/..", "/f/")),
    *(("open", path, os.O_RDONLY, 0, 0, 0) for path in ("/l", "/n", "/loop")),
    *(("open", path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, 0, 0, 0) for path in ("/l", "/n", "/n/", "/f")),
    ("truncate", "/l", 1),
    ("chmod", "/l", 0o600),
    ("link", "/l", "/x", True),
    ("mkdir", "/d", 0o755, 0),
    ("mkdir", "/d/", 0o755, 0),
    ("rename", "/o/", "/z", 0),
    ("rename", "/n/", "/z", 0),
    ("rename", "/f", f"/e/{TOO_LONG}", 0),
    ("access", "/m", 0),
    ("mkdir", f"/{LONG}", 0o755, 0),
    ("unlink", f"/f/{TOO_LONG}"),
    ("symlink", "/long", "n" * 4095),
    ("stat", "/long", True),
    ("stat", "/" + "e/../" * 800 + "f", True),
    *(("symlink", f"/s{i}", f"s{i + 1}" if i < 41 else "f") for i in range(42)),
    *(("stat", f"/s{i}", True) for i in (0, 1, 2, 3)),  # 42 to 39 symlinks
]


@pytest.mark.usefixtures("oracle")
def test_corners_of_paths() -> None:
    Both.local.call(ROOT, "reset", 0o777)
    ours = Ours(0o777)
    for corner in CORNERS:
        assert outcome(ours, ALICE, *corner) == outcome(Both.local, ALICE, *corner), corner


@pytest.mark.usefixtures("oracle")
def test_every_run_begins_with_a_new_directory() -> None:
    """Its times too: an old mtime that is set once more would not move."""
    for _ in range(2):
        machine = Both()
        machine.start(0o755)  # nobody but root can make anything, which would move it
        machine.utimens(ROOT, "/..", "omit", 5, True)
        machine.remember()


@pytest.mark.usefixtures("oracle")
def test_as_the_local_file_system() -> None:
    run_state_machine_as_test(Both, settings=QUICK)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("oracle")
def test_as_the_local_file_system_for_long() -> None:
    long = settings(max_examples=5000, stateful_step_count=60, **ONCE)
    run_state_machine_as_test(Both, settings=long)
