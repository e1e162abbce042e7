"""What `EmberFileSystem` promises beyond fsspec's own suites: atomic moves, transactions, true r+b, errors that are not absences."""

import asyncio
import datetime
import io
import uuid

import fsspec
import pytest

from emberfs.client.filesystem import EmberFileSystem
from emberfs.proto.env import drive
from emberfs.proto.errors import StatusError


@pytest.fixture
def fs(cluster):
    return fsspec.filesystem("ember", **cluster.storage_options)


@pytest.fixture
def root(fs):
    path = f"/fs-{uuid.uuid4().hex}"
    fs.mkdir(path)
    yield path
    fs.rm(path, recursive=True)


class TestNames:
    @pytest.mark.parametrize(
        ("given", "stripped"),
        [
            ("ember://h:1/a/b", "/a/b"),
            ("ember:///a/b/", "/a/b"),
            ("/a/b", "/a/b"),
            ("a/b", "/a/b"),
            ("ember://h", "/"),
            ("ember:///", "/"),
            ("/", "/"),
            ("", "/"),
        ],
    )
    def test_strip_protocol(self, given, stripped):
        assert EmberFileSystem._strip_protocol(given) == stripped
        assert EmberFileSystem._strip_protocol(stripped) == stripped

    def test_urls_round_trip(self, cluster, fs, root):
        fs.pipe_file(f"{root}/x", b"1")
        url = fs.unstrip_protocol(f"{root}/x")
        again, path = fsspec.url_to_fs(url)
        assert (again, path) == (fs, f"{root}/x")
        with fsspec.open(url) as file:
            assert file.read() == b"1"
        assert fs.fsid == again.fsid

    def test_the_same_options_are_the_same_instance(self, cluster, fs):
        assert fsspec.filesystem("ember", **cluster.storage_options) is fs

    def test_json_holds_no_secret(self, fs):
        assert "secret" not in fs.to_json()
        assert EmberFileSystem.from_json(fs.to_json()) == fs


