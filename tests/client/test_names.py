"""Names through the blocking client: the real namespace behind the local transport."""

from __future__ import annotations

import errno
import os
import stat
import struct

import pytest

from emberfs.client.blocking import Client
from emberfs.client.core.options import parse_mode
from emberfs.client.core.paths import at
from emberfs.proto.env import drive
from emberfs.proto.errors import StatusError

NOBODY = 0xFFFFFFFF  # the id in entries of an ACL that name nobody


def test_a_tree_is_made_listed_and_removed(client: Client) -> None:
    client.mkdir("/a/b/c", parents=True)
    client.write_bytes("/a/b/file", b"hello")
    client.symlink("b/file", "/a/link")
    client.link("/a/b/file", "/a/hard")
    assert client.listdir("/a") == ["b", "hard", "link"]
    assert [(name, stat.type) for name, stat in client.scandir("/a")] == [
        ("b", "directory"),
        ("hard", "file"),
        ("link", "symlink"),
    ]
    assert [path for path, _ in client.find("/a")] == ["b", "b/c", "b/file", "hard", "link"]
    assert [path for path, _ in client.find("/a", max_depth=1)] == ["b", "hard", "link"]
    assert client.readlink("/a/link") == "b/file"
    assert client.stat("/a/link").size == 5
    assert client.stat("/a/link", follow=False).is_symlink
    assert client.stat("/a/hard").nlink == 2
    client.remove_tree("/a")
    assert not client.exists("/a")
    assert client.listdir("/") == []


def test_batches_say_per_name_what_became_of_it(client: Client) -> None:
    client.mkdir("/d")
    made = client.create_many([f"/d/{i}" for i in range(2500)] + ["/nowhere/x"])
    assert [isinstance(m, StatusError) for m in made] == [False] * 2500 + [True]
    stats = client.stat_many(["/d/0", "/d/2499", "/d/none"])
    assert not isinstance(stats[0], StatusError) and stats[0].is_file
    assert isinstance(stats[2], FileNotFoundError) and stats[2].filename == "/d/none"
    assert len(client.listdir("/d")) == 2500
    gone = client.unlink_many(["/d/0", "/d/0", "/d/1"])
    assert gone[0] is None and isinstance(gone[1], FileNotFoundError) and gone[2] is None


@pytest.mark.parametrize("bad", ["/a\0b", "relative", "/" + "d/" * 2048, "/\ud800"])
def test_what_can_be_no_path_keeps_no_other_from_its_answer(client: Client, bad: str) -> None:
    client.write_bytes("/f", b"12345")
    for many in (client.stat_many, client.create_many, client.unlink_many):
        first, wrong, last = many([f"/{many.__name__}", bad, "/f"])
        assert isinstance(wrong, StatusError)
        if many == client.stat_many:
            assert isinstance(first, StatusError) and last.size == 5
            assert client.read_ranges([("/f", 0, 2), (bad, 0, 1), ("/f", -2, None)])[::2] == [b"12", b"45"]
        elif many == client.create_many:
            assert first.size == 0 and isinstance(last, FileExistsError)
    assert last is None and not client.exists("/f")


def test_attributes_change(client: Client) -> None:
    client.write_bytes("/f", b"x" * 10)
    client.chmod("/f", 0o4711)
    client.utime("/f", atime_ns=1, mtime_ns=2_000_000_003)
    found = client.stat("/f")
    assert (found.mode, found.atime_ns, found.mtime_ns) == (0o4711, 1, 2_000_000_003)
    client.truncate("/f", 4)
    assert client.read_bytes("/f") == b"xxxx"
    client.truncate("/f", 6)
    assert client.read_bytes("/f") == b"xxxx\0\0"


