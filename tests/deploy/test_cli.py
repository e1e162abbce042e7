"""Every command of the command line, on a real cluster."""

from __future__ import annotations

import json
import os
import re
import stat as bits
from collections.abc import Iterator
from pathlib import Path

import pytest

import emberfs
import emberfs.deploy
from emberfs.deploy.cli.output import LOG_LEVELS
from emberfs.deploy.local import LocalCluster
from emberfs.proto import process
from emberfs.proto.settings import data_url

from .command import Command


@pytest.fixture(scope="module")
def run(cluster: LocalCluster) -> Command:
    return Command(cluster.environment)


@pytest.fixture
def home(run: Command, request: pytest.FixtureRequest) -> Iterator[str]:
    """A directory in the cluster for one test."""
    path = f"/cli-{request.node.name}"[:60].translate(str.maketrans("[]*?", "____"))
    run("mkdir", path)
    yield path
    run("rm", "-r", path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A local tree: files of several sizes (an empty one, one of several chunks), a symlink, an executable, an awkward name."""
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "a" / "small").write_bytes(b"hello\n")
    (root / "a" / "b" / "large").write_bytes(os.urandom(3_500_000))
    (root / "a" / "b" / "script").write_bytes(b"#!/bin/sh\n")
    (root / "a" / "b" / "script").chmod(0o755)
    (root / "a" / "with space and ümlaut").write_bytes(b"x" * 5000)
    (root / "link").symlink_to("a/small")
    return root


def same(left: Path, right: Path) -> None:
    """Both trees hold the same names, types, bytes and executable bits."""
    found = [sorted(p.relative_to(root).as_posix() for p in root.rglob("*")) for root in (left, right)]
    assert found[0] == found[1]
    for name in found[0]:
        one, other = left / name, right / name
        assert one.is_symlink() == other.is_symlink() and one.is_dir() == other.is_dir()
        if one.is_symlink():
            assert one.readlink() == other.readlink()
        elif one.is_file():
            assert one.read_bytes() == other.read_bytes()
            assert one.stat().st_mode & 0o100 == other.stat().st_mode & 0o100


class TestCopying:
    def test_there_and_back(self, run: Command, home: str, tree: Path, tmp_path: Path) -> None:
        run("put", "-r", str(tree), home)
        run("get", "-r", f"{home}/tree", str(tmp_path / "back"))
        same(tree, tmp_path / "back")

    def test_into_a_directory_or_under_a_name(self, run: Command, home: str, tree: Path) -> None:
        run("put", str(tree / "a" / "small"), home)
        run("put", str(tree / "a" / "small"), f"{home}/other")
        assert run("ls", home).lines == ["other", "small"]
        assert run("cat", f"{home}/small", f"{home}/other").out == b"hello\nhello\n"

    def test_standard_input_and_output(self, run: Command, home: str) -> None:
        payload = os.urandom(2_500_000)
        run("put", "-", f"{home}/piped", data=payload)
        assert run("cat", f"{home}/piped").out == payload
        assert run("get", f"{home}/piped", "-").out == payload

    def test_preserve(self, run: Command, home: str, tree: Path, tmp_path: Path) -> None:
        os.utime(tree / "a" / "small", ns=(10**18, 10**18 + 1))
        run("put", "-p", str(tree / "a" / "small"), home)
        run("get", "-p", f"{home}/small", str(tmp_path / "back"))
        assert (tmp_path / "back").stat().st_mtime_ns == 10**18 + 1

    def test_a_private_directory_stays_private(self, run: Command, home: str, tree: Path, tmp_path: Path) -> None:
        (tree / "a").chmod(0o700)
        (tree / "a" / "b").chmod(0o1777)
        run("put", "-r", "-p", str(tree), f"{home}/kept")
        run("cp", "-r", f"{home}/kept", f"{home}/copy")
        assert [entry["mode"] for entry in run("stat", "--json", f"{home}/kept/a", f"{home}/copy/a").json] == [
            0o700
        ] * 2
        run("get", "-r", f"{home}/copy", str(tmp_path / "back"))
        assert bits.S_IMODE((tmp_path / "back" / "a").stat().st_mode) == 0o700
        run("get", "-r", "-p", f"{home}/kept", str(tmp_path / "same"))
        assert bits.S_IMODE((tmp_path / "same" / "a" / "b").stat().st_mode) == 0o1777

    def test_within_the_cluster(self, run: Command, home: str, tree: Path, tmp_path: Path) -> None:
        run("put", "-r", str(tree), home)
        run("cp", "-r", f"{home}/tree", f"{home}/copy")
        run("get", "-r", f"{home}/copy", str(tmp_path / "back"))
        same(tree, tmp_path / "back")

    def test_a_file_is_not_copied_over_itself(self, run: Command, home: str) -> None:
        """Under its own name, by a link or through the directory: nothing of it is lost."""
        run("put", "-", f"{home}/file", data=b"content")
        with emberfs.connect(data_url(run.environment["EMBERFS_DATA"])) as client:
            client.symlink("file", f"{home}/symlink")
            client.link(f"{home}/file", f"{home}/link")
        for source, target in (
            ("file", "file"),
            ("file", ""),
            ("file", "link"),
            ("link", "file"),
            ("symlink", "file"),
            ("file", "symlink"),
        ):
            assert "same" in run.fail(1, "cp", f"{home}/{source}", f"{home}/{target}")
        assert "inside" in run.fail(1, "cp", "-r", home, f"{home}/below")
        assert run("cat", f"{home}/file", f"{home}/link").out == b"contentcontent"

    def test_two_files_of_one_name_do_not_go_into_one_directory(self, run: Command, home: str, tmp_path: Path) -> None:
        """Neither is written over by the other, and none is moved."""
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
            run("put", "-r", str(tmp_path / name), home)
        run("mkdir", f"{home}/all")
        sources = [f"{home}/one/file", f"{home}/other/file"]
        for command in ("cp", "clone", "mv"):
            assert "more than one" in run.fail(2, command, *sources, f"{home}/all")
        assert "more than one" in run.fail(2, "mv", f"{home}/*/file", f"{home}/all")
        (tmp_path / "all").mkdir()
        assert "more than one" in run.fail(2, "get", *sources, str(tmp_path / "all"))
        assert "more than one" in run.fail(
            2, "put", *(str(tmp_path / name / "file") for name in ("one", "other")), home
        )
        assert run("cat", *sources).out == b"oneother"
        assert run("ls", f"{home}/all").lines == []

    def test_a_file_that_several_patterns_match_is_one_source(self, run: Command, home: str, tmp_path: Path) -> None:
        local = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
        for path in local:
            Path(path).write_text("content")
        run("mkdir", *(f"{home}/{name}" for name in ("in", "copy", "clone", "moved")))
        run("put", "-n", *local, local[0], f"{home}/in")
        patterns = [f"{home}/in/*.txt", f"{home}/in/a*"]
        (tmp_path / "out").mkdir()
        run("get", "-n", *patterns, str(tmp_path / "out"))
        assert sorted(os.listdir(tmp_path / "out")) == ["a.txt", "b.txt"]
        assert run("cat", *patterns).out == b"content" * 3, "what is said twice is shown twice"
        for command, target in (("cp", "copy"), ("clone", "clone"), ("mv", "moved")):
            run(command, "-n", *patterns, f"{home}/{target}")
            assert run("ls", f"{home}/{target}").lines == ["a.txt", "b.txt"]

    def test_clones(self, run: Command, home: str, tree: Path, tmp_path: Path) -> None:
        run("put", "-r", str(tree), home)
        told = json.loads(run("clone", "-r", "--json", f"{home}/tree", f"{home}/copy").out)
        assert told["failures"] == []
        assert told["files"] > 0
        run("rm", "-r", f"{home}/tree")
        run("get", "-r", f"{home}/copy", str(tmp_path / "back"))
        same(tree, tmp_path / "back")
        assert "add -r" in run.fail(1, "clone", f"{home}/copy", f"{home}/other")
        run("clone", f"{home}/copy/a/small", home)
        run.fail(1, "clone", "-n", f"{home}/copy/a/small", home)
        run("clone", f"{home}/copy/a/small", home)
        assert run("cat", f"{home}/small").out == b"hello\n"

    def test_no_replace(self, run: Command, home: str, tree: Path) -> None:
        small = str(tree / "a" / "small")
        run("put", small, home)
        run.fail(1, "put", "-n", small, home)
        run.fail(1, "cp", "-n", f"{home}/small", f"{home}/small")
        run.fail(1, "get", "-n", f"{home}/small", small)

    def test_what_cannot_be_read_is_told_and_the_rest_copied(self, run: Command, home: str, tree: Path) -> None:
        os.mkfifo(tree / "pipe")
        error = run.fail(1, "put", "-r", str(tree), home)
        assert "pipe is neither file, directory nor symlink" in error
        assert "empty" in run("ls", f"{home}/tree").lines
        assert "nowhere: No such file" in run.fail(1, "put", "nowhere", home)
        assert "Input/output error" in run.fail(1, "put", "/proc/self/mem", f"{home}/mem")

    def test_a_directory_wants_r(self, run: Command, home: str, tree: Path, tmp_path: Path) -> None:
        assert "add -r" in run.fail(1, "put", str(tree), home)
        assert "add -r" in run.fail(1, "get", home, str(tmp_path / "x"))
        assert "add -r" in run.fail(1, "rm", home)

    def test_a_failed_get_leaves_the_target_alone(self, run: Command, home: str, tmp_path: Path) -> None:
        (tmp_path / "kept").write_bytes(b"precious")
        run.fail(1, "get", f"{home}/missing", str(tmp_path / "kept"))
        assert (tmp_path / "kept").read_bytes() == b"precious"
        assert os.listdir(tmp_path) == ["kept"]

    def test_get_writes_to_a_device_or_a_pipe(self, run: Command, home: str, tmp_path: Path) -> None:
        """It does not take its place, which would make a file of /dev/null."""
        run("put", "-", f"{home}/file", data=b"content")
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            run("get", f"{home}/file", str(tmp_path / "pipe"))
            assert (tmp_path / "pipe").is_fifo()
            assert os.read(reader, 100) == b"content"
        finally:
            os.close(reader)
        (tmp_path / "link").symlink_to("/dev/null")
        run("get", "-p", f"{home}/file", str(tmp_path / "link"))
        assert (tmp_path / "link").is_symlink()
        assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]

    def test_get_writes_to_a_descriptor(self, run: Command, home: str, tmp_path: Path) -> None:
        """/dev/stdout is a symlink to one, also while it is a file: by root it would be gone."""
        run("put", "-", f"{home}/file", data=b"content")
        with open(tmp_path / "file", "w+b") as file:
            file.write(b"before ")
            file.flush()
            (tmp_path / "stdout").symlink_to(f"/proc/{os.getpid()}/fd/{file.fileno()}")
            run("get", "-p", f"{home}/file", str(tmp_path / "stdout"))
            run("get", f"{home}/file", f"/proc/{os.getpid()}/fd/{file.fileno()}")
        assert (tmp_path / "stdout").is_symlink()
        assert (tmp_path / "file").read_bytes() == b"before contentcontent"
        assert sorted(os.listdir(tmp_path)) == ["file", "stdout"]

    def test_get_of_the_longest_names(self, run: Command, home: str, tmp_path: Path) -> None:
        for name in ("字" * 85, "n" * 255):  # 255 bytes
            run("put", "-", f"{home}/{name}", data=b"content")
        run("get", "-r", home, str(tmp_path / "back"))
        assert sorted(os.listdir(tmp_path / "back")) == ["n" * 255, "字" * 85]

    def test_cp_of_a_local_file_says_put(self, run: Command, home: str, tree: Path) -> None:
        assert "emberfs put" in run.fail(1, "cp", str(tree / "empty"), home)


class TestLooking:
    @pytest.fixture(autouse=True)
    def _filled(self, run: Command, home: str, tree: Path) -> None:
        run("put", "-r", str(tree), home)

    def test_ls(self, run: Command, home: str) -> None:
        assert run("ls", f"{home}/tree").lines == ["a/", "empty", "link"]
        long = run("ls", "-l", f"{home}/tree").lines
        assert long[0].startswith("drwx") and long[2].endswith("link -> a/small")
        assert "a/b/large" in run("ls", "-R", f"{home}/tree").lines
        assert run("ls", "-d", f"{home}/tree").lines == [f"{home}/tree/"]

    def test_ls_json(self, run: Command, home: str) -> None:
        entries = run("ls", "--json", "-R", f"{home}/tree").json
        large = next(entry for entry in entries if entry["path"].endswith("a/b/large"))
        assert large["path"] == f"{home}/tree/a/b/large" and large["size"] == 3_500_000 and large["type"] == "file"

    def test_ls_of_several_goes_on_after_a_missing_one(self, run: Command, home: str) -> None:
        result = run.any("ls", f"{home}/tree/a", f"{home}/missing", f"{home}/tree/empty")
        assert result.code == 1 and "missing: " in result.err and "small" in result.text

    def test_patterns(self, run: Command, home: str) -> None:
        assert run("ls", "-d", f"{home}/tree/*").lines == [f"{home}/tree/a/", f"{home}/tree/empty", f"{home}/tree/link"]
        assert run("ls", f"{home}/**/larg[e]").lines == [f"{home}/tree/a/b/large"]
        assert "nothing matches" in run.fail(1, "ls", f"{home}/*.none")

    def test_tree(self, run: Command, home: str) -> None:
        lines = run("tree", f"{home}/tree").lines
        assert lines[0] == f"{home}/tree" and lines[1] == "├── a/" and lines[-1] == "2 directories, 6 files"
        assert "│   │   ├── large" in lines
        assert not any("large" in line for line in run("tree", "-L", "1", f"{home}/tree").lines)
        assert {entry["type"] for entry in run("tree", "--json", f"{home}/tree").json} == {
            "file",
            "directory",
            "symlink",
        }

    def test_stat(self, run: Command, home: str) -> None:
        text = run("stat", f"{home}/tree/a/b/script").text
        assert "0755 -rwxr-xr-x" in text and "type: file" in text
        [link] = run("stat", "--json", f"{home}/tree/link").json
        assert link["type"] == "symlink" and link["target"] == "a/small"
        assert run("stat", "--json", "-L", f"{home}/tree/link").json[0]["type"] == "file"

    def test_du(self, run: Command, home: str) -> None:
        large = 3_500_000 + 10
        documents = {entry["path"]: entry for entry in run("du", "--json", f"{home}/tree").json}
        assert documents[f"{home}/tree/a/b"] == {"path": f"{home}/tree/a/b", "bytes": large, "files": 2}
        assert documents[f"{home}/tree"]["bytes"] >= large + 5006
        assert len(run("du", "-s", f"{home}/tree").lines) == 1

    def test_df(self, run: Command, cluster: LocalCluster) -> None:
        space = run("df", "--json").json
        assert space["cluster"] == cluster.cluster_id and 0 < space["free"] <= space["total"] == 2 << 30
        assert cluster.cluster_id in run("df").text

    def test_info(self, run: Command, home: str) -> None:
        found = run("info", "--json", f"{home}/tree/a/b/large").json
        assert [chunk["bytes"] for chunk in found["chunks"]] == [1 << 20] * 3 + [3_500_000 - (3 << 20)]
        assert {target["state"] for chunk in found["chunks"] for target in chunk["targets"]} == {"SERVING"}
        text = run("info", f"{home}/tree/a/b/large").text
        assert "4 of 1.0 MiB" in text and "target-1" in text
        assert "type: directory" in run("info", home).text


class TestChanging:
    def test_mkdir(self, run: Command, home: str) -> None:
        run("mkdir", f"{home}/one")
        assert "exists" in run.fail(1, "mkdir", f"{home}/one").lower()
        run.fail(1, "mkdir", f"{home}/x/y/z")
        run("mkdir", "-p", f"{home}/x/y/z", f"{home}/one")
        run("mkdir", "-m", "700", f"{home}/private")
        assert run("stat", "--json", f"{home}/private").json[0]["mode"] == bits.S_IMODE(0o700)
        for mode in ("rwx", "-1", "77777"):
            assert "octal" in run.fail(2, "mkdir", "-m", mode, f"{home}/bad")

    def test_mv(self, run: Command, home: str) -> None:
        for name in ("a", "b"):
            run("put", "-", f"{home}/{name}", data=name.encode())
        run("mv", f"{home}/a", f"{home}/c")
        run.fail(1, "mv", "-n", f"{home}/b", f"{home}/c")
        run("mv", "--exchange", f"{home}/b", f"{home}/c")
        assert run("cat", f"{home}/b").out == b"a"
        run("mkdir", f"{home}/d")
        run("mv", f"{home}/b", f"{home}/c", f"{home}/d")
        assert run("ls", f"{home}/d").lines == ["b", "c"]
        assert "not a directory" in run.fail(2, "mv", f"{home}/d/b", f"{home}/d/c", f"{home}/none")

    def test_rm(self, run: Command, home: str) -> None:
        run("put", "-", f"{home}/a.txt", data=b"1")
        run("put", "-", f"{home}/b.txt", data=b"2")
        run("mkdir", "-p", f"{home}/deep/er")
        assert run("rm", "--dry-run", f"{home}/*.txt").lines == [f"{home}/a.txt", f"{home}/b.txt"]
        run("rm", f"{home}/*.txt")
        run("rm", "-r", f"{home}/deep")
        assert run("ls", home).lines == []
        run.fail(1, "rm", f"{home}/a.txt")
        run("rm", "-f", f"{home}/a.txt", f"{home}/*.txt")
        assert "refusing" in run.fail(1, "rm", "-r", "/")

    def test_rm_of_a_symlink_to_nowhere_whose_name_looks_like_a_pattern(self, run: Command, home: str) -> None:
        """It is meant itself, and not what the pattern would match."""
        run("put", "-", f"{home}/a1", data=b"precious")
        with emberfs.connect(data_url(run.environment["EMBERFS_DATA"])) as client:
            client.symlink("nowhere", f"{home}/a[1]")
        run("rm", f"{home}/a[1]")
        assert run("ls", home).lines == ["a1"]


class TestBadInput:
    def test_a_name_over_255_bytes(self, run: Command, home: str) -> None:
        assert "255" in run.fail(1, "put", "-", f"{home}/{'n' * 256}", data=b"")
        assert "255" in run.fail(1, "mkdir", f"{home}/{'ü' * 128}")
        run("put", "-", f"{home}/{'n' * 255}", data=b"")

    def test_a_path_over_4095_bytes(self, run: Command) -> None:
        assert "4095" in run.fail(1, "stat", "/x" * 2100)

    def test_names_that_are_no_utf8(self, run: Command, home: str, tmp_path: Path) -> None:
        name = b"caf\xe9 \xff"
        local = os.path.join(os.fsencode(tmp_path), name)
        Path(os.fsdecode(local)).write_bytes(b"latin")
        run("put", local, home)
        assert run("ls", home).out == name + b"\n"
        assert run("cat", os.fsencode(home) + b"/" + name).out == b"latin"
        [entry] = run("ls", "--json", home).json
        assert os.fsencode(entry["path"]) == os.fsencode(home) + b"/" + name
        run("get", "-r", home, str(tmp_path / "back"))
        assert os.listdir(os.fsencode(tmp_path / "back")) == [name]

    def test_awkward_names(self, run: Command, home: str) -> None:
        for name in ("-dash", "a\nb", "\x1b[31mred", "*", "[x]", " ", "#?%20"):
            run("put", "-", f"{home}/{name}", data=name.encode())
            assert run("cat", f"{home}/{name}").out == name.encode()

    def test_through_a_file_or_a_loop(self, run: Command, home: str) -> None:
        run("put", "-", f"{home}/file", data=b"")
        assert "not a directory" in run.fail(1, "put", "-", f"{home}/file/below", data=b"").lower()
        assert "not a directory" in run.fail(1, "tree", f"{home}/file").lower()
        assert "directory" in run.fail(1, "cat", home)

    def test_wrong_usage(self, run: Command) -> None:
        assert "--help" in run.fail(2, "nonsense")
        assert "'status'" in run.fail(2, "statsu")
        run.fail(2, "ls", "--nonsense")
        run("tree", "-L", str(1 << 40), "/")
        assert "info" in run.fail(2, "up", "--log-level", "loud")
        assert "only ember://" in run.fail(2, "ls", "s3://bucket/x")
        assert "in one cluster" in run.fail(2, "cp", "ember://one/x", "ember://two/y")
        run.fail(2, "ls", "ember://host:notaport/")
        assert "more than can be counted" in run.fail(2, "kv", "quota", "tenant", "9999E")
        assert "no user" in run.fail(1, "quota", "set", "--user", "²", "--size", "1G")

    def test_a_name_is_told_once_and_no_number_of_an_inode(self, run: Command, home: str) -> None:
        for command in ("cat", "rm", "ls"):
            assert run.fail(1, command, f"{home}/none") == f"emberfs: {home}/none: no such file or directory\n"
        assert "'none'" in run.fail(1, "put", "-", f"{home}/none/below", data=b"")
        run("mkdir", f"{home}/a")
        assert "below itself" in run.fail(1, "mv", f"{home}/a", f"{home}/a/b")

    def test_names_that_look_like_markup_in_tables(self, run: Command, home: str) -> None:
        """Tables that programs read are not cut, however long what is in them."""
        path = f"{home}/[red]{'long' * 50}[/]:smile:"
        run("mkdir", "-p", path)
        run("quota", "set", "--path", path, "--inodes", "9")
        assert path in run("quota", "list").text
        run("quota", "remove", "--path", path)

    def test_no_cluster_there(self, tmp_path: Path) -> None:
        nowhere = Command({"EMBERFS_DATA": str(tmp_path / "none"), "EMBERFS_URL": ""})
        assert "emberfs up" in nowhere.fail(3, "ls", "/")
        assert "emberfs up" in nowhere.fail(3, "status")
        gone = Command({"EMBERFS_URL": "ember://127.0.0.1:1/"})
        gone.fail(3, "ls", "/")
        # Of a cluster elsewhere nothing can be started here.
        assert "cannot be reached" in (told := gone.fail(3, "status")) and "emberfs up" not in told

    def test_output_that_nobody_reads(self, run: Command, home: str) -> None:
        import subprocess
        import sys

        run("put", "-", f"{home}/large", data=bytes(9_000_000))
        command = [sys.executable, "-P", "-m", "emberfs", "cat", f"{home}/large"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **run.environment}
        ) as process:
            assert process.stdout and process.stderr
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 1
        # Nor one that is closed from the beginning.
        for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
            shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *command[:-2], "ls", "/"]
            assert (
                subprocess.run(
                    shell, check=False, capture_output=True, env={**os.environ, **run.environment}
                ).returncode
                == 0
            )


def test_another_url(cluster: LocalCluster, run: Command) -> None:
    """A cluster is named by the option --data, by --url, or in the path."""
    nowhere = Command({"EMBERFS_DATA": "/nonexistent", "EMBERFS_URL": ""})
    for arguments in (["--data", str(cluster.data), "df", "--json"], ["--url", cluster.url, "df", "--json"]):
        assert nowhere(*arguments).json["cluster"] == cluster.cluster_id
    assert nowhere("ls", "-d", f"{cluster.url}").lines == ["//"] or nowhere("ls", "-d", cluster.url).lines == ["/"]


def test_doctor(run: Command, cluster: LocalCluster) -> None:
    findings = {entry["check"]: entry for entry in run("doctor", "--json", "--data", str(cluster.data)).json}
    assert findings["memory regions"]["state"] == findings["data directory"]["state"] == "ok"
    assert all(entry["advice"] for entry in findings.values() if entry["state"] != "ok")
    assert findings["servers"]["found"] == "all run" and findings["chains"]["found"].endswith("all well")


def test_help_and_version(run: Command) -> None:
    import emberfs

    assert run("--version").text == f"emberfs {emberfs.__version__}\n"
    text = run("--help").text
    for name in ("up", "down", "status", "ls", "put", "bench", "doctor"):
        assert f" {name} " in text
        assert "Usage" in run(name, "--help").text
    assert "..." not in text.split("Cluster:")[1] and "..." not in run("chain", "--help").text.split("Commands:")[1]
    assert LOG_LEVELS == process.LOG_LEVELS


def test_status_says_what_is_documented_and_nothing_else(run: Command, cluster: LocalCluster) -> None:
    """deploy/README.md promises the keys of `status --json` to programs."""
    notes = (Path(emberfs.deploy.__file__).parent / "README.md").read_text()
    documented = set(
        re.findall(r"`([a-z_]+)`", notes.split("## What `emberfs status --json` says")[1].split("\n## ")[0])
    )
    found = run("status", "--json").json
    said = set(found) | set(found["space"])
    chains, transports = found["chains"], found["transports"]
    for rows in (found["servers"], found["nodes"], found["targets"], chains, chains[0]["members"], transports):
        said |= set(rows[0])
    assert documented == said | {"sync"} | {"path", "source", "options"}  # of a chain that recovers, and of mounts


def test_a_drain_that_is_wrong_usage_marks_no_node(run: Command) -> None:
    for option in ("--rate", "--domain"):
        run.fail(2, "node", "drain", "storage-1", option, "nonsense")
        assert [node["state"] for node in run("node", "list", "--json").json] == ["up"]