class TestTree:
    def test_mv_is_a_rename(self, fs, root):
        fs.makedirs(f"{root}/tree/a")
        fs.pipe_file(f"{root}/tree/a/b", b"1")
        inode = fs.info(f"{root}/tree/a/b")["ino"]
        fs.mv(f"{root}/tree", f"{root}/moved", recursive=True)
        assert fs.info(f"{root}/moved/a/b")["ino"] == inode
        assert not fs.exists(f"{root}/tree")
        fs.pipe_file(f"{root}/x", b"new")
        fs.pipe_file(f"{root}/y", b"old")
        fs.mv(f"{root}/x", f"{root}/y")
        assert fs.cat_file(f"{root}/y") == b"new"
        fs.mv(f"{root}/y", f"{root}/moved")  # onto a directory: into it
        assert fs.cat_file(f"{root}/moved/y") == b"new"

    @pytest.mark.parametrize("empty", [True, False])
    def test_mv_of_a_directory_onto_one_moves_into_it(self, fs, root, empty):
        fs.makedirs(f"{root}/target")
        if not empty:
            fs.pipe_file(f"{root}/target/there", b"1")
        fs.makedirs(f"{root}/tree/a")
        fs.mv(f"{root}/tree", f"{root}/target", recursive=True)
        assert fs.isdir(f"{root}/target/tree/a")
        assert fs.exists(f"{root}/target/there") != empty

    def test_listings_are_never_stale(self, fs, root, cluster):
        other = fsspec.filesystem("ember", skip_instance_cache=True, **cluster.storage_options)
        assert fs.ls(root) == []
        other.pipe_file(f"{root}/new", b"1")
        assert fs.ls(root, detail=False) == [f"{root}/new"]
        assert fs.isfile(f"{root}/new")
        other.rm(f"{root}/new")
        assert not fs.exists(f"{root}/new")
        assert fs.find(root) == []

    def test_find_rm_and_du_of_a_tree(self, fs, root):
        for i in range(30):
            fs.makedirs(f"{root}/t/d{i % 3}", exist_ok=True)
            fs.pipe_file(f"{root}/t/d{i % 3}/f{i}", bytes(i))
        assert len(fs.find(f"{root}/t")) == 30
        assert len(fs.find(f"{root}/t", withdirs=True)) == 34
        assert fs.find(f"{root}/t", maxdepth=1) == []
        assert fs.find(f"{root}/t/d0/f0") == [f"{root}/t/d0/f0"]
        assert fs.find(f"{root}/nothing") == []
        assert fs.du(f"{root}/t") == sum(range(30))
        assert next(names for _, _, names in fs.walk(f"{root}/t")) == []
        assert len(fs.glob(f"{root}/t/*/f1?")) == 10
        with pytest.raises(IsADirectoryError):
            fs.rm(f"{root}/t")
        fs.rm(f"{root}/t", recursive=True)
        assert not fs.exists(f"{root}/t")

    @pytest.mark.parametrize("named", ["/t/**", ["/t", "/t/d/e", "/t-", "/t/f"]])
    def test_rm_of_trees_within_trees(self, fs, root, named):
        fs.makedirs(f"{root}/t/d/e")
        for name in ("t/f", "t/d/g", "t/d/e/h", "t-"):
            fs.pipe_file(f"{root}/{name}", b"1")
        fs.rm(root + named if isinstance(named, str) else [root + name for name in named], recursive=True)
        assert fs.find(f"{root}/t") == []
        assert fs.exists(f"{root}/t-") == isinstance(named, str)

    def test_the_root_is_not_removed(self, fs):
        with pytest.raises(PermissionError):
            fs.rm("/", recursive=True)
        assert fs.isdir("/")

    def test_directories_say_what_is_wrong(self, fs, root):
        with pytest.raises(FileNotFoundError):
            fs.mkdir(f"{root}/a/b", create_parents=False)
        fs.makedirs(f"{root}/a/b")
        with pytest.raises(FileExistsError):
            fs.makedirs(f"{root}/a/b")
        fs.makedirs(f"{root}/a/b", exist_ok=True)
        with pytest.raises(OSError, match="not empty"):
            fs.rmdir(f"{root}/a")
        with pytest.raises(FileNotFoundError):
            fs.ls(f"{root}/nothing")

    def test_links(self, fs, root):
        fs.pipe_file(f"{root}/file", b"12345")
        fs.symlink(f"{root}/file", f"{root}/soft")
        fs.link(f"{root}/file", f"{root}/hard")
        fs.symlink("/nowhere", f"{root}/dangling")
        assert fs.islink(f"{root}/soft")
        assert fs.info(f"{root}/soft")["type"] == "file"
        assert fs.info(f"{root}/soft")["size"] == 5
        assert fs.readlink(f"{root}/soft") == f"{root}/file"
        assert fs.info(f"{root}/hard")["nlink"] == 2
        assert not fs.exists(f"{root}/dangling")
        assert fs.lexists(f"{root}/dangling")
        assert fs.info(f"{root}/dangling")["type"] == "link"
        assert fs.cat_file(f"{root}/soft") == b"12345"

    def test_touch_keeps_what_somebody_else_makes_meanwhile(self, fs, root, monkeypatch):
        core = fs.client.core

        async def late(path):
            await core.create_many([path])
            raise FileNotFoundError

        monkeypatch.setattr(core, "utime", late)
        fs.touch(f"{root}/file", truncate=False)
        monkeypatch.undo()
        fs.symlink(f"{root}/behind", f"{root}/soft")
        fs.touch(f"{root}/soft", truncate=False)
        assert fs.find(root) == [f"{root}/behind", f"{root}/file", f"{root}/soft"]

    def test_walk_lists_linked_directories_and_does_not_enter_them(self, fs, root):
        fs.makedirs(f"{root}/d/e")
        fs.pipe_file(f"{root}/d/e/file", b"1")
        fs.symlink(f"{root}/d", f"{root}/d/e/up")
        fs.symlink(root, f"{root}/d/e/top")
        walked = [(path, sorted(dirs), files) for path, dirs, files in fs.walk(root)]
        assert walked == [(root, ["d"], []), (f"{root}/d", ["e"], []), (f"{root}/d/e", ["top", "up"], ["file"])]
        assert [path for path, _, _ in fs.walk(f"{root}/d/e/up", maxdepth=2)] == [f"{root}/d/e/up", f"{root}/d/e/up/e"]
        assert [path for path, _, _ in fs.walk(root, topdown=False)] == [f"{root}/d/e", f"{root}/d", root]

    def test_times_and_keys(self, fs, root):
        fs.pipe_file(f"{root}/x", b"1")
        key = fs.ukey(f"{root}/x")
        assert fs.created(f"{root}/x").tzinfo is datetime.UTC
        assert abs(fs.modified(f"{root}/x") - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)
        assert fs.cat_file(f"{root}/x") == b"1"
        assert fs.ukey(f"{root}/x") == key
        fs.pipe_file(f"{root}/x", b"2")  # same size
        assert fs.ukey(f"{root}/x") != key