def test_rename_replaces_refuses_or_exchanges(client: Client) -> None:
    client.write_bytes("/a", b"a")
    client.write_bytes("/b", b"b")
    with pytest.raises(FileExistsError) as refused:
        client.rename("/a", "/b", replace=False)
    assert "/a -> /b" in str(refused.value)
    client.rename("/a", "/b", exchange=True)
    assert (client.read_bytes("/a"), client.read_bytes("/b")) == (b"b", b"a")
    client.rename("/a", "/b")
    assert client.listdir("/") == ["b"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("relative", OSError),
        ("/nul\0byte", OSError),
        ("/" + "n" * 256, OSError),
        ("/" + "x/" * 2100, OSError),
        ("/missing/file", FileNotFoundError),
        (7, TypeError),
    ],
)
def test_bad_paths_are_clear_errors(client: Client, path: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        client.stat(path)  # type: ignore[arg-type]


def test_any_bytes_are_a_name(client: Client) -> None:
    client.write_bytes(b"/\xff\xfe", b"1")
    client.write_bytes("/\u00e4\n\U0001f980", b"2")
    names = client.listdir("/")
    assert sorted(client.read_bytes("/" + name) for name in names) == [b"1", b"2"]


def test_extended_attributes_and_acls(client: Client) -> None:
    client.write_bytes("/f", b"x")
    assert not client.stat("/f").extended
    client.setxattr("/f", "user.origin", b"here")
    client.setxattr("/f", "user.origin", b"there", os.XATTR_REPLACE)
    with pytest.raises(FileExistsError):
        client.setxattr("/f", "user.origin", b"", os.XATTR_CREATE)
    assert client.getxattr("/f", b"user.origin") == b"there"
    assert client.stat("/f").extended
    # owner rw, user 7 r, group none, mask r, others none
    acl = struct.pack("<I" + "HHI" * 5, 2, 1, 6, NOBODY, 2, 4, 7, 4, 0, NOBODY, 16, 4, NOBODY, 32, 0, NOBODY)
    client.setxattr("/f", "system.posix_acl_access", acl)
    assert client.stat("/f").mode == 0o640
    client.chmod("/f", 0o660)
    assert (
        client.getxattr("/f", "system.posix_acl_access") == acl[:30] + b"\x06" + acl[31:]
    )  # the mask is the mode's group bits
    assert client.listxattr("/f") == ["system.posix_acl_access", "user.origin"]
    client.removexattr("/f", "user.origin")
    with pytest.raises(OSError, match="no attribute") as caught:
        client.getxattr("/f", "user.origin")
    assert (caught.value.errno, caught.value.filename) == (errno.ENODATA, "/f")


def test_a_default_acl_takes_the_place_of_the_umask(client: Client) -> None:
    client.mkdir("/d")
    default = struct.pack("<I" + "HHI" * 3, 2, 1, 7, NOBODY, 4, 7, NOBODY, 32, 0, NOBODY)
    client.setxattr("/d", "system.posix_acl_default", default)
    client.core.umask = 0o077
    assert client.mkdir("/plain").mode == 0o700
    assert client.mkdir("/d/sub").mode == 0o770
    with client.open("/d/f", "wb") as file:
        file.write(b"x")
    assert client.stat("/d/f").mode == 0o660
    assert client.getxattr("/d/sub", "system.posix_acl_default") == default


def test_special_files_and_access(client: Client) -> None:
    made = client.mknod("/pipe", stat.S_IFIFO | 0o640)
    assert (made.type, made.mode) == ("fifo", 0o640 & ~client.core.umask)
    assert client.mknod("/null", stat.S_IFCHR | 0o600, os.makedev(1, 3)).rdev == os.makedev(1, 3)
    assert client.mknod("/plain").is_file
    with pytest.raises(OSError, match="mknod makes") as caught:
        client.mknod("/d", stat.S_IFDIR)
    assert caught.value.errno == errno.EINVAL
    assert client.access("/plain", os.R_OK | os.W_OK)
    assert not client.access("/plain", os.X_OK)
    assert not client.access("/none", 0)


def test_an_unnamed_file_gets_its_name_by_a_link(client: Client) -> None:
    with client.open("/", "wb", unnamed=True) as file:
        file.write(b"first")
        client.link(file, "/named")
        assert client.read_bytes("/named") == b"first"
        file.write(b" and more")
        client.link(file, "/again")
    assert client.read_bytes("/again") == b"first and more"
    client.symlink("named", "/soft")
    client.link("/soft", "/hard", follow=True)
    assert client.stat("/named").nlink == 3


def test_inodes_are_places_too(client: Client) -> None:
    top = client.mkdir("/d").inode
    client.write_bytes(at(top, b"f"), b"abc")
    number = client.stat("/d/f").inode
    client.rename(at(top, b"f"), "/g")
    assert client.read_bytes(at(number)) == b"abc"
    client.chmod(at(number), 0o600)
    client.truncate(at(number), 1)
    assert (client.stat("/g").mode, client.stat("/g").size) == (0o600, 1)
    with pytest.raises(FileNotFoundError) as caught:
        client.stat(at(top, b"f"))
    assert caught.value.filename == f"inode {top:x}/f"


def test_one_client_acts_for_many_users(client: Client) -> None:
    core = client.core
    alice, bob = core.acting_for(1001, 1001, umask=0o077), core.acting_for(1002, 1002, (1001,), umask=0)
    client.mkdir("/home")
    client.chmod("/home", 0o1777)
    made = drive(alice.mkdir("/home/alice"))
    assert (made.uid, made.gid, made.mode) == (1001, 1001, 0o700)
    file = drive(alice.open("/home/alice/f", parse_mode("wb"), permissions=0o666))
    drive(file.write(b"hers"))
    drive(file.close())
    assert client.stat("/home/alice/f").mode == 0o600
    for refused in (bob.stat("/home/alice/f"), bob.listdir("/home/alice"), bob.rename("/home/alice", "/home/bob")):
        with pytest.raises(PermissionError):
            drive(refused)
    drive(alice.chmod("/home/alice", 0o750))
    drive(alice.chmod("/home/alice/f", 0o640))
    reader = drive(bob.open("/home/alice/f", parse_mode("rb")))  # as a member of the group
    assert drive(reader.read(-1)) == b"hers"
    drive(reader.close())
    for refused in (bob.open("/home/alice/f", parse_mode("ab")), bob.truncate("/home/alice/f", 0)):
        with pytest.raises(PermissionError):
            drive(refused)
    assert drive(bob.access("/home/alice/f", os.R_OK)) and not drive(bob.access("/home/alice/f", os.W_OK))
    drive(alice.truncate("/home/alice/f", 2))
    assert client.read_bytes("/home/alice/f") == b"he"


def test_several_attributes_are_set_in_one_request(client: Client) -> None:
    client.write_bytes("/f", b"x")
    before = client.stat("/f")
    where = at(before.inode)
    after = drive(client.core.set_attributes(where, mode=0o640, uid=7, gid=8, atime_ns=1, mtime_ns=2))
    assert (after.mode, after.uid, after.gid, after.atime_ns, after.mtime_ns) == (0o640, 7, 8, 1, 2)
    assert after.change == before.change + 1
    assert after == client.stat("/f")
    client.chmod("/f", 0o6755)
    assert drive(client.core.set_attributes(where)).mode == 0o755  # as chown with -1 and -1


def test_operations_on_names_say_what_they_left(client: Client) -> None:
    client.mkdir("/d")
    client.write_bytes("/f", b"x")
    first = client.stat("/f")
    linked = drive(client.core.link("/f", "/d/g"))
    assert (linked.nlink, linked) == (2, client.stat("/f"))
    moved = drive(client.core.rename("/d/g", "/g"))
    assert (moved.inode, moved) == (first.inode, client.stat("/g"))
    assert drive(client.core.setxattr("/g", "user.x", b"1")).extended
    assert not drive(client.core.removexattr("/g", "user.x")).extended
    assert drive(client.core.truncate("/g", 0)).size == 0
    inode = client.stat("/d").inode
    left = drive(client.core.rmdir("/d"))
    assert (left.inode, left.nlink, left.is_dir) == (inode, 0, True)


def test_a_page_of_a_directory_in_columns(client: Client) -> None:
    client.mkdir("/d/sub", parents=True)
    client.write_bytes("/d/f", b"xyz")
    page = drive(client.core.read_directory("/d", b"", 1))
    assert (list(page.names), page.end, page.cookie, len(page.attributes)) == ([b"f"], False, b"f", 0)
    page = drive(client.core.read_directory("/d", page.cookie, 10, attributes=True))
    assert (list(page.names), page.end) == ([b"sub"], True)
    assert page.attributes[0].inode == page.inodes[0] == client.stat("/d/sub").inode


def test_times_are_those_of_the_last_write(client: Client) -> None:
    with client.open("/f", "wb") as file:
        file.write(b"hello")
        written = client.stat("/f")
        file.fsync()
        assert client.stat("/f").mtime_ns == written.mtime_ns
    closed = client.stat("/f")
    assert (closed.mtime_ns, closed.ctime_ns) == (written.mtime_ns, written.ctime_ns)
