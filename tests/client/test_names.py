"""Names through the blocking client: the real namespace behind the local transport."""

from __future__ import annotations

import pytest

from emberfs.client.blocking import Client
from emberfs.proto.errors import StatusError


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