class TestContents:
    def test_ranges_come_as_one_batch_with_errors_in_their_places(self, fs, root):
        fs.pipe_file(f"{root}/a", bytes(range(200)))
        fs.pipe_file(f"{root}/b", b"bbbb")
        paths = [f"{root}/a", f"{root}/b", f"{root}/none", f"{root}/a", f"{root}/a"]
        out = fs.cat_ranges(paths, [0, -2, 0, 150, 5], [3, None, 5, 10_000, 5])
        assert out[0] == b"\x00\x01\x02"
        assert out[1] == b"bb"
        assert isinstance(out[2], FileNotFoundError)
        assert out[3] == bytes(range(150, 200))
        assert out[4] == b""
        with pytest.raises(FileNotFoundError):
            fs.cat_ranges(paths, 0, 1, on_error="raise")

    @pytest.mark.parametrize(
        ("start", "end", "wanted"),
        [(None, None, b"0123456789"), (-3, None, b"789"), (2, -2, b"234567"), (8, 99, b"89"), (99, None, b"")],
    )
    def test_cat_file_slices_like_python(self, fs, root, start, end, wanted):
        fs.pipe_file(f"{root}/x", b"0123456789")
        assert fs.cat_file(f"{root}/x", start, end) == wanted

    def test_read_and_write_in_place(self, fs, root):
        fs.pipe_file(f"{root}/x", b"0123456789")
        with fs.open(f"{root}/x", "r+b") as file:
            file.seek(3)
            file.write(b"abc")
            assert file.tell() == 6
            assert file.read() == b"6789"
            file.truncate(8)
        assert fs.cat_file(f"{root}/x") == b"012abc67"
        with fs.open(f"{root}/x", "w+b") as file:
            file.write(b"xyz")
            file.seek(0)
            assert file.read() == b"xyz"
        with fs.open(f"{root}/x", "ab") as file:
            file.write(b"!")
        assert fs.cat_file(f"{root}/x") == b"xyz!"

    def test_exclusive_create_fails_at_open(self, fs, root):
        fs.pipe_file(f"{root}/x", b"kept")
        with pytest.raises(FileExistsError):
            fs.open(f"{root}/x", "xb")
        with pytest.raises(FileExistsError):
            fs.pipe_file(f"{root}/x", b"2", mode="create")
        assert fs.cat_file(f"{root}/x") == b"kept"

    def test_flush_shows_and_text_works(self, fs, root):
        with fs.open(f"{root}/x", "wt") as file:
            file.write("zwölf\n")
            file.flush()
            assert fs.cat_file(f"{root}/x") == "zwölf\n".encode()
        with fs.open(f"{root}/x", "rt") as file:
            assert list(file) == ["zwölf\n"]
        with pytest.raises(io.UnsupportedOperation):
            fs.open(f"{root}/x", "rb").fileno()

    def test_put_and_get_of_large_files_report_progress(self, fs, root, tmp_path):
        from fsspec.callbacks import Callback

        data = bytes(range(256)) * 80_000
        (tmp_path / "in").write_bytes(data)
        seen = Callback()
        fs.put_file(str(tmp_path / "in"), f"{root}/x", callback=seen)
        assert (seen.size, seen.value) == (len(data), len(data))
        seen = Callback()
        fs.get_file(f"{root}/x", str(tmp_path / "new" / "out"), callback=seen)
        assert seen.value == len(data)
        assert (tmp_path / "new" / "out").read_bytes() == data

    def test_a_named_fsspec_cache_is_used(self, fs, root):
        fs.pipe_file(f"{root}/x", b"0123456789")
        with fs.open(f"{root}/x", cache_type="parts", cache_options={"data": {(0, 10): b"0123456789"}}) as file:
            file.seek(4)
            assert file.read(2) == b"45"


class TestTransactions:
    def test_files_appear_together(self, fs, root):
        with fs.transaction:
            for name in ("a", "b", "c"):
                with fs.open(f"{root}/{name}", "wb") as file:
                    file.write(name.encode() * 100_000)
            assert fs.ls(root) == []
        assert {path.rsplit("/", 1)[1] for path in fs.ls(root, detail=False)} == {"a", "b", "c"}
        assert fs.cat_file(f"{root}/b") == b"b" * 100_000

    def test_an_exception_leaves_nothing(self, fs, root):
        with pytest.raises(ZeroDivisionError), fs.transaction:
            with fs.open(f"{root}/a", "wb") as file:
                file.write(b"1")
            raise ZeroDivisionError
        assert fs.ls(root) == []
        fs.pipe_file(f"{root}/a", b"later writes are no part of it")
        assert fs.exists(f"{root}/a")

    def test_replacing_keeps_the_old_content_until_then(self, fs, root):
        fs.pipe_file(f"{root}/a", b"old")
        with fs.transaction:
            with fs.open(f"{root}/a", "wb") as file:
                file.write(b"new")
            assert fs.cat_file(f"{root}/a") == b"old"
        assert fs.cat_file(f"{root}/a") == b"new"

    def test_appending_keeps_what_was_there(self, fs, root):
        fs.pipe_file(f"{root}/a", b"old")
        with fs.transaction:
            for name in ("a", "b"):
                with fs.open(f"{root}/{name}", "ab") as file:
                    file.write(b"new")
            assert fs.cat_file(f"{root}/a") == b"old"
        assert fs.cat_file(f"{root}/a") == b"oldnew"
        assert fs.cat_file(f"{root}/b") == b"new"

    @pytest.mark.parametrize("mode", ["r+b", "rb+", "br"])
    def test_what_exists_is_read_and_written_in_place(self, fs, root, mode):
        """fsspec does not count these modes among a transaction's files: nobody would commit them."""
        fs.pipe_file(f"{root}/a", b"old")
        with fs.transaction, fs.open(f"{root}/a", mode) as file:
            assert file.read() == b"old"
            if "+" in mode:
                file.write(b"new")
        assert fs.cat_file(f"{root}/a") == (b"oldnew" if "+" in mode else b"old")

    def test_a_file_that_was_dropped_keeps_no_other_from_its_name(self, fs, root):
        with fs.transaction:
            with pytest.raises(ZeroDivisionError), fs.open(f"{root}/a", "wb") as file:
                raise ZeroDivisionError
            with fs.open(f"{root}/b", "wb") as file:
                file.write(b"1")
        assert fs.ls(root, detail=False) == [f"{root}/b"]

    def test_a_transaction_whose_files_are_lost_ends(self, fs, root):
        core = fs.client.core
        with pytest.raises(StatusError, match="silent"), fs.transaction:
            for name in "ab":
                with fs.open(f"{root}/{name}", "wb") as file:
                    file.write(b"1")
            drive(core.lose_lease(core.lease))
        with fs.open(f"{root}/c", "wb") as file:
            file.write(b"1")
        assert fs.ls(root, detail=False) == [f"{root}/c"]

    def test_one_file_that_cannot_be_named_names_none(self, fs, root):
        fs.mkdir(f"{root}/d")
        with pytest.raises(OSError), fs.transaction:
            for name in ("a", "b"):
                with fs.open(f"{root}/{name}", "wb") as file:
                    file.write(b"1")
            fs.mkdir(f"{root}/b")  # the second name becomes a directory before the commit
        assert not fs.exists(f"{root}/a")


class TestAsynchronous:
    async def test_the_same_over_asyncio(self, cluster):
        fs = fsspec.filesystem("ember", asynchronous=True, **cluster.storage_options)
        root = f"/aio-{uuid.uuid4().hex}"
        await fs._mkdir(root)
        await asyncio.gather(*[fs._pipe_file(f"{root}/f{i}", bytes([i]) * 1000) for i in range(50)])
        contents = await fs._cat_ranges([f"{root}/f{i}" for i in range(50)], 0, 2)
        assert contents == [bytes([i]) * 2 for i in range(50)]
        assert len(await fs._find(root)) == 50
        await fs._makedirs(f"{root}/d/e")
        await (await fs._core()).symlink(root, f"{root}/d/e/up")
        assert [path async for path, _, _ in fs._walk(root)] == [root, f"{root}/d", f"{root}/d/e"]
        file = await fs.open_async(f"{root}/big", "wb")
        await file.write(b"x" * 3_000_000)
        await file.close()
        async with await fs.open_async(f"{root}/big", "rb") as file:
            assert len(await file.read()) == 3_000_000
        await fs._rm(root, recursive=True)
        assert not await fs._exists(root)


def test_trouble_with_the_network_is_not_an_absence(tmp_path):
    """fsspec's own `exists` calls every error an absence."""
    fs = fsspec.filesystem("ember", host="127.0.0.1:1", skip_instance_cache=True)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
        fs.exists("/x")
